"""State dicts on disk: every layout people have is read lazily, and every fault is named with its file and key."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from arlon_export.checkpoints.state_dict import StateDict, StoredTensor, check_fit, merge, open_state_dict, weight_files
from arlon_rt.errors import BundleError, BundleNotFoundError

TENSORS = {
    "block.0.weight": torch.arange(12.0).reshape(3, 4), "block.0.bias": torch.arange(3.0).half(),
    "norm.weight": torch.arange(4.0).bfloat16(),
}
SHAPES = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}


def write_sharded(folder: Path, stem: str, save: Callable[[Any, Path], None], tensors: Mapping[str, Tensor]) -> Path:
    """Two shards and their index, as Hugging Face names them."""
    name, _, ending = stem.rpartition(".")
    first = next(iter(tensors))
    shards = {
        f"{name}-00001-of-00002.{ending}": {first: tensors[first]},
        f"{name}-00002-of-00002.{ending}": {k: v for k, v in tensors.items() if k != first},
    }
    for shard, content in shards.items():
        save(content, folder / shard)
    weight_map = {key: shard for shard, content in shards.items() for key in content}
    index = folder / f"{stem}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def stored(**shapes: tuple[int, ...]) -> StateDict:
    """Tensors by shape alone, with dots for double underscores."""
    names = {name.replace("__", "."): shape for name, shape in shapes.items()}
    return {n: StoredTensor(n, s, torch.float32, lambda: torch.zeros(0)) for n, s in names.items()}


def assert_read(path: Path) -> None:
    found = open_state_dict(path)
    assert {name: tensor.shape for name, tensor in found.items()} == SHAPES
    for name, tensor in found.items():
        assert (tensor.name, tensor.dtype) == (name, TENSORS[name].dtype)
        torch.testing.assert_close(tensor.load(), TENSORS[name], rtol=0, atol=0)


@pytest.mark.parametrize(("name", "save"), [
    ("any name.safetensors", save_file), ("a.pth", torch.save), ("a.pt", torch.save), ("a.bin", torch.save),
])
def test_a_single_file_is_read(tmp_path: Path, name: str, save: Callable[[Any, Path], None]) -> None:
    save(TENSORS, tmp_path / name)
    assert_read(tmp_path / name)


@pytest.mark.parametrize(("stem", "save"), [
    ("model.safetensors", save_file), ("diffusion_pytorch_model.safetensors", save_file),
    ("pytorch_model.bin", torch.save), ("diffusion_pytorch_model.bin", torch.save),
])
def test_a_hugging_face_folder_is_read_whole_and_in_shards(
    tmp_path: Path, stem: str, save: Callable[[Any, Path], None]
) -> None:
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    for folder in (whole, sharded):
        folder.mkdir()
    save(TENSORS, whole / stem)
    index = write_sharded(sharded, stem, save, TENSORS)
    assert_read(whole)
    assert_read(sharded)
    assert_read(index)
    assert [f.name for f in weight_files(whole)] == [stem]
    assert len(weight_files(sharded)) == 2


def test_safetensors_come_before_torch_files_of_the_same_weights(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"not looked at")
    assert_read(tmp_path)


@pytest.mark.parametrize("prefix", ["module.", "model.", "ema.", "module.model."])
def test_a_known_prefix_of_all_keys_is_taken_away(tmp_path: Path, prefix: str) -> None:
    save_file({prefix + name: tensor for name, tensor in TENSORS.items()}, tmp_path / "a.safetensors")
    assert_read(tmp_path / "a.safetensors")


def test_a_prefix_of_some_keys_or_an_unknown_one_stays(tmp_path: Path) -> None:
    save_file({"module.a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "some.safetensors")
    assert set(open_state_dict(tmp_path / "some.safetensors")) == {"module.a", "b"}
    save_file({"net.a": torch.zeros(1)}, tmp_path / "unknown.safetensors")
    assert set(open_state_dict(tmp_path / "unknown.safetensors")) == {"net.a"}


@pytest.mark.parametrize("content", [
    {"state_dict": TENSORS, "epoch": 3}, {"ema": TENSORS}, {"model": TENSORS, "optimizer": {"lr": 0.1}},
    {"model": {"state_dict": TENSORS}}, {"module": {f"module.{n}": t for n, t in TENSORS.items()}},
    {"model": {"block.0.weight": torch.zeros(1)}, "ema": TENSORS},
], ids=["state_dict", "ema", "model", "nested", "module", "ema before model"])
def test_wrappers_of_training_scripts_are_recognised(tmp_path: Path, content: dict[str, Any]) -> None:
    torch.save(content, tmp_path / "a.pth")
    assert_read(tmp_path / "a.pth")


def test_torch_files_are_mapped_and_not_read(tmp_path: Path) -> None:
    torch.save({"large": torch.zeros(1 << 20)}, tmp_path / "a.pth")
    tensor = open_state_dict(tmp_path / "a.pth")["large"].load()
    with (tmp_path / "a.pth").open("r+b") as file:
        content = file.read()
        start = content.index(bytes(1 << 16))
        file.seek(start + (1 << 20))
        file.write(b"\x01" * (1 << 12))
    assert tensor.count_nonzero() > 0  # the mapping shows what was written after the tensor was made


class Hostile:
    """Unpickled freely, it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1), "b": Hostile(tmp_path / "ran")}, tmp_path / "a.pth")
    with pytest.raises(BundleError, match=r"a\.pth holds more than tensors \(posix\.mkdir\).* was not run") as caught:
        open_state_dict(tmp_path / "a.pth")
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("content", "message"), [
    ({"a": torch.zeros(1), "step": 3}, r"no tensors: 'step' \(int\)"), ([torch.zeros(1)], "holds list and no tensors"),
    ({}, "no tensors"), ({"model": {}}, "no tensors"), ({"optimizer": {"lr": 1}}, r"'optimizer' \(dict\)"),
])
def test_a_torch_file_without_a_state_dict_says_what_it_holds(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(BundleError, match=message):
        open_state_dict(tmp_path / "a.pth")


@pytest.mark.parametrize(("name", "message"), [
    ("a.safetensors", r"a\.safetensors cannot be read as safetensors .*download it again"),
    ("a.pth", r"a\.pth is not a whole torch file: damaged, cut short"),
])
@pytest.mark.parametrize("kept", [0, 3, 0.5])
def test_damaged_files_are_named(tmp_path: Path, name: str, message: str, kept: float) -> None:
    path = tmp_path / name
    (save_file if name.endswith(".safetensors") else torch.save)({"a": torch.ones(2000)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)] if kept < 1 else b"garbage" * 99)
    with pytest.raises(BundleError, match=message):
        open_state_dict(path)


