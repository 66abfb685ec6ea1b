"""Frames taken over from references: where they go, what stands for them among the tokens, and that it can go on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from arlon_rt import GenerateOptions, OptionsError, Pipeline
from arlon_rt.conditioning import Conditions, Placement, Reference
from arlon_rt.generation import Snapshot
from arlon_rt.segments import Segment, plan
from tiny_bundle import TINY
from watched import watched

PROMPT = "a red circle moves right"
SIZE, CHUNK = 32, 5
TWO = GenerateOptions(num_frames=68 + 51, num_inference_steps=4)


def clip(num_frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (num_frames, SIZE, SIZE, 3), dtype=np.uint8)


def test_an_entry_says_what_it_must_and_the_rest_is_usual() -> None:
    assert Placement.parse("") == Placement.parse("  ") == ()
    assert Placement.parse("0") == (Placement(),)
    assert Placement.parse("1,2,3,-4,5,0.6;2") == (
        Placement(segment=1, reference=2, start=3, at=-4, length=5, edit_ratio=0.6), Placement(segment=2),
    )


@pytest.mark.parametrize(("strategy", "said"), [
    ("a", "has the entry 'a'"), ("0,0.5", "has the entry '0,0.5'"), ("0;;1", "has the entry ''"),
    ("0,0,0,0,1,0,9", "has the entry"), ("-1", "segment and reference are 0 or more"),
    ("0,-1", "segment and reference are 0 or more"), ("0,0,0,0,0", "length is 1 or more"),
    ("0,0,0,0,1,1.5", "edit_ratio 1.5; it must be 0 to 1"), ("0,0,0,0,1,nan", "edit_ratio nan"),
])
def test_entries_that_say_nothing_usable_are_named(strategy: str, said: str) -> None:
    with pytest.raises(OptionsError, match=said):
        Placement.parse(strategy)


@pytest.mark.parametrize(("placement", "taken", "put"), [
    (Placement(length=3), range(3), range(3)),
    (Placement(start=-1, at=-1, length=9), range(15, 20), range(15, 20)),   # the last chunks, whole ones alone
    (Placement(start=5, at=10, length=100), range(5, 15), range(10, 20)),   # as much as the window holds
    (Placement(start=7, at=8, length=2), range(5, 7), range(10, 12)),       # to the nearest chunk
    (Placement(start=15, at=0, length=9), range(15, 20), range(5)),         # as much as the reference holds
])
def test_parts_go_where_open_sora_puts_them(placement: Placement, taken: range, put: range) -> None:
    reference = np.arange(20, dtype=np.float32)[None, None, :, None, None] * np.ones((1, 4, 1, 2, 2), np.float32)
    conditions = Conditions(
        references=(Reference(latents=reference, drafted=reference),),
        placements=(dataclasses.replace(placement, edit_ratio=0.25),),
    )
    latents, mask = np.full((1, 4, 20, 2, 2), -1.0, np.float32), np.ones(20, np.float32)
    conditions.place(1, latents, mask, CHUNK)
    assert (latents == -1).all(), "another segment's"
    conditions.place(0, latents, mask, CHUNK)
    assert latents[0, 0, list(put), 0, 0].tolist() == list(taken)
    assert (np.delete(latents, list(put), axis=2) == -1).all()
    assert mask.tolist() == [0.25 if i in put else 1.0 for i in range(20)]


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_codes_cover_what_is_placed_and_are_made_of_it_alone(stride: int) -> None:
    reference = np.arange(20, dtype=np.float32)[None, None, :, None, None] * np.ones((1, 4, 1, 2, 2), np.float32)
    conditions = Conditions(
        references=(Reference(latents=reference, drafted=reference + 100),), placements=(
            Placement(segment=1, start=5, at=10, length=3), Placement(length=20, edit_ratio=1),
        ),
    )

    def encode(latents: np.ndarray) -> np.ndarray:
        assert latents.shape[2] % stride == 0
        assert 105 <= latents.min() <= latents.max() <= 107
        return latents[:, 0, ::stride].astype(np.int64)

    segments = plan(119, TINY)
    known = conditions.codes(segments, CHUNK, stride, encode)
    covered = range(25 // stride, -(-28 // stride))
    assert sorted(known) == list(range(4 * covered.start, 4 * covered.stop)), "latents 15 + 10 on; all anew is no code"
    for index, code in known.items():
        assert code == np.clip(105 + index // 4 * stride - 25, 105, 107)


def test_references_are_kept_and_the_rest_is_made(folder: Path) -> None:
    pipeline, calls = watched(folder)
    first, last = clip(1), clip(34, 1)
    with pipeline:
        list(pipeline.stream(PROMPT, TWO, references=[first, last], mask_strategy="0;1,1,-5,-5,5"))
        encode = pipeline._networks.vae_encoder.encode_clip
        start, end = calls["dit"][0], calls["dit"][4]
        assert np.array_equal(start["latents"][:, :, :1], encode(np.repeat(first, 17, axis=0))[:, :, :1])
        assert np.array_equal(end["latents"][:, :, 15:], encode(last)[:, :, 5:])
        assert start["frame_mask"].tolist() == [False] + [True] * 19
        assert end["frame_mask"].tolist() == [False] * 5 + [True] * 10 + [False] * 5


def test_with_an_edit_ratio_frames_join_on_the_way(folder: Path) -> None:
    pipeline, calls = watched(folder)
    with pipeline:
        options = GenerateOptions(num_frames=68, num_inference_steps=10)
        list(pipeline.stream(PROMPT, options, references=[clip(68)], mask_strategy="0,0,0,0,20,0.5"))
    masks = [call["frame_mask"] for call in calls["dit"]]
    joined = [call["noise_mask"].any() for call in calls["dit"]]
    at = joined.index(True)
    assert 0 < at < 9
    assert joined == [i == at for i in range(10)]
    assert [mask.all() for mask in masks] == [i >= at for i in range(10)]
    assert not any(mask.any() for mask in masks[:at])
    assert calls["dit"][at]["timestep"][0] <= 500 < calls["dit"][at - 1]["timestep"][0]


def test_an_image_of_its_own_is_encoded_alone(folder: Path) -> None:
    pipeline, calls = watched(folder)
    with pipeline:
        one = GenerateOptions(num_frames=1)
        list(pipeline.stream(PROMPT, one, references=[clip(1)], mask_strategy="0,0,0,0,1,0.5"))
        assert np.array_equal(calls["dit"][0]["latents"], pipeline._networks.vae_encoder.encode(clip(1)))


def test_an_image_is_made_anew_in_part(pipeline: Pipeline) -> None:
    options = GenerateOptions(num_frames=1, num_inference_steps=10)

    def made(ratio: float) -> np.ndarray:
        return np.concatenate([c.frames for c in pipeline.stream(
            PROMPT, options, references=[clip(1)], mask_strategy=f"0,0,0,0,1,{ratio}")])

    kept, half, anew = map(made, (0, 0.5, 1))
    assert kept.shape == half.shape == (1, SIZE, SIZE, 3)
    assert not np.array_equal(kept, half)
    assert not np.array_equal(half, anew)
    assert np.array_equal(anew, pipeline.generate(PROMPT, options).frames), "nothing is left of the reference"


def test_the_tokens_of_what_is_shown_are_what_the_model_goes_on_from(pipeline: Pipeline) -> None:
    reference = clip(34)
    generation = pipeline.stream(PROMPT, TWO, references=[reference], mask_strategy="0,0,0,5,10")
    for chunk in generation:
        if chunk.ends_segment:
            break
    tokens = generation.snapshot().boundary.tokens
    generation.close()
    assert tokens is not None
    latents, area = pipeline._networks.vae_encoder.encode_clip(reference), 4
    for frame, shown in ((1, [0, 0, 1, 2]), (2, [3, 4, 5, 6])):   # its latents are placed from the fifth on, stride 4
        codes = pipeline._networks.vq_encoder.encode(latents[:, :, shown])[0, 0].flatten()
        at = frame * area - tokens.dropped
        assert list(tokens.codes[at : at + area]) == codes.tolist()


@pytest.mark.parametrize("strategy", ["0", "1,0,0,5,5", "0,0,0,-5,5;1,0,0,10,5,0.4;2"])
@pytest.mark.parametrize("after", [None, clip(34, 5)], ids=["from the start", "after a clip"])
def test_it_goes_on_by_the_same_calls_from_every_segment(
    folder: Path, tmp_path: Path, strategy: str, after: np.ndarray | None
) -> None:
    pipeline, calls = watched(folder)
    options = GenerateOptions(num_frames=170, num_inference_steps=3)
    told = {"references": [clip(34)], "mask_strategy": strategy, "after": after}
    with pipeline:
        whole = list(pipeline.stream(PROMPT, options, **told))
        written = list(calls["ar_step"])
        for made in (0, *(i + 1 for i, chunk in enumerate(whole[:-1]) if chunk.ends_segment)):
            generation = pipeline.stream(PROMPT, options, **told)
            for _ in range(made):
                next(generation)
            generation.snapshot().save(tmp_path / "s.arlon")
            generation.close()
            calls["ar_step"].clear()
            rest = list(pipeline.resume(Snapshot.load(tmp_path / "s.arlon")))
            assert [c.index for c in rest] == [c.index for c in whole[made:]]
            assert all(np.array_equal(a.frames, b.frames) for a, b in zip(rest, whole[made:], strict=True))
            assert calls["ar_step"]
            for again, before in zip(reversed(calls["ar_step"]), reversed(written), strict=False):
                assert all(np.array_equal(again[n], before[n]) for n in ("tokens", "grid", "write_index"))


def test_what_was_made_before_wins_over_a_reference(folder: Path) -> None:
    pipeline, calls = watched(folder)
    with pipeline:
        chunks = list(pipeline.stream(PROMPT, TWO, references=[clip(17)], mask_strategy="1,0,0,0,5,0.5"))
        kept = pipeline._networks.vae_encoder.encode(chunks[3].frames)
        assert np.array_equal(calls["dit"][4]["latents"][:, :, :5], kept)
        assert calls["dit"][4]["frame_mask"].tolist() == [False] * 5 + [True] * 15


@pytest.mark.parametrize(("references", "strategy", "said"), [
    ([clip(1)], "", "mask_strategy does not say where they go"),
    ([], "0", "names reference 0; there are 0"),
    ([clip(1)], "0,1", "names reference 1; there are 1"),
    ([clip(1)], "2", "names segment 2; there are 2"),
    ([clip(17)], "0,0,5", r"has start 5; it must be -5 to 4 \(latents\)"),
    ([clip(17)], "0,0,0,20", r"has at 20; it must be -20 to 19 \(latents\)"),
    ([clip(1)[:, :, :16]], "0", r"a reference has shape \(1, 32, 16, 3\)"),
    ([clip(1)[0]], "0", "frames are uint8"),
])
def test_what_cannot_be_placed_is_named(
    pipeline: Pipeline, references: list[np.ndarray], strategy: str, said: str
) -> None:
    with pytest.raises(OptionsError, match=said):
        pipeline.stream(PROMPT, TWO, references=references, mask_strategy=strategy)


def test_references_of_another_model_are_refused(pipeline: Pipeline) -> None:
    generation = pipeline.stream(PROMPT, TWO, references=[clip(1)], mask_strategy="0")
    snapshot = generation.snapshot()
    (own,) = snapshot.conditions.references
    for wrong in (
        dataclasses.replace(own, latents=own.latents[:, :3]), dataclasses.replace(own, drafted=own.drafted[..., :1]),
        dataclasses.replace(own, drafted=own.drafted[:, :, :0]),
    ):
        bad = dataclasses.replace(snapshot.conditions, references=(wrong,))
        with pytest.raises(OptionsError, match="reference 0 has"):
            pipeline.resume(dataclasses.replace(snapshot, conditions=bad))
    with pytest.raises(OptionsError, match="lead is 16 frames"):
        pipeline.resume(dataclasses.replace(snapshot, lead=16))


def segments_of(lead: int, first: int | None) -> list[Segment]:
    return plan(60, TINY, first, lead)


@pytest.mark.parametrize(("lead", "first", "windows"), [
    (68, None, [20, 20, 10]), (17, None, [5, 20, 10]), (34, 17, [10, 10, 20]), (68, 34, [20, 15, 15]),
])
def test_a_lead_is_a_segment_before_the_first(lead: int, first: int | None, windows: list[int]) -> None:
    segments = segments_of(lead, first)
    assert [len(s.latents) for s in segments] == windows
    assert segments[0].frames == range(-lead, 0)
    assert [f for s in segments[1:] for f in s.frames] == list(range(60))
    assert segments[1].latents.start == lead // 17 * CHUNK - CHUNK
