"""A generation steered while it runs: brakes, prompts, lanes on threads of their own, and what it reports."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arlon_rt import Cancelled, GenerateOptions, OptionsError, Pipeline
from arlon_rt.events import ChunkReady, Event, Failed, Finished, Progress, Started
from arlon_rt.generation import Ahead, Work
from watched import watched

PROMPT, OTHER = "a red circle moves right", "yellow triangle"
OPTIONS = GenerateOptions(num_frames=221, seed=3)   # segments of 68, 51, 51, 51 frames


@pytest.fixture(scope="module")
def usual(pipeline: Pipeline) -> np.ndarray:
    return pipeline.generate(PROMPT, OPTIONS).frames


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert [t.name for t in threading.enumerate() if t.name.startswith("arlon-rt")] == []


def joined(chunks: Iterator[Any]) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in chunks])


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(2000):
        if true():
            return
        time.sleep(0.005)
    pytest.fail("it did not happen within 10 s")


# -- overlap ---------------------------------------------------------------------------------------------------------


def test_overlapped_lanes_make_the_same_frames(pipeline: Pipeline, usual: np.ndarray) -> None:
    events: list[Event] = []
    frames = pipeline.generate(PROMPT, OPTIONS, overlap=True, on_event=events.append).frames
    assert np.array_equal(frames, usual)
    last = {(e.segment, e.network): e for e in events if isinstance(e, Progress)}
    assert {network for _, network in last} == {"text", "ar", "vq", "dit", "vae"}
    assert all(e.done == e.total for e in last.values())
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)


def test_each_segment_goes_through_the_networks_in_order(pipeline: Pipeline) -> None:
    order: list[tuple[str, int]] = []

    def note(event: Event) -> None:
        if isinstance(event, Progress) and event.done == event.total:
            order.append((event.network, event.segment))

    pipeline.generate(PROMPT, OPTIONS, overlap=True, on_event=note)
    for segment in range(4):
        networks = [network for network, s in order if s == segment]
        assert networks == ["text", "ar", "vq", "dit", "vae"]


def test_a_slow_reader_slows_the_work(pipeline: Pipeline) -> None:
    seen: list[int] = []

    def note(event: Event) -> None:
        if isinstance(event, Progress) and event.network == "text":
            seen.append(event.segment)

    chunks = pipeline.stream(PROMPT, GenerateOptions(num_frames=68 + 51 * 8), overlap=True, on_event=note)
    next(chunks)
    time.sleep(0.5)
    assert max(seen) <= 4, "one segment in each lane and one before each"
    chunks.close()


def test_items_are_made_ahead_but_no_further_than_the_depth() -> None:
    made: list[int] = []

    def numbers() -> Iterator[int]:
        for i in range(10):
            made.append(i)
            yield i

    ahead = Ahead(numbers(), "arlon-rt test", depth=2)
    wait_until(lambda: len(made) == 2)
    time.sleep(0.05)
    assert made == [0, 1]
    assert next(ahead) == 0
    assert list(ahead) == list(range(1, 10))
    ahead.close()
    assert list(ahead) == []


def test_what_a_lane_raises_comes_out_where_its_items_are_taken() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    ahead = Ahead(broken(), "arlon-rt test")
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="broken"):
        next(ahead)
    with pytest.raises(StopIteration):
        next(ahead)


# -- brakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["text", "ar", "vq", "dit", "vae"])
def test_a_cancelled_generation_ends_within_one_unit_of_work(pipeline: Pipeline, overlap: bool, network: str) -> None:
    after: list[Progress] = []

    def cancel(event: Event) -> None:
        if after or (isinstance(event, Progress) and event.network == network and event.segment == 1):
            generation.cancel()
            after.append(event)

    generation = pipeline.stream(PROMPT, OPTIONS, on_event=cancel, overlap=overlap)
    with pytest.raises(Cancelled):
        list(generation)
    assert not any(isinstance(e, Failed) for e in after)
    assert len(after) <= (4 if overlap else 2), "each lane may finish what is under way"
    assert len(pipeline.generate(PROMPT).frames) == 17


@pytest.mark.slow
def test_cancelled_at_random_moments_the_pipeline_goes_on_working(pipeline: Pipeline, usual: np.ndarray) -> None:
    for attempt in range(20):
        generation = pipeline.stream(PROMPT, OPTIONS, overlap=attempt % 2 == 0)
        timer = threading.Timer(random.uniform(0, 0.5), generation.cancel)
        timer.start()
        with contextlib.suppress(Cancelled):
            assert np.array_equal(joined(generation), usual)
        timer.join()
    assert np.array_equal(pipeline.generate(PROMPT, OPTIONS).frames, usual)


def test_a_paused_generation_does_nothing_until_it_goes_on(
    pipeline: Pipeline, overlap: bool, usual: np.ndarray
) -> None:
    events: list[Event] = []
    generation = pipeline.stream(PROMPT, OPTIONS, on_event=events.append, overlap=overlap)
    first = next(generation)
    generation.pause()
    found: list[np.ndarray] = []
    reader = threading.Thread(target=lambda: found.append(joined(generation)))
    reader.start()
    time.sleep(0.2)
    made = len(events)
    time.sleep(0.2)
    assert len(events) == made
    generation.resume()
    reader.join(30)
    assert np.array_equal(np.concatenate([first.frames, found[0]]), usual)


def test_a_paused_generation_can_be_cancelled(pipeline: Pipeline, overlap: bool) -> None:
    generation = pipeline.stream(PROMPT, OPTIONS, overlap=overlap)
    next(generation)
    generation.pause()
    threading.Timer(0.1, generation.cancel).start()
    with pytest.raises(Cancelled):
        list(generation)


def test_a_dropped_iterator_ends_its_threads(pipeline: Pipeline, overlap: bool) -> None:
    generation = pipeline.stream(PROMPT, OPTIONS, overlap=overlap)
    next(generation)
    del generation
    assert len(pipeline.generate(PROMPT).frames) == 17


def test_a_callback_that_raises_ends_the_generation(pipeline: Pipeline, overlap: bool) -> None:
    def broken(event: Event) -> None:
        if isinstance(event, Progress) and event.network == "dit":
            raise RuntimeError("no room on the screen")

    with pytest.raises(RuntimeError, match="no room"):
        pipeline.generate(PROMPT, OPTIONS, on_event=broken, overlap=overlap)
    assert len(pipeline.generate(PROMPT).frames) == 17


# -- prompts ---------------------------------------------------------------------------------------------------------


def test_a_new_prompt_holds_from_the_next_segment_that_is_open(pipeline: Pipeline, usual: np.ndarray) -> None:
    generation = pipeline.stream(PROMPT, OPTIONS)
    frames = [next(generation).frames]
    assert generation.set_prompt(OTHER) == pytest.approx(68 / 24)
    frames += [chunk.frames for chunk in generation]
    switched = np.concatenate(frames)
    asked = pipeline.generate([(0, PROMPT), (68 / 24, OTHER)], OPTIONS).frames
    assert np.array_equal(switched, asked)
    assert not np.array_equal(switched[68:], usual[68:])


def test_a_prompt_for_later_leaves_what_is_before_it(pipeline: Pipeline, usual: np.ndarray, overlap: bool) -> None:
    generation = pipeline.stream([(0, PROMPT), (119 / 24, OTHER)], OPTIONS, overlap=overlap)
    assert generation.set_prompt(PROMPT, at=119 / 24) == pytest.approx(119 / 24)
    assert np.array_equal(joined(generation), usual), "the later entry of the same moment is replaced"


@pytest.mark.parametrize("at", [0.0, 1.0, 100.0, -1.0, float("nan")])
def test_a_prompt_for_what_is_made_or_never_comes_is_refused(pipeline: Pipeline, at: float) -> None:
    generation = pipeline.stream(PROMPT, OPTIONS)
    next(generation)
    with pytest.raises(OptionsError, match=r"nothing can change any more; .* begin at 2\.83"):
        generation.set_prompt(OTHER, at=at)
    with pytest.raises(OptionsError, match="no word"):
        generation.set_prompt("…")
    generation.close()


def test_no_prompt_is_taken_once_the_last_segment_is_written(pipeline: Pipeline) -> None:
    generation = pipeline.stream(PROMPT, GenerateOptions(num_frames=68))
    next(generation)
    with pytest.raises(OptionsError, match="nothing is left to change"):
        generation.set_prompt(OTHER)
    generation.close()


def test_a_prompt_before_the_first_chunk_is_the_whole_video_s(pipeline: Pipeline) -> None:
    generation = pipeline.stream(OTHER, OPTIONS)
    assert generation.set_prompt(PROMPT, at=0.5) == 0
    assert np.array_equal(joined(generation), pipeline.generate(PROMPT, OPTIONS).frames)


# -- previews --------------------------------------------------------------------------------------------------------


def test_a_preview_shows_each_segment_before_it_is_denoised(
    pipeline: Pipeline, usual: np.ndarray, overlap: bool
) -> None:
    events: list[Event] = []
    chunks = list(pipeline.stream(PROMPT, OPTIONS, preview=True, overlap=overlap, on_event=events.append))
    drafts, finals = ([c for c in chunks if c.draft == draft] for draft in (True, False))
    assert np.array_equal(joined(finals), usual)
    places = [[(c.index, c.segment, len(c.frames)) for c in part] for part in (drafts, finals)]
    assert places[0] == places[1]
    assert not np.array_equal(joined(drafts), usual)
    assert [c.draft for c in chunks if c.segment == 1] == [True] * 3 + [False] * 3
    assert not any(c.ends_segment for c in drafts)
    ready = [(e.index, e.draft) for e in events if isinstance(e, ChunkReady)]
    assert ready == [(c.index, c.draft) for c in chunks]
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert set(finished.network_seconds) == {"text", "ar", "vq", "dit", "vae"}
    shown = [(e.segment, e.draft) for e in events if isinstance(e, Progress) and e.network == "vae"]
    assert sorted(shown) == sorted((c.segment, c.draft) for c in chunks)


def test_a_draft_is_the_tokens_decoded(pipeline: Pipeline) -> None:
    tokens = pipeline.tokens(PROMPT, OPTIONS)
    drafts = [[c.frames for c in pipeline.stream(text, OPTIONS, tokens=tokens, preview=True) if c.draft]
              for text in (PROMPT, OTHER)]
    assert np.array_equal(np.concatenate(drafts[0]), np.concatenate(drafts[1]))


def test_without_tokens_there_is_no_preview(pipeline: Pipeline) -> None:
    with pytest.raises(OptionsError, match="a draft is made of tokens"):
        pipeline.stream(PROMPT, GenerateOptions(inject=False), preview=True)


# -- approximations ---------------------------------------------------------------------------------------------------


def test_reused_latents_need_no_encoder_and_wait_for_no_decoder(folder: Path, overlap: bool) -> None:
    watched_pipeline, calls = watched(folder)
    options = dataclasses.replace(OPTIONS, reuse_latents=True)
    with watched_pipeline:
        frames = joined(watched_pipeline.stream(PROMPT, options, overlap=overlap))
        assert frames.shape[0] == 221
        assert calls["vae_encoder"] == []
        first, later = calls["dit"][1], calls["dit"][2]   # two steps a segment
        assert later["frame_mask"].tolist() == [False] * 5 + [True] * 15
        assert not np.array_equal(first["latents"][:, :, 15:], later["latents"][:, :, :5])


def test_guidance_may_end_after_some_steps(folder: Path) -> None:
    watched_pipeline, calls = watched(folder)
    options = GenerateOptions(num_frames=119, num_inference_steps=4, guidance_scale=3)
    with watched_pipeline:
        whole = watched_pipeline.generate(PROMPT, options).frames
        assert [len(c["guidance_weights"]) for c in calls["dit"]] == [2] * 8
        calls["dit"].clear()
        some = watched_pipeline.generate(PROMPT, dataclasses.replace(options, guided_steps=1)).frames
        assert [len(c["guidance_weights"]) for c in calls["dit"]] == [2, 1, 1, 1] * 2
        assert [c["caption_kv"].shape[2] for c in calls["dit"]] == [2, 1, 1, 1] * 2
        assert len(calls["caption"]) == 3, "each made once a prompt"
        none = watched_pipeline.generate(PROMPT, dataclasses.replace(options, guided_steps=0)).frames
        alone = watched_pipeline.generate(PROMPT, dataclasses.replace(options, guidance_scale=1)).frames
        all_of_them = watched_pipeline.generate(PROMPT, dataclasses.replace(options, guided_steps=9)).frames
    assert np.array_equal(none, alone)
    assert np.array_equal(all_of_them, whole)
    assert not np.array_equal(some, whole)


# -- what is told ----------------------------------------------------------------------------------------------------


def test_the_last_event_says_where_the_time_went(pipeline: Pipeline, overlap: bool) -> None:
    events: list[Event] = []
    pipeline.generate(PROMPT, OPTIONS, on_event=events.append, overlap=overlap)
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert 0 < finished.first_chunk_seconds < finished.wall_seconds
    assert set(finished.network_seconds) == {"text", "ar", "vq", "dit", "vae"}
    if not overlap:
        assert sum(finished.network_seconds.values()) < finished.wall_seconds
    video = OPTIONS.resolved(pipeline.bundle)
    assert finished.real_time_factor == pytest.approx(video.num_frames / video.fps / finished.wall_seconds)
    assert finished.peak_memory_bytes is not None
    assert finished.peak_memory_bytes > 1 << 20


@pytest.mark.parametrize("first", [17, 34, 51])
def test_a_short_first_segment_comes_first(pipeline: Pipeline, first: int) -> None:
    options = GenerateOptions(num_frames=120, first_segment_frames=first)
    chunks = list(pipeline.stream(PROMPT, options))
    assert [c.segment for c in chunks][: first // 17 + 1] == [0] * (first // 17) + [1]
    assert sum(len(c.frames) for c in chunks) == 120


def test_all_texts_may_be_encoded_before_another_network_runs(folder: Path) -> None:
    """So that a text encoder that is not resident is loaded once: for the negative and the empty prompt, too."""
    watched_pipeline, calls = watched(folder)
    encoded: list[int] = []

    def note(event: Event) -> None:
        if isinstance(event, Progress):
            encoded.append(len(calls["text_encoder"]))

    options = dataclasses.replace(OPTIONS, negative_prompt="green square", ar_guidance_scale=2.0)
    with watched_pipeline:
        request = watched_pipeline._requests.checked([(0, PROMPT), (68 / 24, OTHER)], options)
        networks, model = watched_pipeline._networks, watched_pipeline.bundle.model
        list(Work(networks, model, request, note, all_texts_first=True).run())
    assert set(encoded) == {4}, "two prompts, the negative and the empty one, and none later"


def test_a_prompt_that_is_encoded_anew_changes_nothing(pipeline: Pipeline, usual: np.ndarray) -> None:
    """The encoder remembers a few prompts; one that it forgot is the same prompt still."""
    encoder, frames = pipeline._networks.text_encoder, []
    for chunk in pipeline.stream(PROMPT, OPTIONS):
        frames.append(chunk.frames)
        encoder._encoded.cache_clear()
    assert np.array_equal(np.concatenate(frames), usual)