def test_a_file_of_torch_before_1_6_names_the_way_out(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(BundleError, match=r"written before torch 1\.6; .*torch\.save"):
        open_state_dict(tmp_path / "a.pth")


def test_a_git_lfs_pointer_is_told_from_damage(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(BundleError, match=r"model\.safetensors is a Git LFS pointer.*git lfs pull"):
        open_state_dict(tmp_path)


def test_missing_weights_name_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match="absent is neither a file nor a folder"):
        open_state_dict(tmp_path / "absent")
    with pytest.raises(BundleNotFoundError, match=r"no weights by a known name \(model\.safetensors, .*name the file"):
        open_state_dict(tmp_path)
    (tmp_path / "weights.npz").write_bytes(b"")
    with pytest.raises(BundleError, match=r"ends in '\.npz'; weights end in \.safetensors, \.pth"):
        open_state_dict(tmp_path / "weights.npz")


def test_two_sets_of_weights_in_one_folder_are_not_guessed_between(tmp_path: Path) -> None:
    for name in ("model.safetensors", "diffusion_pytorch_model.safetensors"):
        save_file(TENSORS, tmp_path / name)
    with pytest.raises(BundleError, match=r"has model\.safetensors and diffusion_pytorch_model\.safetensors"):
        open_state_dict(tmp_path)
    assert_read(tmp_path / "model.safetensors")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_sharded(tmp_path, "model.safetensors", save_file, TENSORS)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BundleNotFoundError, match=r"not there: model-00002-of-00002\.safetensors; download"):
        open_state_dict(tmp_path)


@pytest.mark.parametrize("shard", ["../a.safetensors", "/a.safetensors", "sub/a.safetensors", "..", "", "..\\a"])
def test_an_index_that_leaves_its_folder_is_refused(tmp_path: Path, shard: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"key": shard}}))
    with pytest.raises(BundleError, match=r"index\.json: key is in .*lie beside the index"):
        open_state_dict(tmp_path)


