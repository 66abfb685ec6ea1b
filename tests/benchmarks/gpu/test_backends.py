"""The backends of the GPU benchmark, with engines in the folder of the run, and the order of its rows.

TensorRT for RTX builds the engines, which needs no GPU, and the stand-in runs them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gpu.video as gpu_video
import numpy as np
import pytest
from full_size_weights import FULL
from gpu.__main__ import Entry, NothingToRunError, check_any, make_plan, skip
from gpu.backends import Backend, BuildTimeout, Engines, find_backends
from gpu.device import CpuDevice
from gpu.models import SMALL, BundleSubject, RandomSubject
from gpu.parity import graph_sizes
from gpu.row import COMPILED, WAYS, Effort, Measurement, Row
from gpu.stand_in import StandInEngines, StandInGpu
from gpu.video import VideoRow, measure_video

from arlon_engines.profiles import Size, profile_name, profiles_of
from arlon_rt.backends import BACKENDS, Session, open_session
from arlon_rt.bundle import Bundle, Identity, demo_bundle_path, find_engine, find_entry
from arlon_rt.graphs import graph_specs
from fake_engines import COMPUTE_CAPABILITY, VERSION, put_engines, use_fake_gpu
from fake_gpu import FakeGpu, plan_of
from tiny_bundle import write_tiny_bundle

SIZED = "64x64x68"


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    return Bundle.open(demo_bundle_path())


@pytest.fixture
def rtx(tmp_path: Path) -> Engines:
    pytest.importorskip("tensorrt_rtx")
    return Engines("tensorrt-rtx", COMPUTE_CAPABILITY, tmp_path / "run")


def soon() -> float:
    return time.monotonic() + 300


def test_an_engine_is_built_in_the_run_s_folder_as_the_session_looks_for_it(
    demo: Bundle, rtx: Engines, tmp_path: Path
) -> None:
    seconds = rtx.build(demo, ["caption"], "fp16", soon())
    assert seconds > 0
    identity = Identity(
        flavour="tensorrt-rtx", version=rtx.version, compute_capability=COMPUTE_CAPABILITY, precision="fp16",
        profile=SIZED,
    )
    copy = rtx.copy(demo)
    assert rtx.copy(copy) == copy, "a bundle of the run is not copied"
    path = find_engine(copy, "caption", identity, trust=True)
    assert path.is_relative_to(tmp_path / "run")
    assert [profile.name for profile in find_entry(copy, path).profiles] == [SIZED]
    assert not (demo.path / "engines").exists(), "the bundle's own folder is left alone"


def test_a_built_engine_is_not_built_again(demo: Bundle, rtx: Engines, tmp_path: Path) -> None:
    first = rtx.build(demo, ["caption"], "fp16", soon())
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.engine")}
    assert len(files) == 1
    assert rtx.build(demo, ["caption"], "fp16", soon()) == first
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_a_build_that_takes_too_long_is_stopped_and_leaves_nothing(
    demo: Bundle, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    hours = itertools.count()
    rtx = Engines("tensorrt-rtx", COMPUTE_CAPABILITY, tmp_path / "run", clock=lambda: float(next(hours)))
    with pytest.raises(BuildTimeout, match="tensorrt-rtx was still building dit when its time was over"):
        rtx.build(demo, ["dit"], "fp16", deadline=0.5)
    with pytest.raises(BuildTimeout, match="no time was left to build dit"):
        rtx.build(demo, ["dit"], "fp16", deadline=0.5)
    assert not list(tmp_path.rglob("*.engine*"))


def test_engines_are_opened_by_arlon_rt_s_own_session(
    demo: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake: FakeGpu = use_fake_gpu(monkeypatch, tmp_path)
    pytest.importorskip("tensorrt_rtx")
    engines = Engines("tensorrt-rtx", COMPUTE_CAPABILITY, tmp_path / "run")
    identity = Identity(
        flavour="tensorrt-rtx", version=VERSION, compute_capability=COMPUTE_CAPABILITY, precision="fp16", profile=SIZED
    )
    put_engines(engines.copy(demo), identity, lambda graph: plan_of(demo.path, graph, "fp16"))
    tokens = {"tokens": np.arange(4 * 4 * 3, dtype=np.int64).reshape(1, 3, 4, 4)}
    session = engines.open(demo, ["vq_decoder"], "fp16")["vq_decoder"]
    graph = open_session(demo, "vq_decoder", precision="fp16", threads=1)
    assert np.array_equal(session.run(tokens)["coarse"], graph.run(tokens)["coarse"])
    assert [graph for graph, *_ in fake.ran] == ["vq_decoder"]
    session.close()
    graph.close()


def test_the_profile_is_the_one_the_bundle_s_videos_have() -> None:
    assert profile_name([Size(width=64, height=64, frames=68)]) == SIZED


def test_without_a_gpu_each_backend_says_why(tmp_path: Path) -> None:
    found, missing = find_backends("cuda", tmp_path, None)
    if found:
        pytest.skip("this machine has a GPU")
    assert tuple(missing) == BACKENDS
    none = "none of onnxruntime-gpu, tensorrt and tensorrt-rtx runs on this machine"
    with pytest.raises(NothingToRunError, match=none) as error:
        check_any(found, missing)
    assert all(reason and reason in str(error.value) for reason in missing.values())
    assert "onnxruntime-gpu alone must be installed" in missing["onnxruntime"]


def test_one_backend_is_enough(tmp_path: Path, rtx: Engines) -> None:
    check_any({"tensorrt-rtx": rtx}, {"onnxruntime": "none", "tensorrt": "none"})


def test_the_most_important_rows_come_first(demo: Bundle, tmp_path: Path) -> None:
    plan = make_plan([BundleSubject(demo), RandomSubject("full", FULL, tmp_path, "cpu")], [], WAYS)
    names = [entry.name for entry in plan]
    first = names[: names.index("full/dit/fp16")]
    assert set(first) == {f"bundle/{graph}/fp16" for graph in (*demo.manifest.graphs, "video")}
    after = len(first)
    assert names[after : after + 3] == ["full/dit/fp16", "full/ar_step/fp16", "full/vae_decoder/fp16"]
    measured = {entry.name: set() for entry in plan}
    for entry in plan:
        assert not measured[entry.name] & set(entry.ways), "nothing is measured twice"
        measured[entry.name] |= set(entry.ways)
    assert all(ways == set(WAYS) for name, ways in measured.items() if "/video/" not in name)
    last = plan[-2 * len(demo.manifest.graphs) :]
    assert all(set(entry.ways) == set(COMPILED) and entry.name.startswith("bundle/") for entry in last)


def test_only_ways_that_time_was_lacking_for_are_skipped(demo: Bundle) -> None:
    entry = Entry(BundleSubject(demo), "dit", "fp16", COMPILED)
    row, fresh = Row(name=entry.name, ways={"eager": Measurement(status="ok")}), Row(name=entry.name)
    skip(row, entry, "no time")
    skip(fresh, entry, "no time")
    assert {way: found.status for way, found in row.ways.items()} == {
        "eager": "ok", "compile": "skipped", "compile-graph": "skipped"
    }
    assert (row.status, fresh.status, fresh.ways) == ("ok", "skipped", {})


def test_a_video_of_another_s_weights_fails_its_parity_and_one_without_frames_of_the_cpu_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = Bundle.open(write_tiny_bundle(tmp_path))
    effort = Effort(
        warmup=1, repeats=1, seconds=1.0, small=True, deadline=soon(), build_seconds=1.0, threads=1
    )
    gpu = StandInGpu()
    device, row = CpuDevice(gpu), VideoRow(name="bundle/video/fp16")
    backends: dict[str, Backend] = {"tensorrt": Spoiled("tensorrt", gpu)}
    measure_video(row, tiny, "fp16", ["tensorrt", "tensorrt-rtx"], backends, device, effort)
    found = row.ways["tensorrt"]
    assert (set(row.ways), found.status, found.seconds) == ({"tensorrt"}, "parity failed", None)
    assert found.mean_levels is not None
    assert found.mean_levels > gpu_video.MEAN_LEVELS
    monkeypatch.setattr(gpu_video, "CPU_SECONDS", 0.0)
    measure_video(row, tiny, "fp16", ["tensorrt"], backends, device, effort)
    found = row.ways["tensorrt"]
    assert found.seconds, "it is timed all the same"
    assert "not compared with the CPU: TimeoutError: the CPU had no frames after 0 s" in found.detail


class Spoiled(StandInEngines):
    """A backend whose frames are another video's."""

    def open(self, bundle: Bundle, graphs: Sequence[str], precision: str) -> dict[str, Session]:
        opened = super().open(bundle, graphs, precision)
        decoder = opened["vae_decoder"]
        run = decoder.run

        def darker(feed: Any, hold: Any = ()) -> Any:
            return {name: frames // 2 for name, frames in run(feed).items()}

        decoder.run = darker  # type: ignore[method-assign]
        return opened


def test_engines_take_the_sizes_that_are_measured(demo: Bundle) -> None:
    for model in (FULL, demo.model):
        video = model.video
        size = Size(width=video.width, height=video.height, frames=video.segment_frames)
        for graph, spec in graph_specs(model).items():
            sizes = graph_sizes(model, spec, small=False)
            profiles = profiles_of(model, graph, [size])
            assert any(all(low <= sizes[axis] <= high for axis, (low, _, high) in p.ranges.items()) for p in profiles)


@pytest.mark.slow
def test_an_engine_is_built_of_a_random_module_too(demo: Bundle, rtx: Engines, tmp_path: Path) -> None:
    case = RandomSubject("small", SMALL, tmp_path / "run" / "small", "cpu").case("text_encoder", "fp16")
    assert rtx.build(case.bundle, ["text_encoder"], "fp16", soon()) > 0
    assert list(case.bundle.path.rglob("*.engine")), "beside its graph, in the run's folder"
