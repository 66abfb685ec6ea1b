"""benchmarks/gpu.py from start to end on the CPU, with the two rows that export fastest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"


def run(*arguments: str, limit_s: float = 600) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT / "runtime"), str(ROOT / "export"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True, text=True, env=environment, timeout=limit_s, check=False,
    )


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("results")
    only = ("--only", "small/semantic/*", "--only", "bundle/vq_decoder/fp32")
    done = run("--smoke", "--out", str(folder), *only)
    assert done.returncode == 0, done.stdout + done.stderr
    loaded: dict[str, Any] = json.loads((folder / "gpu-smoke.json").read_text(encoding="utf-8"))
    return loaded


def test_the_result_says_what_its_figures_depend_on(result: dict[str, Any]) -> None:
    assert {"device", "date", "command", "versions", "torch_compile", "bundle"} <= result.keys()
    assert {"torch", "onnxruntime"} <= result["versions"].keys()
    assert all(result["ceilings"][name] > 0 for name in ("fp16", "fp32", "ieee_fp32", "copy_gb_s"))


def test_every_row_asked_for_is_measured_in_every_way(result: dict[str, Any]) -> None:
    assert [row["name"] for row in result["rows"]] == ["small/semantic/fp16", "bundle/vq_decoder/fp32"]
    for row in result["rows"]:
        assert row["status"] == "ok", row["detail"]
        assert row["tflop"] > 0
        assert row["gbytes"] > 0
        assert sum(row["nodes"].values()) > 0
        assert set(row["ways"]) == {"eager", "session", "bound", "compile"}


def test_every_time_stands_beside_a_passed_parity(result: dict[str, Any]) -> None:
    for row in result["rows"]:
        for found in row["ways"].values():
            assert found["status"] == "ok", found["detail"]
            assert found["relative_error"] <= found["tolerance"]
            assert found["min_ms"] <= found["median_ms"] <= found["max_ms"]
            assert found["tflop_s"] * found["median_ms"] == pytest.approx(1e3 * row["tflop"])
            assert found["gb_s"] * found["median_ms"] == pytest.approx(1e3 * row["gbytes"])


def test_without_a_gpu_it_says_so_and_exits_with_2() -> None:
    done = run("--list")
    assert done.returncode == 2
    assert "--smoke" in done.stderr
    assert "Traceback" not in done.stderr
