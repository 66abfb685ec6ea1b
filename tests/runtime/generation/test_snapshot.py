"""A generation that stops between two segments and goes on from a file, to the same frames."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from arlon_rt import GenerateOptions, OptionsError, OutputError, Pipeline, Snapshot
from arlon_rt.events import ChunkReady, Event

PROMPT, OTHER = "a red circle moves right", "yellow triangle"
OPTIONS = GenerateOptions(num_frames=221, seed=3)   # segments of 68, 51, 51, 51 frames


def joined(chunks: Iterator[Any]) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in chunks])


@pytest.fixture(scope="module")
def usual(pipeline: Pipeline) -> np.ndarray:
    return pipeline.generate(PROMPT, OPTIONS).frames


def stopped(pipeline: Pipeline, chunks: int, options: GenerateOptions = OPTIONS, **more: Any) -> Snapshot:
    """The snapshot of a video of which so many chunks were handed out."""
    generation = pipeline.stream(PROMPT, options, **more)
    for _ in range(chunks):
        next(generation)
    snapshot = generation.snapshot()
    generation.close()
    return snapshot


@pytest.mark.parametrize("chunks", [0, 1, 4, 5, 7, 10])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_a_resumed_video_is_the_uninterrupted_one(
    folder: Path, tmp_path: Path, chunks: int, guidance: float, overlap: bool
) -> None:
    options = GenerateOptions(num_frames=221, seed=3, ar_guidance_scale=guidance)
    story = [(0.0, PROMPT), (119 / 24, OTHER)]
    with Pipeline.open(folder, threads=1) as pipeline:
        whole = pipeline.generate(story, options).frames
        generation = pipeline.stream(story, options, overlap=overlap)
        made = [next(generation) for _ in range(chunks)]
        generation.snapshot().save(tmp_path / "here.arlon")
        generation.close()
    with Pipeline.open(folder, threads=1) as pipeline:
        events: list[Event] = []
        again = pipeline.resume(tmp_path / "here.arlon", on_event=events.append, overlap=overlap)
        frames = joined(again)
    first = {0: 0, 1: 0, 4: 68, 5: 68, 7: 119, 10: 170}[chunks]
    assert events[0].first_frame == first <= sum(len(c.frames) for c in made)
    assert next(e for e in events if isinstance(e, ChunkReady)).index == first
    assert np.array_equal(frames, whole[first:])


def test_a_resumed_video_can_be_stopped_and_resumed_again(pipeline: Pipeline, usual: np.ndarray) -> None:
    generation, frames = pipeline.stream(PROMPT, OPTIONS), []
    for _ in range(3):
        for chunk in generation:
            frames.append(chunk.frames)
            if len(frames) in (4, 7, 10):
                break
        snapshot = generation.snapshot()
        generation.close()
        generation = pipeline.resume(snapshot)
    frames += [chunk.frames for chunk in generation]
    assert np.array_equal(np.concatenate(frames), usual)


def test_a_snapshot_keeps_prompts_that_came_while_it_ran(pipeline: Pipeline) -> None:
    generation = pipeline.stream(PROMPT, OPTIONS)
    made = [next(generation).frames for _ in range(4)]
    generation.set_prompt(OTHER, at=5)
    snapshot = generation.snapshot()
    rest = joined(generation)
    assert np.array_equal(joined(pipeline.resume(snapshot)), rest)
    assert len(np.concatenate(made)) + len(rest) == 221


def test_a_snapshot_of_given_tokens_and_of_none(pipeline: Pipeline, tmp_path: Path) -> None:
    tokens = (pipeline.tokens(PROMPT, OPTIONS) + 1) % 16
    for given, options in ((tokens, OPTIONS), (None, GenerateOptions(num_frames=221, inject=False))):
        whole = pipeline.generate(PROMPT, options, tokens=given).frames
        stopped(pipeline, 4, options, tokens=given).save(tmp_path / "here.arlon")
        assert np.array_equal(joined(pipeline.resume(tmp_path / "here.arlon")), whole[68:])


def test_a_snapshot_of_reused_latents(pipeline: Pipeline, tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, reuse_latents=True)
    whole = pipeline.generate(PROMPT, options).frames
    stopped(pipeline, 7, options).save(tmp_path / "here.arlon")
    assert np.array_equal(joined(pipeline.resume(tmp_path / "here.arlon")), whole[119:])

    def broken(state: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors["before"][0, 0, 0, 0, 0] = np.nan

    with pytest.raises(OptionsError, match="not finite"):
        pipeline.resume(rewritten(tmp_path / "here.arlon", broken))


def test_a_snapshot_from_before_an_option_was_there_is_resumed(
    pipeline: Pipeline, saved: Path, usual: np.ndarray
) -> None:
    older = rewritten(saved, lambda state, tensors: state["options"].pop("reuse_latents"))
    assert np.array_equal(joined(pipeline.resume(older)), usual[68:])


def test_a_snapshot_that_names_a_removed_option_is_resumed(pipeline: Pipeline, saved: Path, usual: np.ndarray) -> None:
    older = rewritten(saved, lambda state, tensors: state["options"].update(reuse_velocity=None))
    assert np.array_equal(joined(pipeline.resume(older)), usual[68:])
    asked = rewritten(saved, lambda state, tensors: state["options"].update(reuse_velocity=0.1))
    with pytest.warns(DeprecationWarning, match="reuse_velocity was removed and is ignored"):
        assert np.array_equal(joined(pipeline.resume(asked)), usual[68:])


def test_a_snapshot_is_small(pipeline: Pipeline, tmp_path: Path) -> None:
    stopped(pipeline, 10).save(tmp_path / "here.arlon")
    assert (tmp_path / "here.arlon").stat().st_size < 17 * 32 * 32 * 3 + 4096
    assert [p.name for p in tmp_path.iterdir()] == ["here.arlon"]


@pytest.fixture
def saved(pipeline: Pipeline, tmp_path: Path) -> Path:
    stopped(pipeline, 4).save(tmp_path / "here.arlon")
    return tmp_path / "here.arlon"


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    from safetensors import safe_open

    tensors = dict(load_file(path))
    with safe_open(path, framework="numpy") as file:
        metadata = dict(file.metadata())
    state = json.loads(metadata["state"])
    change(state, tensors)
    save_file(tensors, path, {**metadata, "state": json.dumps(state)})
    return path


@pytest.mark.parametrize(("change", "said"), [
    (lambda s, t: s.update(bundle="0" * 64), "is of bundle 000000000000, this one is"),
    (lambda s, t: s["machine"].update(threads=7), "made with threads 7, this pipeline has 1.*threads=7"),
    (lambda s, t: s["machine"].update(precision="fp16"), "precision 'fp16'"),
    (lambda s, t: s.update(segment=4), "segment is 4 of 4; nothing is left"),
    (lambda s, t: s.update(segment=-1), "segment is -1"),
    (lambda s, t: s.update(segment=0), "what is before segment 0 is uint8.*none fits"),
    (lambda s, t: s.update(segment=2), "are no state of a stream of 5|are no state"),
    (lambda s, t: s.update(segment=1.5), "no whole numbers"),
    (lambda s, t: s["options"].update(num_frames=0), "num_frames is 0"),
    (lambda s, t: s["options"].update(colour="red"), "damaged or none of this version"),
    (lambda s, t: s.update(prompts=[[0, ""]]), "at least one word"),
    (lambda s, t: s.pop("prompts"), "damaged"),
    (lambda s, t: s.update(dropped=5), "are no state"),
    (lambda s, t: s.update(fed=10_000), "are no state"),
    (lambda s, t: s.update(window=-3), "are no state"),
    (lambda s, t: s.update(context=999), "are no state"),
    (lambda s, t: t.pop("before"), "what is before segment 1 is none; uint8"),
    (lambda s, t: t.update(before=t["before"].astype(np.float32)), "is float32"),
    (lambda s, t: t.update(before=t["before"][:, :8]), r"is uint8 \(17, 8, 32, 3\)"),
    (lambda s, t: t.pop("codes"), "no tokens to go on from"),
    (lambda s, t: t.update(codes=t["codes"] + 1000), "are no state"),
    (lambda s, t: t.update(codes=t["codes"].astype(np.int32)), "its codes are int32"),
])
def test_a_snapshot_that_does_not_fit_is_refused(
    pipeline: Pipeline, saved: Path, change: Callable[[dict[str, Any], dict[str, Any]], None], said: str
) -> None:
    with pytest.raises(OptionsError, match=said):
        pipeline.resume(rewritten(saved, change))


def test_a_file_that_is_no_snapshot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="cannot be read: No such file"):
        Snapshot.load(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(OptionsError, match="damaged or none of this version"):
        Snapshot.load(tmp_path / "text")
    save_file({"x": np.zeros(3)}, tmp_path / "other")
    with pytest.raises(OptionsError, match="damaged or none of this version"):
        Snapshot.load(tmp_path / "other")


def test_a_snapshot_that_cannot_be_written_leaves_nothing(pipeline: Pipeline, tmp_path: Path) -> None:
    generation = pipeline.stream(PROMPT, OPTIONS)
    with pytest.raises(OutputError, match="cannot be written"):
        generation.snapshot().save(tmp_path / "no folder" / "here.arlon")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        generation.snapshot().save(tmp_path / "folder")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
