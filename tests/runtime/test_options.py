"""Options are declared once and checked at the door; errors say what to change, and a removed option is ignored."""

from __future__ import annotations

import ast
import dataclasses
import math
import typing
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arlon_rt.bundle import from_json
from arlon_rt.config import ModelConfig
from arlon_rt.errors import OptionsError
from arlon_rt.options import (
    OPTIONS,
    GenerateOptions,
    Option,
    RemovedOptionWarning,
    ResolvedOptions,
    json_schema,
    options_of,
)
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
    ],
)
def test_an_option_that_cannot_be_used_is_named_with_its_value(name: str, value: object) -> None:
    options = dataclasses.replace(GenerateOptions(), **{name: value})
    with pytest.raises(OptionsError, match=f"{name} is {str(value)[:6]}|{name} is '"):
        options.resolved(Described(model=SCORED))


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_frames", 1), ("height", 16), ("top_p", 1), ("temperature", 0), ("seed", np.int64(5)), ("fps", 23.976),
     ("first_segment_frames", 17), ("first_segment_frames", 68)],
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


# -- declared once ----------------------------------------------------------------------------------------------------

SHIPPED = [
    path for path in sorted(Path(__file__).parents[2].glob("*/arlon_*/**/*.py"))
    if path.parts[-2:] != ("arlon_rt", "options.py")
]
COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)


def declared_again(source: str) -> list[str]:
    """The flags, the defaults and the ranges of options that a source text states itself."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            texts = {value.value for value in [*node.args, *(k.value for k in node.keywords if k.arg == "dest")]
                     if isinstance(value, ast.Constant)}
            found += [f"flag of {n}" for n, o in OPTIONS.items() if texts & {n, *o.flags}]
        found += [f"default of {name}" for name, value in named_values(node)
                  if name in OPTIONS and value is not None and value == OPTIONS[name].default]
        if isinstance(node, ast.Compare) and any(isinstance(operation, COMPARISONS) for operation in node.ops):
            sides = [node.left, *node.comparators]
            bounds = [side.value for side in sides if isinstance(side, ast.Constant)]
            found += [f"range of {n}" for n in map(name_of, sides) if n in OPTIONS and is_range(bounds, OPTIONS[n])]
    return found


def named_values(node: ast.AST) -> list[tuple[Any, Any]]:
    """Names and their constant values, of a dict, a call, a function's defaults or an annotated variable."""
    pairs: list[tuple[Any, ast.AST | None]] = []
    if isinstance(node, ast.Dict):
        pairs = [(name_of(key), value) for key, value in zip(node.keys, node.values, strict=True)]
    elif isinstance(node, ast.Call):
        pairs = [(keyword.arg, keyword.value) for keyword in node.keywords]
    elif isinstance(node, ast.AnnAssign):
        pairs = [(name_of(node.target), node.value)]
    elif isinstance(node, ast.arguments):
        positional = [*node.posonlyargs, *node.args]
        pairs = [(a.arg, v) for a, v in zip(positional[::-1], node.defaults[::-1], strict=False)]
        pairs += [(a.arg, v) for a, v in zip(node.kwonlyargs, node.kw_defaults, strict=True)]
    return [(name, value.value) for name, value in pairs if isinstance(value, ast.Constant)]


def name_of(node: ast.AST | None) -> Any:
    """``seed`` of ``seed``, ``options.seed``, ``values["seed"]`` and ``"seed"``."""
    if isinstance(node, ast.Subscript):
        return name_of(node.slice)
    return getattr(node, "attr", None) or getattr(node, "id", None) or getattr(node, "value", None)


def is_range(bounds: list[Any], option: Option) -> bool:
    """Whether a comparison with these constants states the range: both its ends, or one that no other rule has."""
    ends = {option.low, option.high} - {None}
    return set(bounds) == ends if len(bounds) > 1 else bool(set(bounds) & ends - {0, 1})


def twice_taken(options: Mapping[str, Option]) -> list[str]:
    """Flags that two options have."""
    flags = [flag for option in options.values() for flag in option.flags]
    return [flag for flag in flags if flags.count(flag) > 1]


