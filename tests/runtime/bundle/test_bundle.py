"""A bundle opens from its manifest alone, and nothing a damaged or hostile one says gets past the door."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arlon_rt.backends.ort import verify_opened
from arlon_rt.bundle import Bundle, describe, write_manifest
from arlon_rt.bundle import bundle as bundles
from arlon_rt.bundle import manifest as manifests
from arlon_rt.bundle.manifest import parse, serialize
from arlon_rt.errors import ArlonError, BundleError, BundleNotFoundError
from arlon_rt.graphs import graph_specs
from tiny_bundle import TINY, baseline_model, write_tiny_bundle

HOSTILE_NAMES = [
    "/etc/passwd", "../outside.onnx", "onnx/../../outside.onnx", "onnx/..", ".", "", "onnx//dit.onnx", "./dit.onnx",
    "onnx\\dit.onnx", "C:\\dit.onnx", "c:dit.onnx", "dit\0.onnx", "dit\n.onnx", "~/dit.onnx", ".hidden.onnx",
    "dít.onnx", "con.onnx", "onnx/NUL", "dit.onnx.", "dit.onnx ", "a" * 300 + ".onnx", "manifest.json",
]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("pristine"))


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "bundle"))


def tree_of(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text())


def encoded(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def places(tree: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Paths of every value of a manifest, the free-form provenance left out."""
    items: Any = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        if key != "provenance":
            yield (*path, key)
            yield from places(value, (*path, key))


