"""Going on from frames that are there: a clip that is continued, an image to begin with, a clip rendered anew."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from arlon_rt import GenerateOptions, OptionsError, Pipeline
from arlon_rt.networks.vq import VQEncoder
from tiny_bundle import TINY, baseline_model, write_tiny_bundle
from watched import watched

PROMPT, OTHER = "a red circle moves right", "yellow triangle"
SIZE = 32


def clip(num_frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (num_frames, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize(("there", "used"), [(17, 17), (20, 17), (51, 51), (68, 68), (200, 68)])
def test_a_clip_is_continued_from_its_last_chunk(folder: Path, there: int, used: int) -> None:
    pipeline, calls = watched(folder)
    frames = clip(there)
    with pipeline:
        chunks = list(pipeline.stream(PROMPT, GenerateOptions(num_frames=60), after=frames))
        assert sum(len(c.frames) for c in chunks) == 60
        assert [c.index for c in chunks] == [0, 17, 34, 51]
        assert {c.segment for c in chunks} == {1, 2}
        first = calls["dit"][0]
        assert first["frame_mask"].tolist() == [False] * 5 + [True] * 15
        kept = pipeline._networks.vae_encoder.encode(frames[-17:])
        assert np.array_equal(first["latents"][:, :, :5], kept)
        (encoded,) = [c["latents"] for c in calls["vq_encoder"]]
        latents = pipeline._networks.vae_encoder.encode_clip(frames[-used:])
        assert np.array_equal(encoded[:, :, : used // 17 * 5], latents)
        whole = used // 17 * 5 // TINY.vq.stride[0] * 4   # codes that lie in the clip alone
        assert calls["ar_step"][0]["tokens"].shape[1] == 1 + whole, "BOS, then the clip's"


def test_a_continued_video_is_the_one_that_was_never_cut(pipeline: Pipeline) -> None:
    """With tokens out of the way it is the frames alone that go on."""
    options = GenerateOptions(num_frames=68 + 51, inject=False)
    whole = pipeline.generate(PROMPT, options).frames
    rest = pipeline.stream(PROMPT, dataclasses.replace(options, num_frames=51), after=whole[:68])
    assert np.array_equal(np.concatenate([c.frames for c in rest]), whole[68:])


def test_prompts_are_about_what_is_new(folder: Path) -> None:
    pipeline, calls = watched(folder)
    with pipeline:
        story = [(0, PROMPT), (51 / 24, OTHER)]
        list(pipeline.stream(story, GenerateOptions(num_frames=102), after=clip(40)))
        assert len(calls["ar_prefix"]) == 2
        by_segment = list(pipeline.stream(f"|0| {PROMPT} |1| {OTHER}", GenerateOptions(num_frames=102), after=clip(40)))
        in_seconds = list(pipeline.stream(story, GenerateOptions(num_frames=102), after=clip(40)))
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(by_segment, in_seconds, strict=True))


def test_a_continuation_can_be_resumed(pipeline: Pipeline) -> None:
    options = GenerateOptions(num_frames=140)
    whole = list(pipeline.stream(PROMPT, options, after=clip(68)))
    for made in (0, 1, 3, 6):
        generation = pipeline.stream(PROMPT, options, after=clip(68))
        for _ in range(made):
            next(generation)
        snapshot = generation.snapshot()
        generation.close()
        rest = list(pipeline.resume(snapshot))
        assert [c.index for c in rest] == [c.index for c in whole[made // 3 * 3 :]]
        assert all(np.array_equal(a.frames, b.frames) for a, b in zip(rest, whole[made // 3 * 3 :], strict=True))


def test_an_image_is_what_a_video_begins_with(folder: Path, tmp_path: Path) -> None:
    pipeline, calls = watched(folder)
    image = clip(1)
    with pipeline:
        chunks = list(pipeline.stream(PROMPT, GenerateOptions(num_frames=68), after=image))
        assert [c.index for c in chunks] == [0, 17, 34, 51]
        first = calls["dit"][0]
        assert first["frame_mask"].tolist() == [False] + [True] * 19
        still = pipeline._networks.vae_encoder.encode(np.repeat(image, 17, axis=0))
        assert np.array_equal(first["latents"][:, :, :1], still[:, :, :1])
        assert calls["ar_step"][0]["tokens"].shape[1] == 1 + 4
        pipeline.stream(PROMPT, GenerateOptions(num_frames=68), after=image).snapshot().save(tmp_path / "s.arlon")
        again = list(pipeline.resume(tmp_path / "s.arlon"))
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(chunks, again, strict=True))


def test_reused_latents_go_on_from_a_clip_too(pipeline: Pipeline) -> None:
    options = GenerateOptions(num_frames=102, reuse_latents=True)
    assert sum(len(c.frames) for c in pipeline.stream(PROMPT, options, after=clip(34))) == 102


def test_a_clip_s_tokens_are_rendered_under_another_prompt(pipeline: Pipeline) -> None:
    options = GenerateOptions(num_frames=119)
    made = pipeline.tokens(PROMPT, options)
    found = pipeline.tokens_of(clip(119))
    assert found.shape == made.shape
    assert found.dtype == np.int64
    assert 0 <= found.min() <= found.max() < TINY.vq.num_codes
    frames = [pipeline.generate(text, options, tokens=found).frames for text in (PROMPT, OTHER)]
    assert not np.array_equal(*frames)


class Blocks:
    """A session that gives each code the number that its block begins with."""

    def run(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert feed["latents"].shape[2] <= 20
        return {"tokens": feed["latents"][:, 0, ::2, ::2, ::2].astype(np.int64)}


@pytest.mark.parametrize("frames", [1, 5, 19, 20, 21, 40, 63])
def test_long_clips_are_encoded_window_by_window_each_code_once(frames: int) -> None:
    config = dataclasses.replace(TINY.vq, stride=(2, 2, 2))
    latents = np.arange(frames, dtype=np.float32)[None, None, :, None, None] * np.ones((1, 4, 1, 4, 3), np.float32)
    tokens = VQEncoder(Blocks(), config, window=20).encode(latents)
    assert tokens.shape == (1, -(-frames // 2), 2, 2)
    assert tokens[0, :, 0, 0].tolist() == list(range(0, frames, 2))


@pytest.mark.parametrize(("after", "more", "said"), [
    (clip(5), {}, r"after has 5 frames; it takes one, an image, or 17 and more, a clip"),
    (clip(17)[:, :16], {}, r"after has shape \(17, 16, 32, 3\); \(frame, 32, 32, 3\) is needed"),
    (clip(17).astype(np.float32), {}, "frames are float32"),
    (clip(17)[..., 0], {}, "frames are uint8"),
    (clip(0), {}, "frames are uint8"),
    (clip(17), {"tokens": np.zeros((9, 2, 2), np.int64)}, "tokens and after are both given"),
])
def test_frames_that_cannot_be_gone_on_from_are_named(
    pipeline: Pipeline, after: np.ndarray, more: dict[str, np.ndarray], said: str
) -> None:
    with pytest.raises(OptionsError, match=said):
        pipeline.stream(PROMPT, after=after, **more)


def test_a_bundle_without_the_encoder_says_so(tmp_path: Path) -> None:
    model = dataclasses.replace(TINY, vq=dataclasses.replace(TINY.vq, has_encoder=False))
    with Pipeline.open(write_tiny_bundle(tmp_path / "a", model=model, precisions=["fp32"]), threads=1) as pipeline:
        for call in (lambda: pipeline.stream(PROMPT, after=clip(17)), lambda: pipeline.tokens_of(clip(17))):
            with pytest.raises(OptionsError, match="no graph vq_encoder"):
                call()
        alone = GenerateOptions(num_frames=51, inject=False)
        assert sum(len(c.frames) for c in pipeline.stream(PROMPT, alone, after=clip(17))) == 51
    path = write_tiny_bundle(tmp_path / "b", model=baseline_model(), precisions=["fp32"])
    with Pipeline.open(path, threads=1) as baseline:
        assert sum(len(c.frames) for c in baseline.stream(PROMPT, GenerateOptions(num_frames=51), after=clip(17))) == 51
