"""Videos within a budget, on a stand-in for a GPU: the same frames, no more memory than planned, and none kept."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arlon_rt import GenerateOptions, OptionsError, Pipeline
from arlon_rt.bundle import Bundle, Identity, engine_stores
from arlon_rt.cli import main
from arlon_rt.errors import BackendError, BudgetError, EngineError
from arlon_rt.memory import CONTEXT, STATED, Demand, MemoryPlan, plan_for
from arlon_rt.memory.activations import record_path
from fake_engines import HERE, build, install
from fake_gpu import FakeGpu
from tiny_bundle import write_tiny_bundle

PROMPT = "a red circle moves right"
SWITCHED = [(0.0, PROMPT), (3.0, "a blue square moves left")]
OPTIONS = GenerateOptions(num_frames=119, num_inference_steps=2, ar_guidance_scale=2.0)
WEIGHTS = {
    "text_encoder": 3_000_000, "ar_prefix": 300_000, "ar_step": 400_000, "vq_decoder": 100_000, "vq_encoder": 100_000,
    "caption": 100_000, "semantic": 100_000, "dit": 1_000_000, "vae_decoder": 300_000, "vae_encoder": 200_000,
}
RESIDENT = set(WEIGHTS) - {"text_encoder", "vq_encoder"}
STREAMING = Identity(**{**vars(HERE), "weight_streaming": True})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with engines, and a user whose folders are empty."""
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    path = write_tiny_bundle(tmp_path / "bundle")
    build(path, weights=WEIGHTS)
    return path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """A stand-in for this machine's GPU, which must have all its memory back at the end."""
    gpu = install(monkeypatch)
    yield gpu
    gc.collect()
    gpu.settle()
    assert gpu.live == 0, "memory leaked"


def opened(folder: Path, budget: int | str | None = None, **more: Any) -> Pipeline:
    return Pipeline.open(folder, backend="tensorrt-rtx", vram_budget=budget, sized_for=OPTIONS, **more)


def frames_and_peak(fake: FakeGpu, pipeline: Pipeline, **more: Any) -> tuple[np.ndarray, int]:
    with pipeline:
        frames = pipeline.generate(SWITCHED, OPTIONS, **more).frames
        return frames, fake.most


def planned(folder: Path, budget: int | None = None) -> MemoryPlan:
    bundle = Bundle.open(folder)
    return plan_for(bundle, Demand.of(OPTIONS, bundle), "fp16", budget)


@pytest.fixture
def usual(folder: Path, fake: FakeGpu) -> np.ndarray:
    """Frames without a budget. TensorRT has then stated the activations of its engines."""
    frames, _ = frames_and_peak(fake, opened(folder))
    gc.collect()
    fake.most, fake.loaded[:], fake.ran[:] = 0, [], []
    return frames


def tight(folder: Path) -> MemoryPlan:
    """The plan for a budget that is a byte too small for a resident text encoder."""
    resident = planned(folder)
    assert {g.activations.source for g in resident.graphs} == {STATED}
    plan = planned(folder, resident.peak - 1)
    assert list(plan.offloaded_peaks) == ["text_encoder"]
    return planned(folder, plan.peak)


@pytest.mark.parametrize("overlap", [False, True], ids=["in sequence", "overlapped"])
def test_a_video_within_a_budget_is_the_same_and_takes_no_more_than_planned(
    folder: Path, fake: FakeGpu, usual: np.ndarray, overlap: bool
) -> None:
    plan = tight(folder)
    frames, most = frames_and_peak(fake, opened(folder, plan.budget), overlap=overlap)
    assert np.array_equal(frames, usual)
    assert most <= plan.peak - CONTEXT
    assert most > 0.8 * (plan.peak - CONTEXT), "the plan is no wild guess"
    assert fake.loaded.count("text_encoder") == 1, "all prompts are encoded in one go"
    assert sorted(fake.loaded) == sorted({*RESIDENT, "text_encoder"}), "a graph that never runs is not loaded"


def test_without_a_budget_the_same_video_takes_more(folder: Path, fake: FakeGpu, usual: np.ndarray) -> None:
    plan = tight(folder)
    _, most = frames_and_peak(fake, opened(folder))
    assert most > plan.peak - CONTEXT
    assert most <= planned(folder).peak - CONTEXT


