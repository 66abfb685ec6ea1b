"""Steering measured: the pixels after a new prompt are held to the new scene, those before are not looked at."""

import itertools

import numpy as np
import pytest

from arlon_rt import Chunk
from arlon_rt.options import GenerateOptions
from demo.captions import canonical
from demo.score import both_kinds
from demo.steer import FIRST, LATER, SEGMENTS, steer, table
from demo.world import render, switched


class Obedient:
    """A pipeline whose videos are the world's own; it takes a new prompt some segments late."""

    def __init__(self, scenes: dict, late: int, deaf: bool = False) -> None:
        self.scenes, self.late, self.deaf = scenes, late, deaf

    def stream(self, prompt: str, options: GenerateOptions, overlap: bool = False) -> "Obedient":
        self.frames, self.made = render(self.scenes[prompt], options.num_frames), 0
        return self

    def set_prompt(self, prompt: str) -> float:
        start = FIRST + self.late * LATER
        if not self.deaf:
            self.frames[start:] = render(self.scenes[prompt], len(self.frames))[start:]
        return start / 24

    def __iter__(self):
        bounds = [0, FIRST, *(FIRST + (i + 1) * LATER for i in range(SEGMENTS))]
        for i, (start, end) in enumerate(itertools.pairwise(bounds)):
            yield Chunk(self.frames[start:end], start, i, True)


@pytest.mark.parametrize("late", [0, 1])
def test_a_video_that_follows_its_new_prompt_is_right_and_one_that_does_not_is_not(late: int):
    before = both_kinds(4, 0)[1]
    after = switched(np.random.default_rng(3), before, 0)
    scenes = {canonical(scene): scene for scene in (before, after)}
    good = steer(Obedient(scenes, late), before, after, 0, overlap=False)
    assert all(good.right.values())
    assert good.changed
    assert good.delay == late
    bad = steer(Obedient(scenes, late, deaf=True), before, after, 0, overlap=False)
    assert not any(bad.right[a] for a in bad.changed)
    assert all(bad.right[a] for a in set(bad.right) - bad.changed)
    assert table([good, bad]).row_count == 5
