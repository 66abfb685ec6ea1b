"""The command on weights with one fault each: one clear line, exit 2, no bundle and no work folder left behind."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from arlon_export.checkpoints.checkpoint import build_module
from arlon_rt.cli import main
from published_files import BASELINE, Published, command

FC1 = "temporal_blocks.0.mlp.fc1.weight"
KV = "spatial_blocks.0.cross_attn.kv_linear.weight"


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return os.mkdir, (self.folder,)


def rename(published: Published) -> str:
    published.save("dit", lambda state: state.update({f"{FC1}s": state.pop(FC1)}))
    return f"{FC1} (64, 16), perhaps renamed: {FC1}s is unknown"


def transpose(published: Published) -> str:
    published.save("dit", lambda state: state.update({FC1: state[FC1].T}))
    return f"{FC1} is (16, 64), expected (64, 16), transposed"


def lose_a_shard(published: Published) -> str:
    folder = published.save("dit").parent
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = dict.fromkeys(published.states["dit"], "model-00001-of-00002.safetensors")
    index = {"weight_map": names | {"final_layer.linear.bias": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return "names shards that are not there: model-00002-of-00002.safetensors; download them again"


def put_in_a_nan(published: Published) -> str:
    weight = published.states["dit"][KV].clone()
    weight[7, 2] = float("nan")
    published.save("dit", lambda state: state.update({KV: weight}))
    return f"dit: {KV} is nan at [7, 2]; finite numbers are expected"


def take_another_t5(published: Published) -> str:
    model = dataclasses.replace(BASELINE, text=dataclasses.replace(BASELINE.text, d_model=8))
    published.states = {**published.states, "text": build_module(model, "text").state_dict()}
    published.save("text")
    return "d_model is 8, but caption_channels of"


def hide_code(published: Published) -> str:
    folder = published.paths()["dit"]
    (folder / "model.safetensors").unlink()
    hostile = {**published.states["dit"], "surplus": Hostile(published.folder / "code was run")}
    torch.save(hostile, folder / "pytorch_model.bin")
    return "holds more than tensors (posix.mkdir); this is code, and it was not run"


@pytest.mark.parametrize(
    "spoil", [rename, transpose, lose_a_shard, put_in_a_nan, take_another_t5, hide_code], ids=lambda s: s.__name__
)
def test_one_fault_is_one_line_and_nothing_is_left(
    published: Published, capsys: pytest.CaptureFixture[str], spoil: Callable[[Published], str]
) -> None:
    expected = spoil(published)
    before = sorted(published.folder.iterdir())
    assert main(command(published, "--precision", "fp32", "--only", "caption")) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.startswith("arlon-rt: ")
    assert error.count("\n") == 1
    assert sorted(published.folder.iterdir()) == before
