"""The pipeline end to end on a tiny bundle with the true contract."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import arlon_rt
from arlon_rt import Cancelled, GenerateOptions, OptionsError, Pipeline
from arlon_rt.backends import open_session
from arlon_rt.bundle import Bundle
from arlon_rt.errors import ArlonError, BackendError
from arlon_rt.events import ChunkReady, Event, Failed, Finished, Progress, PromptCut, Started
from arlon_rt.graphs import graph_specs
from arlon_rt.networks import Networks, Tokenizer, decoder_frame_index, encoder_frame_index
from tiny_bundle import TINY, baseline_model, write_tiny_bundle
from watched import Watched, watched

PROMPT = "a red circle moves right"


@pytest.mark.parametrize("num_frames", [1, 2, 17, 20, 68, 69, 130])
def test_a_video_has_the_frames_asked_for(pipeline: Pipeline, num_frames: int) -> None:
    video = pipeline.generate(PROMPT, GenerateOptions(num_frames=num_frames))
    assert video.frames.shape == (num_frames, 32, 32, 3)
    assert video.frames.dtype == np.uint8
    assert video.seconds == num_frames / 24


def test_chunks_follow_each_other_and_are_the_video(pipeline: Pipeline) -> None:
    options = GenerateOptions(num_frames=130)
    chunks = list(pipeline.stream(PROMPT, options))
    assert [c.index for c in chunks] == [17 * i for i in range(8)]
    assert [c.segment for c in chunks] == [0, 0, 0, 0, 1, 1, 1, 2]
    assert np.array_equal(np.concatenate([c.frames for c in chunks]), pipeline.generate(PROMPT, options).frames)


def test_the_same_seed_gives_the_same_video_also_in_a_new_pipeline(folder: Path, pipeline: Pipeline) -> None:
    options = GenerateOptions(num_frames=85, seed=5)
    first = pipeline.generate(PROMPT, options).frames
    assert np.array_equal(pipeline.generate(PROMPT, options).frames, first)
    with Pipeline.open(folder, threads=1) as other:
        assert np.array_equal(other.generate(PROMPT, options).frames, first)


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 6}, {"num_inference_steps": 3}, {"guidance_scale": 1.0}, {"negative_prompt": "green square"},
        {"inject": False},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_each_option_changes_the_video(pipeline: Pipeline, changed: dict[str, Any]) -> None:
    usual = pipeline.generate(PROMPT, GenerateOptions(seed=5)).frames
    assert not np.array_equal(pipeline.generate(PROMPT, GenerateOptions(**{"seed": 5, **changed})).frames, usual)


def test_another_prompt_changes_the_video(pipeline: Pipeline) -> None:
    assert not np.array_equal(pipeline.generate(PROMPT).frames, pipeline.generate("yellow triangle").frames)


def test_a_longer_video_begins_with_the_shorter_one(pipeline: Pipeline) -> None:
    short, long = (pipeline.generate(PROMPT, GenerateOptions(num_frames=n)).frames for n in (68, 150))
    assert np.array_equal(long[:68], short)


def test_half_precision_makes_a_video_close_to_the_full_one(folder: Path, pipeline: Pipeline) -> None:
    options = GenerateOptions(num_frames=85, inject=False)
    with Pipeline.open(folder, precision="fp16", threads=1) as half:
        frames = half.generate(PROMPT, options).frames.astype(int)
        assert half.generate(PROMPT, GenerateOptions(num_frames=85)).frames.shape == frames.shape
    assert np.abs(frames - pipeline.generate(PROMPT, options).frames).max() <= 2


def test_a_baseline_bundle_makes_videos_without_tokens(tmp_path: Path) -> None:
    with Pipeline.open(write_tiny_bundle(tmp_path, model=baseline_model(), precisions=["fp32"]), threads=1) as baseline:
        events: list[Event] = []
        assert baseline.generate(PROMPT, GenerateOptions(num_frames=85), on_event=events.append).frames.shape[0] == 85
    assert not {"ar", "vq"} & {e.network for e in events if isinstance(e, Progress)}


def test_frames_are_rounded_down_to_whole_latents(pipeline: Pipeline) -> None:
    events: list[Event] = []
    video = pipeline.generate(PROMPT, GenerateOptions(height=31, width=20), on_event=events.append)
    assert video.frames.shape == (17, 24, 16, 3)
    assert (events[0].height, events[0].width) == (24, 16)


def test_a_segment_goes_on_from_the_frames_before_it(folder: Path) -> None:
    pipeline, calls = watched(folder)
    with pipeline:
        frames = pipeline.generate(PROMPT, GenerateOptions(num_frames=119)).frames
    assert np.array_equal(calls["vae_encoder"][0]["frames"], frames[51:68])
    steps = calls["dit"]
    assert [s["frame_mask"].tolist() for s in steps] == [[True] * 20] * 2 + [[False] * 5 + [True] * 15] * 2
    assert not any(s["noise_mask"].any() for s in steps)
    assert len(calls["vae_decoder"]) == 7
    assert [c["latents"].shape[2] for c in calls["vae_decoder"]] == [5] * 7


def test_graphs_run_no_more_often_than_needed(folder: Path) -> None:
    pipeline, calls = watched(folder)
    with pipeline:
        pipeline.generate(PROMPT, GenerateOptions(num_frames=119, num_inference_steps=3))
    counts = {name: len(fed) for name, fed in calls.items()}
    tokens = 9 * 4  # 35 latents are 9 code-frames of 2 x 2
    assert counts == {
        "text_encoder": 1, "ar_prefix": 1, "ar_step": tokens, "vq_decoder": 2, "vq_encoder": 0, "caption": 1,
        "semantic": 2, "dit": 6, "vae_encoder": 1, "vae_decoder": 7,
    }


def test_guidance_feeds_two_rows_and_scale_one_feeds_one(folder: Path) -> None:
    pipeline, calls = watched(folder)
    with pipeline:
        pipeline.generate(PROMPT, GenerateOptions(guidance_scale=1))
        pipeline.generate(PROMPT, GenerateOptions(guidance_scale=4))
        pipeline.generate(PROMPT, GenerateOptions(guidance_scale=4, negative_prompt="green"))
    alone, guided, negative = calls["caption"]
    assert alone["use_null"].tolist() == [False]
    assert guided["use_null"].tolist() == [False, True]
    assert negative["use_null"].tolist() == [False, False]
    masks = [calls["dit"][i]["text_mask"] for i in (0, 2, 4)]
    assert [m.sum(axis=1).tolist() for m in masks[:2]] == [[masks[0].shape[1]], [masks[0].shape[1]] * 2]
    assert masks[2].sum(axis=1)[1] < masks[2].sum(axis=1)[0]
    assert calls["dit"][2]["guidance_weights"].tolist() == [4, -3]


def test_an_image_is_told_apart_from_a_video(folder: Path) -> None:
    pipeline, calls = watched(folder)
    with pipeline:
        pipeline.generate(PROMPT, GenerateOptions(num_frames=1, fps=30))
        pipeline.generate(PROMPT, GenerateOptions(num_frames=2, fps=30))
    assert [c["fps"].tolist() for c in calls["dit"]] == [[120], [120], [30], [30]]


def test_the_prompt_switches_at_its_time(folder: Path) -> None:
    pipeline, calls = watched(folder)
    with pipeline:
        story = [(0, PROMPT), (68 / 24, "a green square stays still")]
        frames = pipeline.generate(story, GenerateOptions(num_frames=119)).frames
        assert len(calls["ar_prefix"]) == 2
        assert np.array_equal(frames[:68], pipeline.generate(PROMPT, GenerateOptions(num_frames=68)).frames)


def test_segments_of_open_sora_s_syntax_get_their_prompts(pipeline: Pipeline) -> None:
    options = GenerateOptions(num_frames=170)   # segments 0, 1 and 2
    frames = pipeline.generate(f"|0| {PROMPT} |2| yellow triangle", options).frames
    alone = pipeline.generate(PROMPT, options).frames
    assert np.array_equal(frames[:119], alone[:119])
    assert not np.array_equal(frames[119:136], alone[119:136])
    with pytest.raises(OptionsError, match="segment 3 would never be shown"):
        pipeline.stream(f"|0| {PROMPT} |3| yellow triangle", options)


def test_each_prompt_but_the_negative_one_is_told_its_scores(tmp_path: Path) -> None:
    text = dataclasses.replace(TINY.text, prompt_suffix=" aesthetic score: 6.5.", max_length=150)
    model = dataclasses.replace(TINY, text=text, ar=None, vq=None, injection=None, dit=dataclasses.replace(
        TINY.dit, model_max_length=150
    ))
    pipeline, calls = watched(write_tiny_bundle(tmp_path, model=model, precisions=["fp32"]))
    tokenizer = Tokenizer(pipeline.bundle.tokenizer_path, 64)
    story = [(0, "a red circle"), (68 / 24, "a green square aesthetic score: 3.")]
    with pipeline:
        pipeline.generate(story, GenerateOptions(num_frames=119, motion_score=4, negative_prompt="blue"))
        pipeline.generate("a red circle")
    told = [
        "blue", "a red circle aesthetic score: 6.5. motion score: 4.0.",
        "a green square aesthetic score: 3. motion score: 4.0.", "a red circle aesthetic score: 6.5.",
    ]
    assert [fed["input_ids"][0].tolist() for fed in calls["text_encoder"]] == [tokenizer.encode(t, 150) for t in told]


def test_a_prompt_that_is_cut_is_said_once(pipeline: Pipeline) -> None:
    events: list[Event] = []
    long = 40 * "a "   # two tokens each, of which 59 and the closing one are read
    pipeline.generate(long, GenerateOptions(num_frames=119), on_event=events.append)
    cuts = [e for e in events if isinstance(e, PromptCut)]
    assert [(e.prompt, e.max_tokens, e.lost_tokens) for e in cuts] == [(long, 60, 21)]
    assert isinstance(events[1], PromptCut)   # before any work
    events.clear()
    pipeline.generate(29 * "a ", GenerateOptions(negative_prompt=long), on_event=events.append)
    assert [e.prompt for e in events if isinstance(e, PromptCut)] == [long]
    events.clear()
    pipeline.generate(29 * "a ", on_event=events.append)
    assert not any(isinstance(e, PromptCut) for e in events)


def test_events_tell_the_story_of_a_generation(pipeline: Pipeline) -> None:
    events: list[Event] = []
    pipeline.generate(PROMPT, GenerateOptions(num_frames=85), on_event=events.append)
    assert events[0] == Started(num_frames=85, fps=24, height=32, width=32, segments=2)
    assert isinstance(events[-1], Finished)
    assert [e.index for e in events if isinstance(e, ChunkReady)] == [0, 17, 34, 51, 68]
    progress = [e for e in events if isinstance(e, Progress)]
    assert list(dict.fromkeys(e.network for e in progress)) == ["text", "ar", "vq", "dit", "vae"]
    last = {(e.segment, e.network): e for e in progress}
    assert all(e.done == e.total for e in last.values())


def test_a_request_that_cannot_be_used_fails_before_any_work(pipeline: Pipeline) -> None:
    for prompt, options in [("", {}), (PROMPT, {"num_frames": 0}), ([(0, PROMPT), (9, "红色")], {})]:
        with pytest.raises(OptionsError):
            pipeline.stream(prompt, GenerateOptions(**options))


def test_closing_the_iterator_early_frees_the_pipeline(pipeline: Pipeline) -> None:
    chunks = pipeline.stream(PROMPT, GenerateOptions(num_frames=300))
    next(chunks)
    chunks.close()
    assert len(pipeline.generate(PROMPT).frames) == 17


def test_a_second_video_on_the_same_thread_is_refused_while_the_first_is_unfinished(pipeline: Pipeline) -> None:
    chunks = pipeline.stream(PROMPT)
    next(chunks)
    with pytest.raises(ArlonError, match="is making a video"):
        pipeline.generate(PROMPT)
    assert list(chunks) == []
    assert len(pipeline.generate(PROMPT).frames) == 17


def test_threads_take_turns_and_two_pipelines_do_not_disturb_each_other(folder: Path, pipeline: Pipeline) -> None:
    options = [GenerateOptions(num_frames=85, seed=seed) for seed in range(4)]
    expected = [pipeline.generate(PROMPT, o).frames for o in options]
    found: dict[int, np.ndarray] = {}
    with Pipeline.open(folder, threads=1) as other:
        def work(i: int) -> None:
            found[i] = (pipeline if i % 2 else other).generate(PROMPT, options[i]).frames

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(np.array_equal(found[i], expected[i]) for i in range(4))


def test_what_on_event_raises_ends_the_generation(pipeline: Pipeline) -> None:
    events: list[Event] = []

    def cancel(event: Event) -> None:
        events.append(event)
        if isinstance(event, ChunkReady):
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        pipeline.generate(PROMPT, on_event=cancel)
    assert isinstance(events[-1], ChunkReady)   # a cancelled generation has not failed
    assert len(pipeline.generate(PROMPT).frames) == 17


def test_latents_that_are_no_numbers_are_an_error(folder: Path) -> None:
    class Broken(Watched):
        def run(self, feed: Mapping[str, Any], hold: Collection[str] = ()) -> dict[str, Any]:
            return {"latents_out": np.full_like(feed["noise"], np.nan)}

    bundle = Bundle.open(folder)
    sessions: dict[str, Any] = {name: open_session(bundle, name, threads=1) for name in graph_specs(TINY)}
    sessions["dit"] = Broken(sessions["dit"], [])
    broken = Pipeline(bundle, Networks.of(bundle, sessions, "fp32"))
    events: list[Event] = []
    with broken, pytest.raises(BackendError, match="not finite"):
        broken.generate(PROMPT, on_event=events.append)
    assert isinstance(events[-1], Failed)


def test_drawing_on_a_chunk_changes_no_later_frame(pipeline: Pipeline) -> None:
    options = GenerateOptions(num_frames=85)
    expected = pipeline.generate(PROMPT, options).frames[68:]
    for chunk in pipeline.stream(PROMPT, options):
        last = chunk.frames.copy()
        chunk.frames[:] = 255
    assert np.array_equal(last, expected)


def test_frame_indices_of_chunks_skip_the_padding() -> None:
    assert decoder_frame_index(17, TINY.vae).tolist() == list(range(3, 20))
    assert decoder_frame_index(1, TINY.vae).tolist() == [3]
    assert decoder_frame_index(8, TINY.vae).tolist() == list(range(8))
    assert encoder_frame_index(17, TINY.vae).tolist() == [0, 0, 0, *range(1, 18)]
    assert encoder_frame_index(1, TINY.vae).tolist() == [0, 0, 0, 1]
    assert encoder_frame_index(8, TINY.vae).tolist() == list(range(1, 9))


def test_importing_the_package_loads_no_backend() -> None:
    code = "import sys, arlon_rt; print({'numpy', 'onnxruntime', 'av', 'sentencepiece', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_every_public_name_is_there_and_documented() -> None:
    for name in arlon_rt.__all__:
        assert getattr(arlon_rt, name).__doc__
    assert dir(arlon_rt) == arlon_rt.__all__
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = arlon_rt.Nothing


def test_a_prompt_that_no_segment_would_show_is_refused_at_once(pipeline: Pipeline) -> None:
    late = [(0.0, "a red circle"), (60.0, "a blue square")]
    with pytest.raises(OptionsError, match=r"at 60 seconds would never be shown.*begin at 0\.00, 2\.83"):
        pipeline.stream(late, GenerateOptions(num_frames=119))


def test_given_tokens_are_injected_in_place_of_written_ones(pipeline: Pipeline) -> None:
    options = GenerateOptions(num_frames=130, seed=3)
    own = pipeline.tokens(PROMPT, options)
    usual = pipeline.generate(PROMPT, options).frames
    assert own.dtype == np.int64
    assert own.ndim == 3
    np.testing.assert_array_equal(pipeline.generate(PROMPT, options, tokens=own).frames, usual)
    other = (own + 1) % TINY.vq.num_codes
    assert not np.array_equal(pipeline.generate(PROMPT, options, tokens=other).frames, usual)


def test_tokens_of_a_longer_video_begin_with_those_of_a_shorter_one(pipeline: Pipeline) -> None:
    long, short = (pipeline.tokens(PROMPT, GenerateOptions(num_frames=n)) for n in (187, 68))
    np.testing.assert_array_equal(long[: len(short)], short)


@pytest.mark.parametrize(("change", "said"), [
    (lambda tokens: tokens.astype(np.float32), "whole numbers"),
    (lambda tokens: tokens[:-1], r"shape \("),
    (lambda tokens: tokens[:, :-1], r"shape \("),
    (lambda tokens: tokens[None], r"shape \("),
    (lambda tokens: tokens - 10_000, "codes are 0 .."),
    (lambda tokens: tokens + 10_000, "codes are 0 .."),
])
def test_tokens_that_cannot_be_used_fail_before_any_work(pipeline: Pipeline, change: Any, said: str) -> None:
    tokens = pipeline.tokens(PROMPT)
    with pytest.raises(OptionsError, match=said):
        pipeline.stream(PROMPT, tokens=change(tokens))


def test_tokens_without_injection_are_refused(pipeline: Pipeline) -> None:
    tokens, alone = pipeline.tokens(PROMPT), GenerateOptions(inject=False)
    with pytest.raises(OptionsError, match="inject is False"):
        pipeline.stream(PROMPT, alone, tokens=tokens)
    with pytest.raises(OptionsError, match="inject is False"):
        pipeline.tokens(PROMPT, alone)