@pytest.mark.parametrize("overlap", [False, True], ids=["in sequence", "overlapped"])
def test_a_prompt_mid_video_loads_the_text_encoder_and_changes_nothing_else(
    folder: Path, fake: FakeGpu, usual: np.ndarray, overlap: bool
) -> None:
    plan = tight(folder)
    videos = []
    for budget in (None, plan.budget):
        gc.collect()
        fake.most = 0
        with opened(folder, budget) as pipeline:
            generation = pipeline.stream(PROMPT, dataclasses.replace(OPTIONS, num_frames=374), overlap=overlap)
            chunks = [next(generation)]
            since = generation.set_prompt("a green triangle stays still", 12.0)   # the lanes are five segments ahead
            chunks += list(generation)
            videos.append((since, np.concatenate([chunk.frames for chunk in chunks])))
            del generation, chunks
    (since, expected), (again, frames) = videos
    assert since == again
    assert np.array_equal(frames, expected)
    assert fake.most <= plan.peak - CONTEXT
    assert fake.loaded[-1] != "text_encoder"
    assert fake.loaded.count("text_encoder") == 1 + 2, "once without a budget; for the first prompt and the second"
    assert fake.loaded.count("dit") == 1 + 2, "freed for the text encoder and loaded again"
    assert len(fake.trims) == 1 + 3 + 3, "the stream of each lane, when one group is freed for another"
    assert max(fake.trims) < min(WEIGHTS.values()), "no engine was loaded then"


def test_all_memory_is_freed_when_the_pipeline_closes(folder: Path, fake: FakeGpu, usual: np.ndarray) -> None:
    pipeline = opened(folder, tight(folder).budget)
    assert fake.live == 0, "nothing is loaded before it runs"
    pipeline.generate(PROMPT, OPTIONS)
    assert fake.live > 0
    pipeline.close()
    gc.collect()
    fake.settle()
    assert fake.live == 0
    with pytest.raises(BackendError, match="the session is closed"):
        pipeline.generate(PROMPT, OPTIONS)


def test_a_large_budget_opens_everything_at_once(folder: Path, fake: FakeGpu, usual: np.ndarray) -> None:
    frames, _ = frames_and_peak(fake, opened(folder, "16G"))
    assert np.array_equal(frames, usual)
    assert sorted(fake.loaded) == sorted(WEIGHTS)


def test_weights_stream_where_that_alone_helps(folder: Path, fake: FakeGpu, usual: np.ndarray) -> None:
    budget = planned(folder, planned(folder, 1).peak).peak + 300_000
    with pytest.raises(
        EngineError, match=r"to keep to vram_budget, ar_step,dit must stream weights, but the engine of ar_step .*"
        r"--weight-streaming is True and it was built for False.* --weight-streaming --only ar_step,dit`"
    ):
        opened(folder, budget)
    build(folder, STREAMING, weights=WEIGHTS)
    plan = planned(folder, budget)
    frames, most = frames_and_peak(fake, opened(folder, budget))
    assert np.array_equal(frames, usual)
    assert most <= budget - CONTEXT
    streaming = {g.graph: g.on_device for g in plan.graphs if g.streamed}
    assert "dit" in streaming
    assert fake.streaming == streaming


def test_engines_that_can_stream_keep_all_their_weights_where_they_fit(
    folder: Path, fake: FakeGpu, usual: np.ndarray
) -> None:
    for store in engine_stores(Bundle.open(folder)):
        (store.folder / "index.json").unlink(missing_ok=True)
    build(folder, STREAMING, weights=WEIGHTS)
    for budget in (None, "16G"):
        frames, _ = frames_and_peak(fake, opened(folder, budget))
        assert np.array_equal(frames, usual)
        assert fake.streaming == WEIGHTS


def test_a_budget_too_small_is_an_error_with_the_figures_and_nothing_is_loaded(
    folder: Path, fake: FakeGpu, usual: np.ndarray
) -> None:
    with pytest.raises(BudgetError, match=r"vram_budget is 512.0 MiB; 32x32, segments .* need 51\d\.\d MiB at least"):
        opened(folder, "512M")
    assert fake.loaded == []


def test_a_request_larger_than_planned_is_refused_and_a_smaller_one_runs(folder: Path, fake: FakeGpu) -> None:
    with Pipeline.open(
        folder, backend="tensorrt-rtx", vram_budget="16G", sized_for=GenerateOptions(num_frames=17)
    ) as pipeline:
        assert len(pipeline.generate(PROMPT, GenerateOptions(num_frames=10)).frames) == 10
        with pytest.raises(OptionsError, match="planned for 32x32, segments of 5 latents"):
            pipeline.generate(PROMPT, OPTIONS)