def test_shards_may_be_links_as_in_hugging_faces_cache(tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "blobs").mkdir()
    write_sharded(tmp_path / "snapshot", "model.safetensors", save_file, TENSORS)
    for number, shard in enumerate(weight_files(tmp_path / "snapshot")):
        shard.rename(tmp_path / "blobs" / f"hash{number}")
        shard.symlink_to(tmp_path / "blobs" / f"hash{number}")
    assert_read(tmp_path / "snapshot")


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": ["a"]}', "{}"])
def test_a_damaged_index_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(BundleError, match=r"index\.json is no index of shards"):
        open_state_dict(tmp_path)


def test_an_index_that_promises_more_than_its_shards_have_is_refused(tmp_path: Path) -> None:
    index = write_sharded(tmp_path, "model.safetensors", save_file, TENSORS)
    content = json.loads(index.read_text())
    content["weight_map"]["gone.bias"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"promises 1 tensors .*gone\.bias in model-00001-of-00002\.safetensors"):
        open_state_dict(tmp_path)


def test_a_key_in_two_files_is_refused() -> None:
    first, second = stored(a=(1,), b=(1,)), stored(b=(2,), c=(1,))
    with pytest.raises(BundleError, match=r"second\.pt has 1 keys a second time: b \(also in first\.pt\)"):
        merge({Path("first.pt"): first, Path("second.pt"): second})
    assert set(merge({Path("first.pt"): first, Path("third.pt"): stored(c=(1,))})) == {"a", "b", "c"}


def fault(found: StateDict, expected: Mapping[str, tuple[int, ...]], **options: Any) -> str:
    with pytest.raises(BundleError) as caught:
        check_fit(found, expected, "weights.pt", **options)
    return str(caught.value)


def test_a_state_dict_that_fits_passes_and_ignored_keys_may_be_there() -> None:
    check_fit(stored(a=(1, 2), b=(3,)), {"a": (1, 2)}, "weights.pt", ignored={"b", "c"})


def test_all_kinds_of_faults_are_in_one_error() -> None:
    steps = StoredTensor("steps", (1,), torch.int64, lambda: torch.zeros(1))
    found = {**stored(extra=(5,), wide=(2, 9), ok=(1,)), "steps": steps}
    message = fault(found, {"lost": (7,), "wide": (2, 3), "ok": (1,), "steps": (1,)})
    assert message == "\n".join([
        "weights.pt does not fit the configuration",
        "1 missing:", "  lost (7,)",
        "1 unknown:", "  extra (5,)",
        "1 of another shape:", "  wide is (2, 9), expected (2, 3)",
        "1 not of fp32, fp16 or bf16:", "  steps is int64",
    ])


@pytest.mark.parametrize(("shape", "expected"), [((4, 3), (3, 4)), ((4, 16, 1, 2, 2), (16, 4, 1, 2, 2))])
def test_a_transposed_tensor_is_told(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert fault(stored(a=shape), {"a": expected}).endswith(f"a is {shape}, expected {expected}, transposed")
    assert "transposed" not in fault(stored(a=(*shape[:-1], 99)), {"a": expected})


def test_a_renamed_key_is_recognised_by_its_shape_and_spelling() -> None:
    found = stored(blocks__0__mlp__fc_1__weight=(8, 4), blocks__0__mlp__fc_1__bias=(4,))
    message = fault(found, {"blocks.0.mlp.fc1.weight": (8, 4), "head": (8, 4)})
    assert "blocks.0.mlp.fc1.weight (8, 4), perhaps renamed: blocks.0.mlp.fc_1.weight is unknown" in message
    assert "head (8, 4)\n" in message
    assert "renamed" not in fault(stored(blocks__0__mlp__fc_1__weight=(8, 5)), {"blocks.0.mlp.fc1.weight": (8, 4)})


def test_a_long_list_is_cut_and_counted() -> None:
    message = fault({}, {f"key{i}": (1,) for i in range(50)})
    assert "50 missing:" in message
    assert "key19 (1,)" in message
    assert "key20 " not in message
    assert message.endswith("… and 30 more")


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.bool, torch.float8_e4m3fn])
def test_only_three_float_types_are_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"a": torch.zeros(2).to(dtype)}, tmp_path / "a.safetensors")
    message = fault(open_state_dict(tmp_path / "a.safetensors"), {"a": (2,)})
    assert message.endswith(f"a is {str(dtype).removeprefix('torch.')}")


def test_weights_that_have_gone_since_are_named(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors")
    found = open_state_dict(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(BundleError, match=r"a\.safetensors: norm\.weight cannot be read any more"):
        found["norm.weight"].load()
