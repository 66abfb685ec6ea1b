"""On a GPU: a whole video of the demo bundle, by every backend that is installed, beside ONNX Runtime on the CPU.

Written without a GPU and not executed yet.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from arlon_rt import GenerateOptions, Pipeline
from arlon_rt.backends.ort import available_providers
from arlon_rt.bundle import demo_bundle_path
from arlon_rt.cli import main
from arlon_rt.errors import ArlonError
from arlon_rt.gpu import compute_capability

PROMPT = "a red circle moves right on a black background"
OPTIONS = GenerateOptions(num_frames=119, num_inference_steps=5, seed=3, temperature=0.0)
"""The likeliest tokens: a draw may differ where arithmetic does in its last digits."""
MEAN_LEVELS = 2.0
"""Frames of fp16 on a GPU against fp32 on a CPU, of 255; a wrong cache or mask shows another video, tens of levels."""
MODULES = {"onnxruntime": "onnxruntime", "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


def missing() -> str | None:
    """Why there is nothing to run here."""
    try:
        compute_capability(0)
    except ArlonError as error:
        return str(error)
    return None


WHY = missing()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(WHY is not None, reason=f"no GPU to run on: {WHY}")]


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """The frames of the CPU."""
    with Pipeline.open(precision="fp32") as pipeline:
        return pipeline.generate(PROMPT, OPTIONS).frames


@pytest.fixture(params=sorted(MODULES))
def opened(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    """A pipeline on the GPU; engines are built for it first."""
    backend = request.param
    if importlib.util.find_spec(MODULES[backend]) is None:
        pytest.skip(f"{MODULES[backend]} is not installed")
    if backend == "onnxruntime" and "CUDAExecutionProvider" not in available_providers():
        pytest.skip("this ONNX Runtime has no CUDA")
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    if backend != "onnxruntime":
        assert main(["build", str(demo_bundle_path()), "--backend", backend]) == 0
    with Pipeline.open(backend=backend, device="cuda") as pipeline:
        yield pipeline


@pytest.mark.parametrize("overlap", [False, True], ids=["in sequence", "overlapped"])
def test_a_video_is_the_one_of_the_cpu(opened: Pipeline, expected: np.ndarray, overlap: bool) -> None:
    frames = opened.generate(PROMPT, OPTIONS, overlap=overlap).frames
    assert np.abs(frames.astype(int) - expected).mean() < MEAN_LEVELS


def test_a_second_video_is_the_first_to_the_last_bit(opened: Pipeline) -> None:
    first, second = (opened.generate(PROMPT, OPTIONS).frames for _ in range(2))
    assert np.array_equal(first, second)


def test_a_snapshot_goes_on_to_the_last_bit(opened: Pipeline) -> None:
    whole = opened.generate(PROMPT, OPTIONS).frames
    generation = opened.stream(PROMPT, OPTIONS)
    made = []
    for chunk in generation:
        made.append(chunk.frames)
        if chunk.ends_segment:
            break
    snapshot = generation.snapshot()
    generation.close()
    rest = [chunk.frames for chunk in opened.resume(snapshot)]
    assert np.array_equal(np.concatenate([*made, *rest]), whole)
