"""Which engine is found, which is refused, and with which error, without TensorRT and without loading an engine."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import arlon_rt
from arlon_rt.bundle import (
    HEADER_BYTES,
    Bundle,
    Identity,
    demo_bundle_path,
    encode_header,
    engine_stores,
    find_engine,
    read_header,
    store_to_build_in,
)
from arlon_rt.bundle.trust import record_path
from arlon_rt.errors import BundleError, EngineError, EngineNotFoundError
from engine_builds import SMALL, Engines, build_engines, change_graph

THIS = Identity(
    flavour="tensorrt-rtx", version="1.7.1.116", compute_capability="sm89", precision="fp16"
)


@pytest.fixture
def record() -> Path:
    """The record of built engines, which is restored after the test."""
    return record_path()


@pytest.fixture(autouse=True)
def _keep_record(record: Path) -> object:
    before = record.read_bytes() if record.exists() else b""
    yield
    record.write_bytes(before)
    record.chmod(0o600)


def fault(folder: Path, graph: str = "caption", *, trust: bool = False, **changes: str) -> str:
    """The error with which an engine is refused."""
    identity = dataclasses.replace(THIS, **changes)  # type: ignore[arg-type]
    with pytest.raises(EngineError) as caught:
        find_engine(Bundle.open(folder), graph, identity, trust)
    return str(caught.value)


def engine(folder: Path, graph: str = "caption") -> Path:
    return folder / "engines" / THIS.folder / f"{graph}.engine"


def repairs(folder: Path, *rebuilt: str) -> bool:
    """Whether a build replaces exactly these engines, and all are found afterwards."""
    engines = build_engines(folder, *SMALL)
    found = [find_engine(engines.bundle, graph, THIS) for graph in SMALL]
    return [graph for graph, _ in engines.built] == [*rebuilt] and found == [engine(folder, g) for g in SMALL]


def forge(folder: Path) -> None:
    """Replace the plan of an engine by another, with a header and an index that agree with it."""
    before = read_header(engine(folder))
    plan = b"somebody's code"
    after = dataclasses.replace(before, plan_bytes=len(plan), plan_sha256=hashlib.sha256(plan).hexdigest())
    engine(folder).write_bytes(encode_header(after) + plan)
    index = folder / "engines" / "index.json"
    text = index.read_text(encoding="ascii").replace(before.plan_sha256, after.plan_sha256)
    index.write_text(text.replace(f'"plan_bytes": {before.plan_bytes}', f'"plan_bytes": {after.plan_bytes}'), "ascii")


def test_what_was_built_is_found(small: Path) -> None:
    assert find_engine(Bundle.open(small), "caption", THIS) == engine(small)


@pytest.mark.parametrize(("changes", "said"), [
    ({"flavour": "tensorrt"}, "the backend is tensorrt and it was built for tensorrt-rtx"),
    ({"version": "1.8.0.1"}, "the version of TensorRT is 1.8.0.1 and it was built for 1.7.1.116"),
    ({"compute_capability": "sm120"}, "the GPU is sm120 and it was built for sm89"),
    ({"precision": "fp32"}, "the precision is fp32 and it was built for fp16"),
    ({"profile": "64x64x68"}, "the profile is 64x64x68 and it was built for any"),
])
def test_a_mismatch_says_what_differs_and_gives_the_command(small: Path, changes: dict[str, str], said: str) -> None:
    required = dataclasses.replace(THIS, **changes)  # type: ignore[arg-type]
    message = fault(small, **changes)
    assert said in message
    profile = "" if required.profile == "any" else f" --profile {required.profile}"
    assert message.endswith(
        f"build it: `arlon-rt build {small} --backend {required.flavour} --precision {required.precision} "
        f"--gpu {required.compute_capability}{profile} --only caption`"
    )


def test_a_changed_graph_makes_its_engine_one_of_another_graph(small: Path) -> None:
    change_graph(small, "caption", lambda model: setattr(model, "doc_string", "another file"))
    assert "the engine of caption was built from another ONNX graph" in fault(small)
    assert find_engine(Bundle.open(small), "semantic", THIS) == engine(small, "semantic")


def test_changed_weights_make_the_engines_of_their_network_out_of_date(small: Path) -> None:
    bundle = Bundle.open(small)
    files = {**bundle.manifest.files, "onnx/dit.data": dataclasses.replace(
        bundle.manifest.files["onnx/dit.data"], sha256="0" * 64
    )}
    other = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, files=files))
    with pytest.raises(EngineError, match="built from another ONNX graph"):
        find_engine(other, "caption", THIS)


def test_a_graph_file_that_is_not_the_manifests_is_not_built_from(copy: Path) -> None:
    file = copy / "onnx" / "dit.data"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    message = build_engines(copy, "caption").failed["caption"]
    assert message == f"onnx/dit.data is not the file that the manifest lists; run `arlon-rt verify {copy}`"


def test_an_engine_that_is_missing_altogether_is_a_file_not_found(copy: Path) -> None:
    with pytest.raises(EngineNotFoundError, match="no engine of dit"):
        find_engine(Bundle.open(copy), "dit", THIS)


def test_a_graph_that_the_bundle_lacks_is_an_error_of_the_bundle(copy: Path) -> None:
    with pytest.raises(BundleError, match="no graph 'upscaler'"):
        find_engine(Bundle.open(copy), "upscaler", THIS)


def test_a_truncated_engine(small: Path) -> None:
    size = engine(small).stat().st_size
    os.truncate(engine(small), size - 1)
    assert f"was truncated: {size - 1} bytes, its header says {size}" in fault(small)
    os.truncate(engine(small), 100)
    assert "was truncated: it has 100 bytes, less than a header" in fault(small)
    assert repairs(small, "caption")


@pytest.mark.parametrize("place", [HEADER_BYTES, -1])
def test_a_flipped_bit_in_the_plan(small: Path, place: int) -> None:
    content = bytearray(engine(small).read_bytes())
    content[place] ^= 0x10
    engine(small).write_bytes(content)
    assert "was changed since it was built" in fault(small, trust=True)
    assert repairs(small, "caption")


def test_a_flipped_bit_in_the_header(small: Path) -> None:
    whole = engine(small).read_bytes()
    place = whole.index(b'"compute_capability"') + 1
    engine(small).write_bytes(whole[:place] + b"X" + whole[place + 1 :])
    assert "has a damaged header" in fault(small, trust=True)
    place = whole.index(b"sm89")
    engine(small).write_bytes(whole[:place] + b"sm86" + whole[place + 4 :])
    assert "is not the engine that the index lists" in fault(small, trust=True)
    assert repairs(small, "caption")


def test_a_file_of_another_kind(small: Path) -> None:
    engine(small).write_bytes(b"ftrt" + bytes(10_000))
    assert "is no engine that arlon-rt built: it does not begin with its header" in fault(small)
    assert repairs(small, "caption")


def test_a_renamed_engine(small: Path) -> None:
    shutil.copyfile(engine(small, "semantic"), engine(small))
    assert "is not the engine that the index lists: it was renamed or copied there" in fault(small, trust=True)
    assert repairs(small, "caption")


def test_an_engine_that_is_gone(small: Path) -> None:
    engine(small).unlink()
    assert "is missing, though the index lists it" in fault(small)
    assert repairs(small, "caption")


def test_an_engine_of_another_user_needs_trust(small: Path) -> None:
    forge(small)
    message = fault(small)
    assert "was not built on this machine by this user, and an engine is code" in message
    assert "--trust-engines" in message
    assert find_engine(Bundle.open(small), "caption", THIS, trust=True) == engine(small)
    assert repairs(small, "caption")


def test_without_the_record_no_engine_is_trusted(small: Path, record: Path) -> None:
    record.unlink()
    assert "was not built on this machine by this user" in fault(small)


def test_a_record_that_others_can_write_is_not_believed(small: Path, record: Path) -> None:
    record.chmod(0o666)
    assert "can be written by others" in fault(small)


@pytest.mark.parametrize(("content", "said"), [
    (b"{", "is damaged"), (b'{"format": 9}', "has format 9; this version reads 1"), (b"\xff\xfe", "is damaged"),
    (b'{"format": 1, "engines": [{}]}', "missing"), (b"[" * 100_000, "is damaged"),
])
def test_a_damaged_index_is_an_error_that_a_build_repairs(small: Path, content: bytes, said: str) -> None:
    (small / "engines" / "index.json").write_bytes(content)
    assert said in fault(small)
    assert repairs(small, *SMALL)


def test_an_index_cannot_name_a_file_elsewhere(small: Path) -> None:
    index = small / "engines" / "index.json"
    text = index.read_text(encoding="ascii").replace('"graph": "caption"', '"graph": "../../caption"')
    index.write_text(text, encoding="ascii")
    assert "index.json is damaged: '" in fault(small)
    assert "is not a plain file name" in fault(small, "semantic")
    with pytest.raises(EngineError, match="not a plain file name"):
        store_to_build_in(Bundle.open(small)).path("../../caption", THIS)


@pytest.mark.parametrize("linked", ["engines", "file"])
def test_a_link_that_leaves_the_bundle_is_refused(small: Path, tmp_path: Path, linked: str) -> None:
    inside = small / "engines" if linked == "engines" else engine(small)
    outside = tmp_path / "outside"
    inside.rename(outside)
    inside.symlink_to(outside)
    assert "is a link that leaves" in fault(small)


def test_a_bundle_that_cannot_be_written_keeps_engines_in_the_users_cache(
    copy: Path, user_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not Path(path).is_relative_to(copy) and real(path, mode))
    engines = build_engines(copy, "caption")
    assert find_engine(engines.bundle, "caption", THIS).is_relative_to(user_folders / "cache" / "arlon-rt" / "engines")
    assert not (copy / "engines").exists()


def test_an_engine_of_the_bundle_that_is_not_trusted_gives_way_to_one_that_is(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge(small)
    assert "was not built on this machine by this user" in fault(small)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    engines = build_engines(small, "caption")
    _, cached = engine_stores(engines.bundle)
    assert find_engine(engines.bundle, "caption", THIS) == cached.path("caption", THIS)


def test_a_header_is_read_as_it_was_written(demo_engines: Engines, tmp_path: Path) -> None:
    header = demo_engines.store.index().engines[0].header
    (tmp_path / "file").write_bytes(encode_header(header) + bytes(header.plan_bytes))
    assert read_header(tmp_path / "file") == header


def test_a_profile_too_long_for_the_header_is_an_error(demo_engines: Engines) -> None:
    header = demo_engines.store.index().engines[0].header
    identity = dataclasses.replace(header.identity, profile="_".join(["512x512x68"] * 400))
    with pytest.raises(EngineError, match="build fewer sizes"):
        encode_header(dataclasses.replace(header, identity=identity))


def test_looking_for_an_engine_loads_neither_numpy_nor_tensorrt(demo_engines: Engines) -> None:
    code = (
        "import sys; from arlon_rt.bundle.bundle import Bundle, demo_bundle_path;"
        "from arlon_rt.bundle.engine_file import Identity;"
        "from arlon_rt.bundle.engines import find_engine;"
        f"find_engine(Bundle.open(demo_bundle_path()), 'dit', {THIS!r});"
        "print({'numpy', 'tensorrt', 'tensorrt_rtx', 'onnxruntime', 'torch'} & sys.modules.keys())"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(arlon_rt.__path__[0]).parent)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert demo_bundle_path().is_dir()