def value_at(tree: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def replaced(tree: Any, path: tuple[str | int, ...], value: Any) -> Any:
    copy = json.loads(json.dumps(tree))
    value_at(copy, path[:-1])[path[-1]] = value
    return copy


def test_opening_reads_the_manifest_and_no_other_file(folder: Path) -> None:
    for name in bundles.listed_files(folder):
        (folder / name).unlink()
    assert Bundle.open(folder).model == TINY


def test_a_manifest_survives_writing_and_reading(pristine: Path) -> None:
    content = (pristine / "manifest.json").read_bytes()
    assert serialize(parse(content)) == content


def test_the_hash_changes_with_any_byte_of_any_file(folder: Path) -> None:
    before = Bundle.open(folder)
    weights = folder / "onnx" / "dit.data"
    weights.write_bytes(b"\1" + weights.read_bytes()[1:])
    m = before.manifest
    write_manifest(folder, model=m.model, defaults=m.defaults, graphs=m.graphs, provenance=m.provenance)
    assert Bundle.open(folder).hash != before.hash


def test_a_baseline_bundle_has_no_token_model(tmp_path: Path) -> None:
    bundle = Bundle.open(write_tiny_bundle(tmp_path, model=baseline_model()))
    assert bundle.is_baseline
    assert list(bundle.manifest.graphs) == ["text_encoder", "caption", "dit", "vae_decoder", "vae_encoder"]
    assert [*bundle.verify(), *verify_opened(bundle)] == []


@pytest.mark.parametrize("path", ["nowhere", "", "\0", "a" * 5000])
def test_a_path_without_a_bundle_is_one_clear_error(path: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        Bundle.open(tmp_path / path)


def test_a_missing_bundle_is_also_a_file_not_found_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no manifest\.json"):
        Bundle.open(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleNotFoundError, match="is not a folder"):
        Bundle.open(tmp_path / "file")


def test_a_missing_precision_or_graph_says_what_is_there(pristine: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(pristine)
    with pytest.raises(BundleError, match="no 'bf16' of dit; precisions there: fp32, fp16"):
        bundle.graph_file("dit", "bf16")
    with pytest.raises(BundleError, match="no graph 'unet'; graphs there: text_encoder, ar_prefix"):
        bundle.graph_file("unet", "fp32")
    assert bundle.precisions == ("fp32", "fp16")


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_name_that_is_not_plain_and_relative_is_refused(name: str, pristine: Path) -> None:
    tree = tree_of(pristine)
    files = {**tree["files"], name: tree["files"]["tokenizer.model"]}
    with pytest.raises(BundleError):
        parse(encoded({**tree, "files": files}))
    with pytest.raises(BundleError):
        parse(encoded(replaced(tree, ("graphs", "dit", "fp32", "file"), name)))
    with pytest.raises(BundleError):
        parse(encoded(replaced(tree, ("graphs", "dit", "fp32", "data"), [name])))


def test_names_that_differ_only_in_case_are_refused(pristine: Path) -> None:
    tree = tree_of(pristine)
    tree["files"]["ONNX/Dit.data"] = tree["files"]["onnx/dit.data"]
    with pytest.raises(BundleError, match="differ only in case"):
        parse(encoded(tree))


def test_a_link_that_leaves_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    weights = folder / "onnx" / "dit.data"
    (tmp_path / "outside").write_bytes(weights.read_bytes())
    weights.unlink()
    weights.symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="leaves the bundle"):
        Bundle.open(folder).graph_file("dit", "fp32")
    assert [f.where for f in Bundle.open(folder).verify()] == ["onnx/dit.data"]


def test_a_linked_folder_or_manifest_that_leaves_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "onnx").rename(tmp_path / "onnx")
    (folder / "onnx").symlink_to(tmp_path / "onnx")
    with pytest.raises(BundleError, match="leaves the bundle"):
        Bundle.open(folder).graph_file("dit", "fp32")
    (folder / "manifest.json").rename(tmp_path / "manifest.json")
    (folder / "manifest.json").symlink_to(tmp_path / "manifest.json")
    with pytest.raises(BundleError, match="leaves the bundle"):
        Bundle.open(folder)


def test_a_link_in_a_circle_and_a_pipe_are_refused_without_waiting(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()
    (folder / "tokenizer.model").symlink_to(folder / "tokenizer.model")
    with pytest.raises(BundleError):
        _ = Bundle.open(folder).tokenizer_path
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")
    with pytest.raises(BundleError, match="not a regular file"):
        Bundle.open(folder)


def test_a_bundle_may_itself_be_reached_through_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert Bundle.open(tmp_path / "link").verify() == []


@pytest.mark.parametrize("seed", range(60))
def test_a_value_of_the_wrong_type_is_an_error(seed: int, pristine: Path) -> None:
    tree = tree_of(pristine)
    path = random.Random(seed).choice(list(places(tree)))
    wrong: Any = {"surprise": 1} if not isinstance(value_at(tree, path), dict) else [1]
    with pytest.raises(ArlonError):
        parse(encoded(replaced(tree, path, wrong)))


@pytest.mark.parametrize("seed", range(60))
def test_a_number_out_of_range_is_an_error(seed: int, pristine: Path) -> None:
    tree, pick = tree_of(pristine), random.Random(seed)
    path = pick.choice([p for p in places(tree) if type(value_at(tree, p)) in (int, float)])
    wrong = [float("nan"), float("inf"), 10**4000, True]
    if isinstance(value_at(tree, path), int):
        wrong += [-1, -(10**30), 10**30, 0.5]
    with pytest.raises(ArlonError):
        parse(encoded(replaced(tree, path, pick.choice(wrong))))


@pytest.mark.parametrize("seed", range(40))
def test_an_unknown_field_is_named(seed: int, pristine: Path) -> None:
    tree = tree_of(pristine)
    objects = [p for p in places(tree) if isinstance(value_at(tree, p), dict) and p[-1] not in ("kept_fp32",)]
    path = random.Random(seed).choice([(), *objects])
    with pytest.raises(BundleError, match="surprise"):
        parse(encoded(replaced(tree, (*path, "surprise"), {"file": 1})))


@pytest.mark.parametrize("seed", range(40))
def test_a_truncated_manifest_is_an_error(seed: int, pristine: Path) -> None:
    content = (pristine / "manifest.json").read_bytes()
    with pytest.raises(BundleError):
        parse(content[: random.Random(seed).randrange(len(content) - 2)])


@pytest.mark.parametrize("seed", range(100))
def test_changed_bytes_never_raise_anything_but_an_arlon_error(seed: int, pristine: Path) -> None:
    content, pick = bytearray((pristine / "manifest.json").read_bytes()), random.Random(seed)
    for _ in range(pick.randint(1, 4)):
        content[pick.randrange(len(content))] = pick.choice(b'0123456789-.eE"{}[]:,\\ntu\0\xff ')
    try:
        manifest = parse(bytes(content))
    except ArlonError:
        return
    assert describe(Bundle(pristine, manifest, "0" * 64)).networks


@pytest.mark.parametrize("content", [
    b"", b"null", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"format":' * 50_000, b'{"format": 1' + b"0" * 5000 + b"}",
    b'{"format": 1, "format": 1}', b'{"format": 1.0}', b'{"format": true}', b'{"format": 0}', b'{"\\u001b[31m": 1}',
    b" " * (manifests.MAX_BYTES + 1),
])
def test_content_that_is_no_manifest_is_an_error(content: bytes) -> None:
    with pytest.raises(BundleError):
        parse(content)


def test_a_newer_format_asks_for_a_newer_arlon_rt(pristine: Path) -> None:
    with pytest.raises(BundleError, match="reads 1: upgrade arlon-rt"):
        parse(encoded({**tree_of(pristine), "format": 2, "new_field": {}}))


@pytest.mark.parametrize(("path", "value", "message"), [
    (("model", "ar"), None, "come together"),
    (("model", "dit", "num_heads"), 3, "no multiple of num_heads"),
    (("model", "dit", "caption_channels"), 8, "caption_channels is 8, text.d_model 16"),
    (("model", "ar", "max_length"), 20, "longest prompt and largest window need 84"),
    (("model", "ar", "max_top_k"), 32, "max_top_k is 32; at most 16"),
    (("model", "vq", "stride"), [3, 2, 2], "powers of two"),
    (("model", "injection", "layers"), [5], "names 5"),
    (("model", "video", "segment_frames"), 60, "segment_frames is 60; two or more times vae.chunk_frames 17"),
    (("model", "video", "overlap_frames"), 34, "overlap_frames is 34; it must be vae.chunk_frames 17"),
    (("model", "vae", "scale"), [1.0, 1.0, 1.0], "must have 4 entries"),
    (("model", "text", "vocab_size"), 1 << 40, r"vocab_size is .*; it must be 1\.\.1048576"),
    (("model", "video"), {"height": 1 << 20, "width": 1 << 20}, "elements; at most"),
    (("defaults", "num_inference_steps"), 0, "defaults: num_inference_steps is 0"),
    (("graphs", "dit", "fp64"), {"file": "onnx/dit.fp32.onnx", "inputs": [], "outputs": []}, "one of fp32, fp16"),
    (("graphs", "dit", "fp32", "file"), "tokenizer.model", "must lie in the folder"),
    (("graphs", "dit", "fp32", "data"), ["onnx/other.data"], "does not list"),
    (("files", "tokenizer.model", "sha256"), "xyz", "64 hexadecimal digits"),
])
def test_sizes_and_references_that_do_not_fit_are_named(
    path: tuple[str, ...], value: Any, message: str, pristine: Path
) -> None:
    with pytest.raises(BundleError, match=message):
        parse(encoded(replaced(tree_of(pristine), path, value)))


def test_verify_finds_nothing_in_a_whole_bundle_and_reports_progress(pristine: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert Bundle.open(pristine).verify(progress=lambda done, total: seen.append((done, total))) == []
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] > 0


def test_verify_names_changed_truncated_missing_and_stray_files(folder: Path) -> None:
    onnx = folder / "onnx"
    (onnx / "dit.data").write_bytes(bytes(512))
    (onnx / "dit.fp32.onnx").write_bytes((onnx / "dit.fp32.onnx").read_bytes()[:100])
    (folder / "tokenizer.model").unlink()
    (onnx / "stray.onnx").write_bytes(b"")
    (folder / "engines").mkdir()
    (folder / "engines" / "index.json").write_text("{}")
    findings = {f.where: f for f in Bundle.open(folder).verify()}
    assert sorted(findings) == ["onnx/dit.data", "onnx/dit.fp32.onnx", "onnx/stray.onnx", "tokenizer.model"]
    assert "SHA-256" in findings["onnx/dit.data"].message
    assert "has 100 bytes" in findings["onnx/dit.fp32.onnx"].message
    assert "missing" in findings["tokenizer.model"].message
    assert findings["onnx/stray.onnx"].severity == "warning"


def test_a_file_of_the_wrong_size_is_named_before_it_is_opened(folder: Path) -> None:
    weights = folder / "onnx" / "dit.data"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"dit\.data has 511 bytes, the manifest says 512.*arlon-rt verify"):
        Bundle.open(folder).graph_file("dit", "fp32")


def test_verify_compares_the_manifest_with_the_contract(folder: Path) -> None:
    tree = tree_of(folder)
    tree["graphs"]["dit"]["fp32"]["inputs"][0][1] = "float16"
    tree["graphs"]["vae_decoder"]["fp32"]["outputs"][0][0] = "images"
    del tree["graphs"]["caption"]
    (folder / "manifest.json").write_text(json.dumps(tree))
    messages = {f.where: f.message for f in Bundle.open(folder).verify()}
    assert messages["dit.fp32"].startswith("input latents is float16")
    assert messages["vae_decoder.fp32"] == "outputs are images; the contract has frames"
    assert "no such graph" in messages["caption"]


def test_deep_verify_finds_a_file_that_holds_another_graph(folder: Path) -> None:
    manifest = Bundle.open(folder).manifest
    shutil.copy(folder / "onnx" / "caption.fp32.onnx", folder / "onnx" / "dit.fp32.onnx")
    write_manifest(folder, model=manifest.model, defaults=manifest.defaults, graphs=manifest.graphs)
    bundle = Bundle.open(folder)
    assert bundle.verify() == []
    assert {f.where for f in verify_opened(bundle)} == {"dit.fp32"}


def test_a_manifest_that_would_be_refused_is_not_written(folder: Path) -> None:
    before = (folder / "manifest.json").read_bytes()
    manifest = Bundle.open(folder).manifest
    with pytest.raises(BundleError, match="num_frames"):
        write_manifest(folder, model=manifest.model, defaults={"num_frames": 0}, graphs=manifest.graphs)
    with pytest.raises(BundleError, match="steps"):
        write_manifest(folder, model=manifest.model, defaults={"steps": 1}, graphs=manifest.graphs)
    assert (folder / "manifest.json").read_bytes() == before
    assert not list(folder.glob(".manifest*"))


def test_inspection_counts_networks_and_bytes_from_the_manifest_alone(folder: Path) -> None:
    sizes = sum((folder / name).stat().st_size for name in bundles.listed_files(folder))
    shutil.rmtree(folder / "onnx")
    summary = describe(Bundle.open(folder))
    assert [n.name for n in summary.networks] == ["text", "ar", "vq", "dit", "vae"]
    assert [g.name for n in summary.networks for g in n.graphs] == list(graph_specs(TINY))
    assert summary.bytes_on_disk == sizes
    assert summary.defaults.num_frames == 17
    assert not summary.baseline
