"""Long video measured: joins of segments, stories whose prompt changes, and the moving pictures made of them."""

import numpy as np
import pytest
from PIL import Image

from demo.gallery import mosaic, write_gif
from demo.long import Story, joins, off_colour
from demo.measure import positions
from demo.scene import Combination, sample_scene
from demo.score import both_kinds, donors
from demo.world import render

STARTS = [68, 119, 170]
SIDE = 64.0


@pytest.mark.parametrize("seed", range(12))
def test_positions_are_those_of_the_world_to_a_fifth_of_a_pixel(seed: int):
    scene = sample_scene(np.random.default_rng(seed))
    x, y = positions(render(scene, 80))
    for measured, true in zip((x, y), scene.centre(np.arange(80.0)), strict=True):
        assert np.abs((measured - true + SIDE / 2) % SIDE - SIDE / 2).max() < 0.2


def test_frames_that_show_nothing_have_no_position():
    frames = render(sample_scene(np.random.default_rng(3)), 6)
    frames[2:4] = 12
    np.testing.assert_array_equal(np.isnan(positions(frames)[0]), [False, False, True, True, False, False])


@pytest.mark.parametrize("seed", range(12))
def test_a_video_without_seams_has_none(seed: int):
    found = joins(render(sample_scene(np.random.default_rng(seed)), 221), STARTS)
    assert found.lost == 0
    assert len(found.steps) == 3
    assert found.steps.max() <= 1.5
    assert found.changes.max() <= 2


def test_a_jump_a_flash_and_a_gap_are_found():
    scene = next(s for s in map(sample_scene, map(np.random.default_rng, range(50))) if s.speed == "fast")
    frames = render(scene, 221)
    frames[68:] = np.roll(frames[68:], 4, (1, 2))
    frames[119:] = np.clip(frames[119:].astype(int) + 40, 0, 255)
    frames[170] = 12
    found = joins(frames, STARTS)
    assert found.steps[0] > 1.5
    assert found.changes[1] > 2
    assert found.lost == 1


def test_a_flash_of_another_colour_is_seen_in_its_window_alone():
    red = render(sample_scene(np.random.default_rng(0), Combination("red", "circle", "right")), 480)
    yellow = render(sample_scene(np.random.default_rng(0), Combination("yellow", "circle", "right")), 480)
    flashing = red.copy()
    flashing[20:44] = yellow[20:44]
    assert off_colour(red).tolist() == [0, 0]
    assert off_colour(flashing).tolist() == pytest.approx([0.1, 0])
    assert off_colour(np.zeros_like(red)).tolist() == [1, 1]


def test_a_story_changes_every_20_seconds_and_leaves_the_background_unsaid():
    scene = both_kinds(2, 5)[0]
    story = Story.of(scene, 60, 5, switch=True)
    prompts = story.prompts()
    assert [start for start, _ in prompts] == [0, 20, 40]
    assert "background" in prompts[0][1]
    assert not any("background" in words for _, words in prompts[1:])
    assert story.at(0) == scene
    assert story.at(480) != scene
    assert story.at(480).background == scene.background
    assert Story.of(scene, 60, 5, switch=False).prompts() == [prompts[0]]


def test_donors_move_another_way():
    scenes = both_kinds(16, 2)
    assert all(a.direction != b.direction for a, b in zip(scenes, donors(scenes), strict=True))
    with pytest.raises(ValueError, match="ask for more prompts"):
        donors(scenes[:1])


def test_the_gallery_is_a_gif_of_all_videos(tmp_path):
    videos = [render(s, 5) for s in both_kinds(4, 1)]
    pages = mosaic(videos, ["a caption of some length that needs two lines"] * 4)
    write_gif(tmp_path / "g.gif", pages, 12)
    with Image.open(tmp_path / "g.gif") as gif:
        assert gif.n_frames == 5
        assert gif.size == (pages[0].shape[1], pages[0].shape[0])
        gif.seek(4)
        shown = np.asarray(gif.convert("RGB")).astype(int)
    assert np.abs(shown - pages[4]).mean() < 6
