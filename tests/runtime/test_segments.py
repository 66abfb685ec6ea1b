"""The cutting of long video: every frame once, every latent covered by codes."""

from __future__ import annotations

import math

import pytest

from arlon_rt.segments import plan
from tiny_bundle import TINY

FIRST = [None, 17, 34, 51, 68]
LENGTHS = [1, 2, 16, 17, 18, 34, 51, 67, 68, 69, 85, 118, 119, 120, 170, 600, 731, 5000]


def test_the_paper_s_731_frames_are_14_segments() -> None:
    segments = plan(731, TINY)
    assert len(segments) == 14
    assert [(s.latents.start, len(s.latents), s.kept) for s in segments[:3]] == [(0, 20, 0), (15, 20, 5), (30, 20, 5)]
    assert segments[-1].latents.stop == 215
    assert segments[-1].code_frames(4).stop == 54


def test_an_image_is_a_single_latent() -> None:
    (segment,) = plan(1, TINY)
    assert segment.latents == range(1)
    assert segment.frames == range(1)


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("num_frames", LENGTHS)
def test_every_frame_is_made_once_and_in_order(num_frames: int, first: int | None) -> None:
    frames = [f for s in plan(num_frames, TINY, first) for f in s.frames]
    assert frames == list(range(num_frames))


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("num_frames", LENGTHS)
def test_new_latents_follow_each_other_without_a_gap(num_frames: int, first: int | None) -> None:
    latents = [x for s in plan(num_frames, TINY, first) for x in s.latents[s.kept :]]
    assert latents == list(range(len(latents)))
    assert len(latents) == (1 if num_frames == 1 else 5 * math.ceil(num_frames / 17))


@pytest.mark.parametrize("num_frames", LENGTHS)
def test_no_window_is_longer_than_a_segment_and_the_last_only_as_long_as_needed(num_frames: int) -> None:
    segments = plan(num_frames, TINY)
    assert all(len(s.latents) == 20 for s in segments[:-1])
    assert len(segments[-1].latents) <= 20
    assert all(s.kept == (5 if s.index else 0) for s in segments)
    assert all(len(s.frames) > 0 for s in segments)


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("num_frames", LENGTHS)
def test_code_frames_cover_each_window_and_no_more(num_frames: int, stride: int) -> None:
    for segment in [s for first in FIRST for s in plan(num_frames, TINY, first)]:
        codes = segment.code_frames(stride)
        decoded = range(codes.start * stride, codes.stop * stride)
        assert decoded[segment.latents_of_codes(stride)] == segment.latents
        assert codes.start == segment.latents.start // stride
        assert codes[-1] == segment.latents[-1] // stride


def test_a_segments_middle_is_that_of_its_new_frames() -> None:
    assert [s.middle(17) for s in plan(221, TINY)] == [2, 5.5, 8.5, 11.5]


@pytest.mark.parametrize(("first", "starts"), [(17, [0, 0, 15]), (34, [0, 5, 20]), (51, [0, 10, 25])])
def test_a_shorter_first_segment_moves_the_others_forward(first: int, starts: list[int]) -> None:
    segments = plan(first + 51 + 51, TINY, first)
    assert [s.latents.start for s in segments] == starts
    assert [len(s.frames) for s in segments] == [first, 51, 51]
    assert [s.kept for s in segments] == [0, 5, 5]