def test_no_option_is_declared_twice() -> None:
    assert twice_taken(OPTIONS) == []
    assert len(SHIPPED) > 100
    assert {str(path): again for path in SHIPPED if (again := declared_again(path.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize(("source", "again"), [
    ('parser.add_argument("--guidance-scale", type=float)', "flag of guidance_scale"),
    ('parser.add_argument("-n", dest="num_frames")', "flag of num_frames"),
    ('DEFAULTS = {"guidance_scale": 7}', "default of guidance_scale"),
    ("def draw(*, seed: int = 0): ...", "default of seed"),
    ("def draw(top_p=0.95): ...", "default of top_p"),
    ("class Sampling:\n    top_k: int = 100", "default of top_k"),
    ("request(num_inference_steps=10)", "default of num_inference_steps"),
    ("if not 0 <= options.guidance_scale <= 100: raise", "range of guidance_scale"),
    ('if values["num_inference_steps"] > 1000: raise', "range of num_inference_steps"),
])
def test_an_option_that_is_declared_twice_is_found(source: str, again: str) -> None:
    assert declared_again(source) == [again]


def test_a_rule_about_an_option_is_no_second_declaration() -> None:
    assert declared_again("if options.guided_steps > 0 and options.top_p < 1 and request(seed=5): ...") == []


def test_a_flag_of_two_options_is_found() -> None:
    assert twice_taken({**OPTIONS, "other": OPTIONS["seed"]}) == ["--seed", "--seed"]


def test_fields_are_of_the_kind_that_is_declared_and_resolved_in_the_same_order() -> None:
    asked, resolved = typing.get_type_hints(GenerateOptions), typing.get_type_hints(ResolvedOptions)
    assert list(resolved) == list(OPTIONS) == [name for name in asked if name != "REMOVED"]
    for name, option in OPTIONS.items():
        assert asked[name] == option.kind | None
        assert resolved[name] in (option.kind, option.kind | None)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("model", [TINY, SCORED, baseline_model()], ids=["tiny", "scored", "baseline"])
def test_the_json_schema_allows_what_the_checks_allow(name: str, model: ModelConfig) -> None:
    bundle = Described(model=model)
    schema = json_schema(bundle)["properties"]
    kind = {"integer": int, "number": float, "string": str, "boolean": bool}

    def accepted(value: object) -> bool:
        try:
            GenerateOptions(**{name: value}).resolved(bundle)
        except OptionsError:
            return False
        return True

    if name not in schema:
        assert not accepted({float: 1, str: "text"}[OPTIONS[name].kind])
        return
    stated = schema[name]
    assert kind[stated["type"]] is OPTIONS[name].kind
    assert accepted(stated.get("default"))
    if stated["type"] == "boolean":
        assert accepted(False)
        assert accepted(True) == ("const" not in stated)
    if "minimum" in stated:
        assert accepted(stated["minimum"])
        assert not accepted(stated["minimum"] - 1e-6 if stated["type"] == "number" else stated["minimum"] - 1)
    if "maximum" in stated:
        assert accepted(stated["maximum"])
        assert not accepted(stated["maximum"] + stated.get("multipleOf", 1))
    if "multipleOf" in stated:
        assert not accepted(stated["maximum"] - 1)


def test_the_schema_has_the_bundle_s_defaults_and_no_other_options() -> None:
    schema = json_schema(Described(defaults={"guidance_scale": 2.5}))
    assert schema["properties"]["guidance_scale"]["default"] == 2.5
    assert schema["properties"]["height"] | {"description": ""} == {
        "type": "integer", "description": "", "minimum": 16, "maximum": 32, "default": 32,
    }
    assert schema["additionalProperties"] is False
    assert set(OPTIONS) - set(schema["properties"]) == {"aesthetic_score", "motion_score", "camera_motion"}


def test_a_bundle_s_options_say_why_one_cannot_be_used() -> None:
    scores, inject = (options_of(Described(model=baseline_model()))[name] for name in ("motion_score", "inject"))
    assert scores.values_in_words() == "none: this bundle's model was trained without scores"
    assert inject.values_in_words() == "off: this bundle has no token model to inject from"


# -- removed ----------------------------------------------------------------------------------------------------------


def test_a_removed_option_is_ignored_with_a_warning() -> None:
    message = r"reuse_velocity was removed and is ignored; use fewer denoising steps \(num_inference_steps, --steps\)"
    with pytest.warns(RemovedOptionWarning, match=message) as said:
        options = GenerateOptions(seed=3, reuse_velocity=0.1)
    assert said[0].filename == __file__
    assert options == GenerateOptions(seed=3)
    assert "reuse_velocity" not in dataclasses.asdict(options)
    with pytest.warns(RemovedOptionWarning):
        assert dataclasses.replace(options, reuse_velocity=0.1) == options
    assert issubclass(RemovedOptionWarning, DeprecationWarning)


def test_a_removed_option_without_a_value_is_ignored_in_silence() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert GenerateOptions(reuse_velocity=None) == GenerateOptions()


def test_a_bundle_whose_defaults_name_a_removed_option_is_read() -> None:
    with pytest.warns(RemovedOptionWarning):
        assert from_json(GenerateOptions, {"seed": 3, "reuse_velocity": 0.1}, "defaults") == GenerateOptions(seed=3)
    assert GenerateOptions().resolved(Described(defaults={"reuse_velocity": 0.1})) == GenerateOptions().resolved(
        Described()
    )


def test_an_option_that_never_was_is_an_error() -> None:
    with pytest.raises(TypeError, match="colour"):
        GenerateOptions(colour="red")
