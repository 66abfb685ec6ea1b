"""The scorer proven: right on ground truth, at chance on shuffled prompts, zero where nothing is shown."""

import argparse
import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from demo.captions import canonical
from demo.measure import Measured, measure
from demo.scene import HELD_OUT, PALETTE, Scene, sample_scene
from demo.score import (
    ATTRIBUTES,
    Setting,
    _generator,
    evaluate,
    matches,
    prompts,
    rates,
    score,
    table,
    windows,
    write_json,
    write_sheet,
)
from demo.world import Pixels, render, render_clip, sample_clip

CHANCE = {"colour": 1 / 6, "shape": 1 / 3, "direction": 1 / 5}
"""Of prompts balanced over six colours, three shapes and five motions."""


Measurements = list[Measured | None]


@pytest.fixture(scope="module")
def truth() -> tuple[list[Scene], list[Pixels]]:
    rng = np.random.default_rng(1)
    scenes = prompts(150, rng, held_out=False) + prompts(50, rng, held_out=True)
    return scenes, [render(scene, 68) for scene in scenes]


@pytest.fixture(scope="module")
def measured_truth(truth) -> Measurements:
    return [measure(frames) for frames in truth[1]]


def box_blur(frames: Pixels) -> Pixels:
    """3 × 3 pixels, around the torus."""
    total = frames.astype(np.uint16)
    for axis in (1, 2):
        total = np.roll(total, -1, axis) + total + np.roll(total, 1, axis)
    return (total // 9).astype(np.uint8)


def share(scores: list[dict[str, bool]], attribute: str) -> float:
    return float(np.mean([s[attribute] for s in scores]))


def test_rendered_ground_truth_scores_at_least_99_percent(truth, measured_truth):
    scores = [matches(m, scene) for m, scene in zip(measured_truth, truth[0], strict=True)]
    assert {a: share(scores, a) for a in ATTRIBUTES if share(scores, a) < 0.99} == {}


@pytest.mark.slow
def test_blurred_ground_truth_scores_at_least_95_percent(truth):
    scores = [score(box_blur(frames), scene) for scene, frames in zip(*truth, strict=True)]
    assert {a: share(scores, a) for a in ATTRIBUTES if share(scores, a) < 0.95} == {}


def test_shuffled_prompts_score_at_chance(truth, measured_truth):
    scenes, measured, rng = truth[0][:150], measured_truth[:150], np.random.default_rng(0)
    scores = [matches(m, scenes[i]) for _ in range(20) for m, i in zip(measured, rng.permutation(150), strict=True)]
    for attribute, chance in CHANCE.items():
        assert share(scores, attribute) == pytest.approx(chance, abs=0.03)


def test_a_colour_that_wavers_is_counted_by_frames(truth):
    scene = next(s for s in truth[0] if s.colour == "red" and s.background == "black")
    frames, other = (render(dataclasses.replace(scene, rgb=PALETTE[c]), 40) for c in ("red", "blue"))
    found = measure(frames)
    assert found is not None
    assert found.steady == 1
    frames[30:] = other[30:]
    found = measure(frames)
    assert found is not None
    assert found.colour == "red"
    assert found.steady == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("level", [0, 12, 110, 255])
def test_blank_frames_score_zero(level: int):
    frames = np.full((68, 64, 64, 3), level, np.uint8)
    assert measure(frames) is None
    assert not any(score(frames, sample_scene(np.random.default_rng(0))).values())


@pytest.mark.parametrize("blocks", [64, 16, 8])
@pytest.mark.parametrize("deviation", [8, 40, 120])
@pytest.mark.parametrize("num_frames", [1, 68])
def test_noise_fine_or_coarse_moving_or_frozen_scores_zero(blocks: int, deviation: int, num_frames: int):
    noise = np.random.default_rng(blocks).normal(110, deviation, (num_frames, blocks, blocks, 3)).clip(0, 255)
    frames = noise.astype(np.uint8).repeat(64 // blocks, 1).repeat(64 // blocks, 2).repeat(68 // num_frames, 0)
    assert measure(frames) is None


def test_two_objects_are_not_one(truth):
    scene = dataclasses.replace(truth[0][0], x=16.0, y=16.0, direction="still", velocity=0.0)
    frames = np.maximum(render(scene, 20), np.roll(render(scene, 20), (32, 32), axis=(1, 2)))
    assert measure(frames) is None


@pytest.mark.parametrize("direction", ["right", "left", "up", "down", "still"])
@pytest.mark.parametrize("shape", ["circle", "square", "triangle"])
def test_an_object_cut_by_the_border_and_crossing_it_is_measured_whole(direction: str, shape: str):
    scene = sample_scene(np.random.default_rng(0), ("red", shape, direction), "fast")  # type: ignore[arg-type]
    for corner in (0.0, 63.9):
        assert all(score(render(dataclasses.replace(scene, x=corner, y=corner), 68), scene).values())


def test_a_colour_between_two_names_is_none():
    scene = sample_scene(np.random.default_rng(0), background="black")
    measured = measure(render(dataclasses.replace(scene, rgb=(128, 200, 210)), 20))
    assert measured is not None
    assert measured.colour is None


def test_a_single_frame_has_colour_and_shape_but_no_motion():
    scene = sample_scene(np.random.default_rng(0))
    measured = measure(render(scene, 1))
    assert measured is not None
    assert (measured.colour, measured.shape, measured.direction) == (scene.colour, scene.shape, None)


def test_a_few_lost_frames_are_tolerated_and_many_are_not(truth):
    scene, frames = truth[0][0], truth[1][0].copy()
    frames[::4] = frames[0, 0, 0]
    assert all(score(frames, scene).values())
    frames[1::2] = frames[0, 0, 0]
    assert measure(frames) is None


def test_measurement_does_not_depend_on_the_frame_size(truth):
    for scene in truth[0][:20]:
        assert all(score(render(scene, 34, size=128), scene).values())


def test_each_window_of_a_long_video_is_scored_against_its_own_prompt():
    first, second = prompts(2, np.random.default_rng(3), held_out=False)
    frames = np.concatenate([render(first, 240), render(second, 250)])
    scores = windows(frames, lambda frame: first if frame < 240 else second)
    assert len(scores) == 2
    assert all(all(s.values()) for s in scores)


def test_a_clip_with_a_switch_is_right_on_both_sides_of_it():
    clip = sample_clip(np.random.default_rng(7), 68, switch_probability=1.0)
    (_, before), (start, after) = clip.scenes
    frames = render_clip(clip)
    assert all(score(frames[:start], before).values())
    assert all(score(frames[start:], after).values())


@pytest.mark.parametrize("held_out", [True, False])
def test_prompts_are_balanced_and_keep_to_their_side(held_out: bool):
    scenes = prompts(18, np.random.default_rng(0), held_out)
    assert {s.combination in HELD_OUT for s in scenes} == {held_out}
    assert len({s.colour for s in scenes}) == 6
    assert max(sum(s.shape == shape for s in scenes) for shape in ("circle", "square", "triangle")) == 6
    assert [s.combination for s in scenes] == [s.combination for s in prompts(18, np.random.default_rng(0), held_out)]


def test_the_report_of_a_perfect_generator_says_all_is_right(tmp_path):
    rng = np.random.default_rng(0)
    scenes = prompts(3, rng, held_out=False) + prompts(3, rng, held_out=True)
    by_prompt = {canonical(scene): scene for scene in scenes}
    results = evaluate(lambda prompt, _seed: render(by_prompt[prompt], 34), scenes)
    runs = {Setting(steps=10, inject=True): results}
    assert set(rates(results).values()) == {1.0}
    assert table(runs).row_count == 3
    write_json(tmp_path / "out.json", runs, {"seed": 0})
    report = json.loads((tmp_path / "out.json").read_text())
    assert [p["held_out"] for p in report["runs"][0]["prompts"]] == [False] * 3 + [True] * 3
    write_sheet(tmp_path / "sheet.png", results)
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_the_report_counts_blank_videos_as_wrong():
    scenes = prompts(4, np.random.default_rng(0), held_out=False)
    results = evaluate(lambda _prompt, _seed: np.zeros((34, 64, 64, 3), np.uint8), scenes)
    assert set(rates(results).values()) == {0.0}


def test_approximations_asked_for_are_those_that_are_scored():
    asked = {"guidance_scale": 2.5, "guided_steps": 3, "reuse_latents": True}
    seen: list[Any] = []

    def generate(_prompt: str, options: Any, tokens: Any = None) -> SimpleNamespace:
        seen.append(options)
        return SimpleNamespace(frames=np.zeros((1, 64, 64, 3), np.uint8))

    args = argparse.Namespace(num_frames=68, seed=0, **asked)
    pipeline: Any = SimpleNamespace(generate=generate)
    _generator(pipeline, args, Setting(steps=10), None)("a red circle", 0)
    assert {name: getattr(seen[0], name) for name in asked} == asked
