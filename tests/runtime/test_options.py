"""Options and timelines are checked at the door, and errors say what to change."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arlon_rt.config import ModelConfig
from arlon_rt.errors import OptionsError
from arlon_rt.options import GenerateOptions, Timeline
from tiny_bundle import TINY, baseline_model


@dataclass(frozen=True)
class Described:
    """What options need of a bundle."""

    model: ModelConfig = TINY
    defaults: Mapping[str, Any] = field(default_factory=dict)


def test_what_is_not_asked_for_comes_from_the_bundle() -> None:
    options = GenerateOptions(seed=3).resolved(Described(defaults={"num_frames": 34, "guidance_scale": 2.5}))
    assert (options.num_frames, options.guidance_scale, options.seed) == (34, 2.5, 3)
    assert (options.height, options.width, options.fps) == (32, 32, 24)


def test_what_is_asked_for_comes_before_the_bundle() -> None:
    assert GenerateOptions(num_frames=51).resolved(Described(defaults={"num_frames": 34})).num_frames == 51


def test_a_null_in_the_bundle_s_defaults_says_nothing() -> None:
    assert GenerateOptions().resolved(Described(defaults={"num_inference_steps": None})).num_inference_steps == 10


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_frames", 0), ("num_frames", 2.5), ("num_frames", True), ("height", 8), ("height", 40), ("width", 10**9),
        ("fps", 0), ("fps", math.nan), ("fps", "fast"), ("num_inference_steps", 0), ("num_inference_steps", 10**6),
        ("guidance_scale", -1), ("guidance_scale", math.inf), ("ar_guidance_scale", math.nan), ("temperature", -0.1),
        ("top_k", -1), ("top_k", 9), ("top_p", 0), ("top_p", 1.5), ("seed", -1), ("seed", 2**63), ("inject", 1),
        ("negative_prompt", 5),
    ],
)
def test_an_option_that_cannot_be_used_is_named_with_its_value(name: str, value: object) -> None:
    options = dataclasses.replace(GenerateOptions(), **{name: value})
    with pytest.raises(OptionsError, match=f"{name} is {str(value)[:6]}|{name} is '"):
        options.resolved(Described())


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_frames", 1), ("height", 16), ("top_p", 1), ("temperature", 0), ("seed", np.int64(5)), ("fps", 23.976)],
)
def test_the_edges_of_each_range_are_allowed(name: str, value: object) -> None:
    resolved = dataclasses.replace(GenerateOptions(), **{name: value}).resolved(Described())
    assert getattr(resolved, name) == value


def test_top_k_zero_means_as_many_as_the_graph_allows() -> None:
    assert GenerateOptions(top_k=0).resolved(Described()).top_k == TINY.ar.max_top_k


def test_the_usual_top_k_bows_to_a_graph_that_allows_fewer() -> None:
    assert GenerateOptions().resolved(Described()).top_k == TINY.ar.max_top_k


def test_a_blank_negative_prompt_is_none() -> None:
    assert GenerateOptions(negative_prompt=" ").resolved(Described()).negative_prompt is None


def test_a_baseline_bundle_injects_nothing_and_refuses_to() -> None:
    baseline = Described(model=baseline_model())
    assert GenerateOptions().resolved(baseline).inject is False
    with pytest.raises(OptionsError, match="inject is True"):
        GenerateOptions(inject=True).resolved(baseline)


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
