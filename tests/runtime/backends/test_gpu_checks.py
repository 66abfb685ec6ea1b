"""The tests of a GPU without one: each check of gpu_checks.py on the stand-in and on the CPU, and on what is wrong.

TensorRT is tests/fake_gpu.py, whose engines are ONNX Runtime, and ONNX Runtime's device is the CPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import gpu_checks
from arlon_rt.backends.trt.session import TrtSession
from arlon_rt.bundle import Bundle, demo_bundle_path
from engine_builds import copy_of_demo
from fake_engines import identity_here, put_engines, use_fake_gpu
from fake_gpu import FakeGpu, plan_of
from on_gpu import UnderTest, graphs_of
from tiny_bundle import write_tiny_bundle

ROOT = Path(__file__).parents[3]
GRAPHS = graphs_of(Bundle.open(demo_bundle_path()))


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGpu]:
    with pytest.MonkeyPatch.context() as patch:
        yield use_fake_gpu(patch, tmp_path_factory.mktemp("user"))


def stand_in(folder: Path, fake: FakeGpu) -> UnderTest:
    bundle = Bundle.open(folder)
    put_engines(bundle, identity_here("tensorrt"))
    return UnderTest("tensorrt", "cuda", bundle, lambda: fake.live, slack_bytes=0)


@pytest.fixture(scope="module")
def demo(fake: FakeGpu, tmp_path_factory: pytest.TempPathFactory) -> UnderTest:
    """The demo bundle on the stand-in."""
    return stand_in(copy_of_demo(tmp_path_factory.mktemp("demo") / "bundle"), fake)


@pytest.fixture(scope="module")
def tiny(fake: FakeGpu, tmp_path_factory: pytest.TempPathFactory) -> UnderTest:
    """The tiny bundle on the stand-in, for whole videos."""
    return stand_in(write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle"), fake)


@pytest.fixture(params=["tensorrt", "onnxruntime"])
def backend(request: pytest.FixtureRequest, demo: UnderTest) -> UnderTest:
    """The demo bundle on the stand-in and on the CPU."""
    return demo if request.param == "tensorrt" else replace(demo, name="onnxruntime", device="cpu")


@pytest.mark.parametrize("graph", GRAPHS)
def test_parity(backend: UnderTest, graph: str) -> None:
    gpu_checks.check_parity(backend, graph, small=True)


def test_greedy_tokens(backend: UnderTest) -> None:
    gpu_checks.check_greedy_tokens(backend)


def test_caches_in_place(backend: UnderTest) -> None:
    gpu_checks.check_caches_are_updated_in_place(backend)


@pytest.mark.parametrize("graph", ["vq_decoder", "dit"])
def test_captures(demo: UnderTest, graph: str) -> None:
    gpu_checks.check_runs_are_captured(demo, graph)


def test_loops(demo: UnderTest) -> None:
    gpu_checks.check_loop(demo)


def test_runs_that_are_not_captured_are_found(tiny: UnderTest, fake: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "refuses_graphs", True)
    with pytest.raises(AssertionError, match="a run cannot be captured"):
        gpu_checks.check_runs_are_captured(tiny, "vq_decoder")


def test_memory(tiny: UnderTest) -> None:
    gpu_checks.check_memory_comes_back(tiny)


@pytest.mark.parametrize("overlap", [False, True], ids=["in sequence", "overlapped"])
def test_videos(tiny: UnderTest, overlap: bool) -> None:
    gpu_checks.check_video_is_the_one_of_the_cpu(tiny, overlap=overlap)


def test_second_videos_and_snapshots(tiny: UnderTest) -> None:
    gpu_checks.check_second_video_is_the_first(tiny)
    gpu_checks.check_snapshot_goes_on(tiny)


@pytest.mark.parametrize("check", [
    gpu_checks.check_engine_that_is_not_there, gpu_checks.check_engines_of_another_gpu,
    gpu_checks.check_engine_that_is_damaged,
])
def test_messages(fake: FakeGpu, tmp_path: Path, check: object) -> None:
    check("tensorrt", tmp_path / "bundle")  # type: ignore[operator]


@pytest.fixture
def wrong(fake: FakeGpu, tmp_path: Path) -> UnderTest:
    """A bundle whose engines were built from other weights."""
    folder, other = (write_tiny_bundle(tmp_path / name) for name in ("bundle", "other"))
    for path in (other / "onnx").glob("*.data"):
        path.write_bytes((np.fromfile(path, np.float16) + np.float16(0.5)).tobytes())
    bundle = Bundle.open(folder)
    put_engines(bundle, identity_here("tensorrt"), lambda graph: plan_of(other, graph, "fp16"))
    return UnderTest("tensorrt", "cuda", bundle, lambda: fake.live, slack_bytes=0)


@pytest.mark.parametrize("graph", ["vq_decoder", "text_encoder", "dit"])
def test_other_weights_are_no_parity(wrong: UnderTest, graph: str) -> None:
    with pytest.raises(AssertionError, match=f"{graph} is .* off"):
        gpu_checks.check_parity(wrong, graph, small=True)


def test_other_weights_make_another_video(wrong: UnderTest) -> None:
    with pytest.raises(AssertionError):
        gpu_checks.check_video_is_the_one_of_the_cpu(wrong, overlap=False)


def test_memory_that_is_kept_is_found(tiny: UnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[TrtSession] = []
    monkeypatch.setattr(TrtSession, "close", lambda session: kept.append(session))
    with pytest.raises(AssertionError, match="MB are left of two pipelines"):
        gpu_checks.check_memory_comes_back(tiny)


def test_a_device_whose_memory_does_not_show_is_found(tiny: UnderTest) -> None:
    with pytest.raises(AssertionError, match="does not show"):
        gpu_checks.check_memory_comes_back(replace(tiny, used_bytes=lambda: 0))


@pytest.mark.slow
def test_the_files_of_a_gpu_themselves_run_on_the_stand_in() -> None:
    chosen = "messages or greedy or held_cache or caption or loop"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "gpu_files_on_stand_in", "tests/gpu", "-k", chosen],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True, text=True, timeout=600, check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 passed" in done.stdout, done.stdout


def test_caches_that_are_copied_are_found(tiny: UnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    run = TrtSession.run

    def copying(session: TrtSession, feed: object, hold: object = ()) -> dict[str, object]:
        """Every cache that is held comes back as another one."""
        outputs = run(session, feed, hold)  # type: ignore[arg-type]
        return {
            name: session.upload(name.removesuffix("_out"), value.numpy()) if name in hold else value  # type: ignore
            for name, value in outputs.items()
        }

    monkeypatch.setattr(TrtSession, "run", copying)
    with pytest.raises(AssertionError, match="a cache was copied"):
        gpu_checks.check_caches_are_updated_in_place(tiny)
