"""Videos made from frames, measured: a true continuation is right and joined, another scene is neither."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from arlon_rt import Chunk
from arlon_rt.options import GenerateOptions
from arlon_rt.pipeline import Pipeline, Video
from demo.captions import canonical
from demo.footage import CLIP_FRAMES, KINDS, NEW_FRAMES, animated, extended, repainted, table
from demo.scene import Scene
from demo.score import both_kinds
from demo.world import render

SCENE, OTHER = both_kinds(6, 0)[1:3]


@dataclasses.dataclass
class World:
    """A pipeline whose videos are the world's own; ``shown`` is what it makes whatever is asked."""

    shown: Scene

    def stream(self, prompt: str, options: GenerateOptions, after: np.ndarray) -> list[Chunk]:
        first = 0 if len(after) == 1 else len(after)
        return [Chunk(render(self.shown, first + NEW_FRAMES)[first:], 0, 0, True)]

    def tokens_of(self, frames: np.ndarray) -> np.ndarray:
        self.clip = frames
        return np.zeros((1, 1, 1), np.int64)

    def generate(self, prompt: str, options: GenerateOptions, tokens: np.ndarray) -> Video:
        assert prompt == canonical(OTHER)
        assert np.array_equal(self.clip, render(SCENE, CLIP_FRAMES))
        return Video(render(self.shown, options.num_frames), 24)


@pytest.mark.parametrize("make", [extended, animated])
def test_what_goes_on_is_right_and_what_does_not_is_not(make):
    good, bad = make(World(SCENE), SCENE, OTHER, 0), make(World(OTHER), SCENE, OTHER, 0)
    assert all(good.right.values())
    assert good.step < 1.5
    assert good.right != bad.right
    if make is extended:
        assert bad.step > 3


def test_a_repainted_clip_moves_as_before_and_looks_as_told():
    mixed = dataclasses.replace(OTHER, direction=SCENE.direction, speed=SCENE.speed, velocity=SCENE.velocity)
    assert SCENE.direction != OTHER.direction
    assert all(repainted(World(mixed), SCENE, OTHER, 0).right.values())
    assert not repainted(World(OTHER), SCENE, OTHER, 0).right["direction"]
    unpainted = repainted(World(SCENE), SCENE, OTHER, 0)
    assert unpainted.right["direction"]
    assert not all(unpainted.right.values())
    assert math.isnan(unpainted.step)


def test_the_table_has_a_row_for_each_kind():
    assert table({kind: [extended(World(SCENE), SCENE, OTHER, 0)] for kind in KINDS}).row_count == len(KINDS)


@pytest.mark.slow
def test_the_demo_model_goes_on_from_clips_and_images_and_repaints():
    """A clip's object goes on, an image's moves, and a clip's motion stays under another prompt."""
    with Pipeline.open(threads=1) as pipeline:
        for make in (extended, animated):
            seen = make(pipeline, SCENE, OTHER, 0)
            assert all(seen.right.values()), make
            assert seen.step < 3
        moved = repainted(pipeline, SCENE, OTHER, 0)
        assert moved.right["direction"]
        assert moved.right["speed"]
