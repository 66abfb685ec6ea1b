"""Timelines of prompts: in seconds, in Open-Sora's segments, and what is wrong with them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from arlon_rt.errors import OptionsError
from arlon_rt.segments import plan
from arlon_rt.timeline import Timeline
from tiny_bundle import TINY


def test_a_timeline_answers_with_the_latest_prompt_that_has_begun() -> None:
    timeline = Timeline.of([(0, "a red circle"), (4, "a blue square")])
    assert [timeline.at(t) for t in (0, 3.9, 4, 100)] == ["a red circle"] * 2 + ["a blue square"] * 2


def test_a_timeline_is_read_from_a_prompt_from_arguments_and_from_json(tmp_path: Path) -> None:
    pairs = [(0.0, "a red circle"), (4.5, "a blue square: still")]
    objects, lists = tmp_path / "objects.json", tmp_path / "lists.json"
    objects.write_text(json.dumps([{"seconds": s, "prompt": p} for s, p in pairs]))
    lists.write_text(json.dumps(pairs))
    wanted = Timeline.of(pairs)
    assert Timeline.parse(["0:a red circle", "4.5: a blue square: still"]) == wanted
    assert Timeline.from_json(objects) == wanted
    assert Timeline.from_json(lists) == wanted
    assert Timeline.parse(["a red circle"]) == Timeline.of("a red circle")
    assert Timeline.of(wanted) is wanted


@pytest.mark.parametrize("prompt", ["", "   ", "...", "_", "\n"])
def test_a_prompt_without_a_word_is_refused(prompt: str) -> None:
    with pytest.raises(OptionsError, match="at least one word"):
        Timeline.of(prompt)


@pytest.mark.parametrize(
    ("pairs", "problem"),
    [
        ([], "empty"), ([(1, "a")], "must start at 0"), ([(0, "a"), (0, "b")], "must rise"),
        ([(0, "a"), (math.nan, "b")], "finite"), ([("0", "a")], "seconds, prompt"), ([(0, "a", 1)], "seconds, prompt"),
    ],
)
def test_a_timeline_that_makes_no_sense_is_refused(pairs: Any, problem: str) -> None:
    with pytest.raises(OptionsError, match=problem):
        Timeline.of(pairs)


def test_several_arguments_must_each_say_when() -> None:
    with pytest.raises(OptionsError, match="SECONDS:PROMPT"):
        Timeline.parse(["0:a red circle", "a blue square"])


@pytest.mark.parametrize("content", ["{", '"a"', '[{"prompt": "a"}]', "[[0]]", "[]"])
def test_a_prompts_file_that_cannot_be_used_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "story.json"
    path.write_text(content)
    with pytest.raises(OptionsError, match="prompts"):
        Timeline.from_json(path)


def test_a_prompts_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match=r"story\.json cannot be read"):
        Timeline.from_json(tmp_path / "story.json")


def test_the_numbers_of_open_sora_s_syntax_are_segments() -> None:
    timeline = Timeline.of("|0| a red circle |6|a blue square |13| the end")
    assert timeline == Timeline(((0, "a red circle"), (6, "a blue square"), (13, "the end")), "segment")
    assert Timeline.of("\n | 0 | a red circle |6| a blue square|13|the end ") == timeline
    assert Timeline.parse(["|0| a red circle"]) == Timeline(((0, "a red circle"),), "segment")


@pytest.mark.parametrize("fps", [24.0, 23.976, 7.0])
def test_segment_6_and_later_get_the_prompt_of_segment_6(fps: float) -> None:
    segments = plan(731, TINY)   # the paper's 14 segments: 68 frames, then 51 each
    timeline = Timeline.of("|0| a |6| b |7| c").in_seconds(segments, fps)
    assert timeline.entries == ((0, "a"), ((68 + 5 * 51) / fps, "b"), ((68 + 6 * 51) / fps, "c"))
    assert [timeline.at(s.middle(fps)) for s in segments] == ["a"] * 6 + ["b"] + ["c"] * 7


def test_a_short_last_segment_gets_its_prompt_too() -> None:
    segments = plan(69, TINY)   # the second segment is a single frame
    timeline = Timeline.of("|0| a |1| b").in_seconds(segments, 24)
    assert [timeline.at(s.middle(24)) for s in segments] == ["a", "b"]


@pytest.mark.parametrize("prompt", ["a | b", "a red circle |6| moves", "0| a |6| b", "|a| b", "| |0| b", "|0 a"])
def test_a_prompt_that_merely_holds_a_bar_is_left_alone(prompt: str) -> None:
    assert Timeline.of(prompt) == Timeline(((0, prompt),))


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ("|1| a", "first prompt starts at segment 1; it must start at 0"),
        ("|0| a |6| b |3| c", "segment 0, segment 6, segment 3; they must rise"),
        ("|0| a |0| b", "must rise"), ("|0| a |6|", "prompt at segment 6 is ''"), ("|0| |6| b", "at segment 0 is ''"),
        ("|0|", "at least one word"), (f"|0| a |{400 * '9'}| b", "finite"),
    ],
)
def test_segments_that_make_no_sense_are_refused(prompt: str, problem: str) -> None:
    with pytest.raises(OptionsError, match=problem):
        Timeline.of(prompt)


@pytest.mark.parametrize("prompt", ["|0| a |3| b", "|0| a |2| b |14| a"])
def test_a_segment_beyond_the_video_is_refused(prompt: str) -> None:
    with pytest.raises(OptionsError, match=r"at segment (3|14) would never be shown.*begin at 0\.00, 2\.83, 4\.96 sec"):
        Timeline.of(prompt).in_seconds(plan(170, TINY), 24)
