"""A pipeline opens the engines of a bundle that fit this GPU and are trusted, or one error says why it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arlon_rt import GenerateOptions, OptionsError, Pipeline, Snapshot
from arlon_rt.backends.trt import open as trt_open
from arlon_rt.bundle import Identity
from arlon_rt.cli import main
from arlon_rt.errors import BackendError, BundleError, EngineError, MissingExtraError
from fake_engines import HERE, build, install
from fake_gpu import FakeGpu
from stored_video import read_video
from tiny_bundle import write_tiny_bundle

PROMPT, OPTIONS = "a red circle moves right", GenerateOptions(num_frames=119, num_inference_steps=2)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle for one test, and a user whose folders are empty."""
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    return write_tiny_bundle(tmp_path / "bundle")


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """Stand-ins for the GPU of this machine and for TensorRT."""
    return install(monkeypatch)


def test_a_pipeline_of_engines_makes_the_video_of_the_graphs(folder: Path, fake: FakeGpu) -> None:
    build(folder)
    with Pipeline.open(folder, precision="fp16", threads=1) as graphs:
        expected = graphs.generate(PROMPT, OPTIONS).frames
    with Pipeline.open(folder, backend="tensorrt-rtx") as pipeline:
        assert pipeline.precision == "fp16", "the default on a GPU"
        assert np.array_equal(pipeline.generate(PROMPT, OPTIONS).frames, expected)
    assert {graph for graph, _, _ in fake.ran} >= {"text_encoder", "ar_step", "dit", "vae_decoder"}


def test_the_command_runs_engines(folder: Path, tmp_path: Path) -> None:
    build(folder)
    path = tmp_path / "out.mp4"
    named = ["--bundle", str(folder), "--quiet"]
    assert main(["generate", PROMPT, "-o", str(path), "--num-frames", "68", "--backend", "tensorrt-rtx", *named]) == 0
    assert json.loads(read_video(path).metadata["comment"])["precision"] == "fp16"


def test_a_snapshot_of_engines_is_resumed_by_engines_alone(folder: Path) -> None:
    build(folder)
    with Pipeline.open(folder, backend="tensorrt-rtx") as pipeline:
        whole = list(pipeline.stream(PROMPT, OPTIONS))
        generation = pipeline.stream(PROMPT, OPTIONS)
        for chunk in generation:
            if chunk.ends_segment:
                break
        snapshot = generation.snapshot()
        generation.close()
        rest = list(pipeline.resume(snapshot))
        assert all(np.array_equal(a.frames, b.frames) for a, b in zip(rest, whole[4:], strict=True))
    assert isinstance(snapshot, Snapshot)
    with Pipeline.open(folder, precision="fp16") as other, pytest.raises(OptionsError, match="backend 'tensorrt-rtx'"):
        other.resume(snapshot)


@pytest.mark.parametrize(("changed", "said"), [
    ({"flavour": "tensorrt"}, "the backend is tensorrt-rtx and it was built for tensorrt"),
    ({"version": "1.6.0"}, "the version of TensorRT is 1.7.1.116 and it was built for 1.6.0"),
    ({"compute_capability": "sm120"}, "the GPU is sm89 and it was built for sm120"),
    ({"precision": "fp32"}, "the precision is fp16 and it was built for fp32"),
])
def test_engines_for_something_else_are_refused_with_the_command_that_builds_the_right_one(
    folder: Path, changed: dict[str, str], said: str
) -> None:
    build(folder, Identity(**{**vars(HERE), **changed}))
    with pytest.raises(EngineError, match=f"{said}.*arlon-rt build .* --gpu sm89"):
        Pipeline.open(folder, backend="tensorrt-rtx", precision="fp16")


def test_without_engines_the_error_has_the_command_that_builds_them(folder: Path) -> None:
    with pytest.raises(EngineError, match="has no engine of text_encoder; build it: `arlon-rt build"):
        Pipeline.open(folder, backend="tensorrt-rtx")


def test_engines_of_sizes_are_found_too(folder: Path, fake: FakeGpu) -> None:
    sized = Identity(**{**vars(HERE), "profile": "32x32x68"})
    build(folder, sized)
    with Pipeline.open(folder, backend="tensorrt-rtx") as pipeline:
        assert len(pipeline.generate(PROMPT, OPTIONS).frames) == 119


def test_engines_of_another_user_are_code_and_need_trust(folder: Path) -> None:
    build(folder, mine=False)
    with pytest.raises(EngineError, match="was not built on this machine by this user"):
        Pipeline.open(folder, backend="tensorrt-rtx")
    Pipeline.open(folder, backend="tensorrt-rtx", trust_engines=True).close()


def test_a_session_that_fails_to_open_closes_the_others(folder: Path, fake: FakeGpu) -> None:
    build(folder, lost="latents_out")
    with pytest.raises(BundleError, match="the engine of dit does not fit its contract"):
        Pipeline.open(folder, backend="tensorrt-rtx")
    fake.settle()
    assert fake.live == 0


@pytest.mark.parametrize(("more", "said"), [
    ({"threads": 2}, "threads is 2, but backend tensorrt runs on a GPU"),
    ({"device": "cpu"}, "device is 'cpu'; TensorRT needs 'cuda' or 'cuda:N'"),
    ({"device": "cuda:x"}, "device is 'cuda:x'"),
    ({"precision": "fp8"}, "precision is 'fp8'; backend tensorrt runs fp32, fp16, bf16"),
])
def test_what_tensorrt_cannot_do_is_named(folder: Path, more: dict[str, Any], said: str) -> None:
    with pytest.raises(BackendError, match=said):
        Pipeline.open(folder, backend="tensorrt", **more)


def test_a_tensorrt_that_is_not_installed_is_named_with_the_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from arlon_rt.backends.trt.library import import_tensorrt

    monkeypatch.setattr(trt_open, "import_tensorrt", import_tensorrt)
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match=r'pip install "arlon-rt\[tensorrt\]"'):
        Pipeline.open(folder, backend="tensorrt")
