"""``python -m gpu`` from start to end on the CPU, with the rows that export fastest and a video."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
FOLDERS = ("runtime", "export", "engines", "benchmarks")


def run(*arguments: str, limit_s: float = 600) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([*(str(ROOT / folder) for folder in FOLDERS), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-m", "gpu", *arguments],
        capture_output=True, text=True, env=environment, timeout=limit_s, check=False,
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The JSON, and what was printed."""
    folder = tmp_path_factory.mktemp("results")
    only = [word for row in ("small/semantic/*", "bundle/vq_decoder/fp32", "*/ar_step/fp16", "bundle/video/fp16")
            for word in ("--only", row)]
    finished = run("--smoke", "--out", str(folder), *only)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return json.loads((folder / "gpu-smoke.json").read_text(encoding="utf-8")), finished.stdout


@pytest.fixture(scope="module")
def result(done: tuple[dict[str, Any], str]) -> dict[str, Any]:
    return done[0]


def test_the_result_says_what_its_figures_depend_on(result: dict[str, Any]) -> None:
    assert {"device", "date", "command", "versions", "torch_compile", "bundle", "seconds", "missing"} <= result.keys()
    assert {"torch", "onnxruntime", "tensorrt", "tensorrt-rtx"} <= result["versions"].keys()
    assert all(result["ceilings"][name] > 0 for name in ("fp16", "fp32", "ieee_fp32", "copy_gb_s"))


def test_every_row_asked_for_is_measured_in_every_way(result: dict[str, Any]) -> None:
    names = ["bundle/ar_step/fp16", "small/ar_step/fp16", "small/semantic/fp16", "bundle/vq_decoder/fp32"]
    assert [row["name"] for row in result["rows"]] == names, "the bundle first"
    for row in result["rows"]:
        assert row["status"] == "ok", row["detail"]
        assert row["tflop"] > 0
        assert row["gbytes"] > 0
        assert sum(row["nodes"].values()) > 0
        graphs = {"ort-graph", "compile-graph"} if "ar_step" in row["name"] else set()
        assert set(row["ways"]) == {"eager", "session", "bound", "tensorrt", "tensorrt-rtx", "compile"} | graphs


def test_every_time_stands_beside_a_passed_parity(result: dict[str, Any]) -> None:
    ways = [(row, found) for row in result["rows"] for name, found in row["ways"].items() if name != "ort-graph"]
    for row, found in ways:
        assert found["status"] == "ok", found["detail"]
        assert found["relative_error"] <= found["tolerance"]
        assert found["min_ms"] <= found["median_ms"] <= found["max_ms"]
        assert found["tflop_s"] * found["median_ms"] == pytest.approx(1e3 * row["tflop"])
        assert found["gb_s"] * found["median_ms"] == pytest.approx(1e3 * row["gbytes"])


def test_a_token_s_time_is_tokens_a_second_and_a_part_of_the_copy_s_bytes(result: dict[str, Any]) -> None:
    row = next(row for row in result["rows"] if row["name"] == "bundle/ar_step/fp16")
    for name, found in row["ways"].items():
        if name != "ort-graph":
            assert found["tokens_s"] == pytest.approx(1e3 / found["median_ms"])
            rate = row["gbytes"] * found["tokens_s"]
            assert found["copy_fraction"] * result["ceilings"]["copy_gb_s"] == pytest.approx(rate)


def test_the_time_to_build_engines_is_a_figure_of_its_own(result: dict[str, Any]) -> None:
    for measured in (*result["rows"], *result["videos"]):
        for name, found in measured["ways"].items():
            assert (found["build_seconds"] is not None) == name.startswith("tensorrt")


def test_every_backend_generates_a_video_that_is_compared(result: dict[str, Any]) -> None:
    (video,) = result["videos"]
    assert set(video["ways"]) == {"onnxruntime", "tensorrt", "tensorrt-rtx"}
    for found in video["ways"].values():
        assert found["status"] == "ok", found["detail"]
        assert 0 < found["mean_levels"] < 2, "fp16 is compared with fp32"
        assert found["real_time_factor"] * found["seconds"] == pytest.approx(video["video_seconds"])
        assert 0 < found["first_frame_seconds"] <= found["max_seconds"]
        assert {"text", "ar", "dit", "vae"} <= found["network_seconds"].keys()
    assert video["ways"]["tensorrt"]["peak_memory_mb"] > 0


def test_the_tables_show_every_row_and_say_that_their_figures_mean_nothing(done: tuple[dict[str, Any], str]) -> None:
    result, printed = done
    assert all(row["name"] in printed for row in (*result["rows"], *result["videos"]))
    assert "figures mean nothing" in printed
    assert "one token          TensorRT " in printed
    assert result["segments"] == {}, "no estimate of a segment whose denoising was not measured"


def test_without_a_gpu_it_says_so_and_exits_with_2() -> None:
    finished = run("--list")
    assert finished.returncode == 2
    assert "--smoke" in finished.stderr
    assert "Traceback" not in finished.stderr
