"""Options are checked at the door, and errors say what to change."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from arlon_rt.config import ModelConfig
from arlon_rt.errors import OptionsError
from arlon_rt.options import GenerateOptions
from tiny_bundle import TINY, baseline_model

SCORED = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, prompt_suffix=" aesthetic score: 6.5."))


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
        ("negative_prompt", 5), ("aesthetic_score", 10.1), ("motion_score", -1), ("motion_score", "4"),
        ("camera_motion", 5), ("first_segment_frames", 16), ("first_segment_frames", 18), ("first_segment_frames", 85),
        ("reuse_velocity", -0.1), ("reuse_velocity", 101), ("reuse_velocity", math.nan), ("reuse_velocity", "0.1"),
        ("reuse_velocity", True),
    ],
)
def test_an_option_that_cannot_be_used_is_named_with_its_value(name: str, value: object) -> None:
    options = dataclasses.replace(GenerateOptions(), **{name: value})
    with pytest.raises(OptionsError, match=f"{name} is {str(value)[:6]}|{name} is '"):
        options.resolved(Described(model=SCORED))


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_frames", 1), ("height", 16), ("top_p", 1), ("temperature", 0), ("seed", np.int64(5)), ("fps", 23.976),
     ("first_segment_frames", 17), ("first_segment_frames", 68), ("reuse_velocity", 0), ("reuse_velocity", 100)],
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


def test_scores_are_left_to_the_bundle_unless_asked_for() -> None:
    usual = GenerateOptions().resolved(Described(model=SCORED))
    assert (usual.aesthetic_score, usual.motion_score, usual.camera_motion) == (None, None, None)
    asked = GenerateOptions(aesthetic_score=7, motion_score=4, camera_motion="pan right")
    resolved = asked.resolved(Described(model=SCORED))
    assert (resolved.aesthetic_score, resolved.motion_score, resolved.camera_motion) == (7, 4, "pan right")


@pytest.mark.parametrize(("name", "value"), [("aesthetic_score", 7), ("motion_score", 4), ("camera_motion", "left")])
def test_a_model_trained_without_scores_refuses_them(name: str, value: Any) -> None:
    with pytest.raises(OptionsError, match=f"{name} is '?{value}.*trained without scores; leave {name} out"):
        dataclasses.replace(GenerateOptions(), **{name: value}).resolved(Described())