def test_onnx_runtime_keeps_to_no_budget_and_says_so(folder: Path) -> None:
    with pytest.raises(BackendError, match=r"vram_budget is 16.00 GiB, but backend onnxruntime keeps to none"):
        Pipeline.open(folder, vram_budget="16G")


def test_an_engine_replaced_while_the_pipeline_is_open_is_not_loaded(
    folder: Path, fake: FakeGpu, usual: np.ndarray
) -> None:
    with opened(folder, tight(folder).budget) as pipeline:
        path = engine_stores(Bundle.open(folder))[0].path("text_encoder", HERE)
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:-1] + b"!")
        with pytest.raises(EngineError, match="was replaced since it was checked"):
            pipeline.generate(PROMPT, OPTIONS)


def test_loading_engines_records_what_activations_they_take(folder: Path, fake: FakeGpu) -> None:
    assert not record_path().exists()
    assert STATED not in {g.activations.source for g in planned(folder).graphs}
    opened(folder).close()
    assert {g.activations.source for g in planned(folder).graphs} == {STATED}


def dry_run(folder: Path, *more: str) -> int:
    return main(["generate", "--dry-run", "--bundle", str(folder), "--guidance-scale", "3", *more])


def test_a_dry_run_shows_the_plan_and_loads_nothing(
    folder: Path, fake: FakeGpu, usual: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tight(folder)
    more = ["--num-frames", "119", "--ar-guidance-scale", "2"]
    assert dry_run(folder, "--vram-budget", str(plan.budget), *more) == 0
    shown = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.strip()}
    assert rows["text_encoder"][:3] == ["offloaded", "2.9", "MiB"]
    assert rows["dit"][:3] == ["resident", "1.0", "MiB"]
    assert "budget: fits" in shown
    assert "estimated" not in shown
    assert "no engine is built" not in shown
    assert fake.loaded == []


def test_a_dry_run_needs_no_engines_and_says_where_its_figures_come_from(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = write_tiny_bundle(tmp_path / "bare")
    assert dry_run(bare, PROMPT, "--vram-budget", "16G", "--backend", "tensorrt-rtx") == 0
    shown = capsys.readouterr().out
    assert "no engine is built yet, so the manifest states the weights: text_encoder, ar" in shown
    assert "~ estimated" in shown
    assert dry_run(folder, "--backend", "tensorrt") == 0
    assert "no engine is built" in capsys.readouterr().out, "the built ones are for the other TensorRT"


def test_a_dry_run_that_does_not_fit_ends_with_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dry_run(folder, "--vram-budget", "400M") == 2
    shown = capsys.readouterr()
    assert "budget: DOES NOT FIT" in shown.out
    assert "arlon-rt: vram_budget is 400.0 MiB" in shown.err
    assert dry_run(folder, "--vram-budget", "lots") == 2
    assert "vram_budget is 'lots'; a size is expected, e.g. 16G" in capsys.readouterr().err


def test_the_command_keeps_to_a_budget(folder: Path, fake: FakeGpu, usual: np.ndarray, tmp_path: Path) -> None:
    budget = tight(folder).budget
    command = ["generate", PROMPT, "-o", str(tmp_path / "out.mp4"), "--bundle", str(folder), "--quiet"]
    assert main([*command, "--num-frames", "68", "--backend", "tensorrt-rtx", "--vram-budget", str(budget)]) == 0
    assert fake.loaded[0] == "text_encoder"
    assert fake.most <= budget - CONTEXT
    assert main([*command, "--vram-budget", "16G"]) == 2
    assert main(["generate", PROMPT, "--bundle", str(folder)]) == 2, "no output is named"


@pytest.mark.parametrize("overlap", [False, True], ids=["in sequence", "overlapped"])
def test_lanes_that_share_one_arena_make_the_same_video(
    folder: Path, fake: FakeGpu, usual: np.ndarray, overlap: bool
) -> None:
    separate = planned(folder, tight(folder).resident_peak - 1)
    plan = planned(folder, separate.resident_peak - 1)
    assert not separate.one_arena
    assert plan.one_arena
    assert not any(g.streamed for g in plan.graphs)
    fake.ran.clear()
    frames, most = frames_and_peak(fake, opened(folder, plan.budget), overlap=overlap)
    assert np.array_equal(frames, usual)
    assert most <= plan.peak - CONTEXT
    assert len({stream for _, stream, _ in fake.ran}) == 1, "one stream, in whose order activations are used"
