"""Parity: passes on what Open-Sora's own code gave, fails when a weight is another, and says what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from arlon_export.modules.stdit3 import STDiT3
from arlon_export.parity.cases import Result
from arlon_export.parity.recorded import run_parity
from arlon_rt.cli import main
from arlon_rt.config import DiTConfig
from arlon_rt.errors import BundleError, BundleNotFoundError, OptionsError

CONFIG = DiTConfig(hidden_size=16, depth=1, num_heads=2, caption_channels=8, model_max_length=6)


@pytest.mark.slow
def test_the_recorded_reference_passes(reference: Path) -> None:
    results = list(run_parity(reference))
    assert [r for r in results if not r.passed] == []
    assert {r.tolerance for r in results} == {1e-4, 0.0}
    families = {r.case.split()[0] for r in results}
    assert families >= {"stdit3_a", "vae", "rflow"}
    assert any(r.what.startswith("encode") for r in results)
    assert any(r.what == "kept frames unchanged" for r in results)


@torch.no_grad()
def write_family(folder: Path, name: str, *, perturbed: float = 0.0) -> None:
    """Cases recorded from the torch module; ``perturbed`` is added to one weight after the recording."""
    torch.manual_seed(0)
    module = STDiT3(CONFIG).eval()
    for parameter in module.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    module.rope.freqs.mul_(1.01)  # frequencies that rope_theta does not give
    rows, frames = 2, 3
    case = {
        "x": torch.randn(rows, 4, frames, 5, 4), "timestep": torch.tensor([700.0, 90.0]),
        "y": torch.randn(rows, 1, 6, 8), "mask": (torch.arange(6) < torch.tensor([[6], [3]])).long(),
        "fps": torch.full((rows,), 24.0), "height": torch.full((rows,), 40.0), "width": torch.full((rows,), 32.0),
        "x_mask": torch.tensor([[True, True, True], [False, True, True]]),
    }
    case["out"] = module.velocity(
        case["x"], case["timestep"], case["y"][:, 0], case["mask"].bool(), case["x_mask"], case["fps"], case["height"],
        case["width"], None, torch.zeros(rows, dtype=torch.bool),
    )
    module.spatial_blocks[0].mlp.fc1.weight[0, 0] += perturbed
    np.savez(folder / f"{name}_io.npz", **{f"7.{key}": value.numpy() for key, value in case.items()})
    save_file(module.state_dict(), folder / f"{name}.safetensors")
    named = ("hidden_size", "depth", "num_heads", "caption_channels", "model_max_length")
    fields = {name: getattr(CONFIG, name) for name in named}
    (folder / f"{name}.json").write_text(json.dumps({**fields, "qk_norm": True, "class_dropout_prob": 0.1}))


@pytest.mark.slow
def test_one_other_weight_fails_and_an_equal_family_beside_it_passes(tmp_path: Path) -> None:
    write_family(tmp_path, "stdit3_equal")
    write_family(tmp_path, "stdit3_other", perturbed=0.3)
    results = {(r.case, r.what): r for r in run_parity(tmp_path, keep=tmp_path / "kept")}
    moved, kept = "velocity, 3x5x4", "kept frames unchanged"
    assert results["stdit3_equal 7", moved].passed
    assert not results["stdit3_other 7", moved].passed
    assert results["stdit3_other 7", kept] == Result(case="stdit3_other 7", what=kept, error=0.0, tolerance=0.0)
    assert {p.name for p in (tmp_path / "kept").iterdir()} == {"stdit3_equal", "stdit3_other"}


def test_the_command_names_a_folder_without_any_known_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["parity", str(tmp_path)]) == 2
    assert "no recorded case" in capsys.readouterr().err


def test_a_missing_folder_and_a_damaged_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match="is not a folder"):
        list(run_parity(tmp_path / "absent"))
    (tmp_path / "rflow_io.npz").write_bytes(b"no archive")
    with pytest.raises(BundleError, match=r"rflow_io\.npz cannot be read"):
        list(run_parity(tmp_path))


def test_a_field_that_changes_the_architecture_is_refused(tmp_path: Path) -> None:
    write_family(tmp_path, "stdit3_b")
    config = tmp_path / "stdit3_b.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "qk_norm": False}))
    with pytest.raises(BundleError, match="qk_norm is False"):
        list(run_parity(tmp_path))


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="precision is 'fp4'"):
        list(run_parity(tmp_path, precision="fp4"))
