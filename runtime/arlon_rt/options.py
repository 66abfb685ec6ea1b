"""What a user may ask for: the options of a generation and the timeline of its prompts, checked at the door."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from arlon_rt.config import ModelConfig
from arlon_rt.errors import OptionsError

MAX_FPS = 240.0
MAX_STEPS = 1000
MAX_FRAMES = 10_000_000
DEFAULTS: Mapping[str, Any] = {
    "num_inference_steps": 10, "guidance_scale": 7.0, "ar_guidance_scale": 1.0,
    "temperature": 1.0, "top_k": 100, "top_p": 0.95, "seed": 0, "negative_prompt": None,
}
"""Used for what neither the request nor the bundle's manifest says (spec 9)."""


class HasDefaults(Protocol):
    """The part of a bundle that options need."""

    @property
    def model(self) -> ModelConfig: ...

    @property
    def defaults(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """One request. ``None`` means the bundle's default."""

    num_frames: int | None = None
    """Length in frames; 1 is an image."""
    height: int | None = None
    """Height in pixels; frames come out rounded down to whole latents (8 pixels in Open-Sora: 426 gives 424)."""
    width: int | None = None
    fps: float | None = None
    """Frames a second, told to the diffusion transformer and written to the file."""
    num_inference_steps: int | None = None
    """Denoising steps a segment."""
    guidance_scale: float | None = None
    """Classifier-free guidance of the diffusion transformer; 1 turns it off and halves its work."""
    ar_guidance_scale: float | None = None
    """Classifier-free guidance of the token model; 1 turns it off."""
    temperature: float | None = None
    """Of token sampling; 0 takes the likeliest token."""
    top_k: int | None = None
    """Tokens to choose among; 0 is off, that is as many as the bundle's graph allows."""
    top_p: float | None = None
    """Probability mass to choose among, in (0, 1]; 1 is off."""
    seed: int | None = None
    negative_prompt: str | None = None
    """What guidance steers away from; blank: the learned null caption (diffusion) and the empty prompt (tokens)."""
    inject: bool | None = None
    """Whether tokens guide the diffusion transformer; ``False`` runs it alone, on a bundle with injection too."""

    def resolved(self, bundle: HasDefaults) -> ResolvedOptions:
        """Every option filled in and checked against what the bundle can do.

        Raises:
            OptionsError: an option cannot be used; the message names it, its value and what is allowed.
        """
        video = bundle.model.video
        values = {
            "num_frames": video.segment_frames, "height": video.height, "width": video.width, "fps": video.fps,
            "inject": bundle.model.injection is not None, **DEFAULTS,
        }
        if bundle.model.ar:
            values["top_k"] = min(values["top_k"], bundle.model.ar.max_top_k)
        values |= {name: value for name, value in bundle.defaults.items() if value is not None}
        for field in dataclasses.fields(self):
            if (asked := getattr(self, field.name)) is not None:
                values[field.name] = asked
        return _check(values, bundle.model)


@dataclass(frozen=True, kw_only=True)
class ResolvedOptions:
    """`GenerateOptions` with nothing left open; made by `GenerateOptions.resolved` alone."""

    num_frames: int
    height: int
    width: int
    fps: float
    num_inference_steps: int
    guidance_scale: float
    ar_guidance_scale: float
    temperature: float
    top_k: int
    """1 .. the graph's largest; 0 only where there is no token model."""
    top_p: float
    seed: int
    negative_prompt: str | None
    inject: bool


def _check(values: Mapping[str, Any], model: ModelConfig) -> ResolvedOptions:
    smallest = 2 * model.vae.space_stride
    max_height = model.video.max_height or model.video.height
    max_width = model.video.max_width or model.video.width
    negative = values["negative_prompt"]
    if negative is not None and not isinstance(negative, str):
        raise OptionsError(f"negative_prompt is {negative!r:.80}; text is expected")
    if not isinstance(values["inject"], bool):
        raise OptionsError(f"inject is {values['inject']!r:.80}; True or False is expected")
    if values["inject"] and model.injection is None:
        raise OptionsError("inject is True, but this bundle has no token model to inject from; leave inject out")
    return ResolvedOptions(
        num_frames=_integer("num_frames", values, 1, MAX_FRAMES, "1 is an image"),
        height=_integer("height", values, smallest, max_height),
        width=_integer("width", values, smallest, max_width),
        fps=_number("fps", values, 1, MAX_FPS),
        num_inference_steps=_integer("num_inference_steps", values, 1, MAX_STEPS, "10 is usual, 5 is fast"),
        guidance_scale=_number("guidance_scale", values, 0, 100, "1 is off"),
        ar_guidance_scale=_number("ar_guidance_scale", values, 0, 100, "1 is off"),
        temperature=_number("temperature", values, 0, 100, "0 takes the likeliest token"),
        top_k=_top_k(values, model),
        top_p=_number("top_p", values, 1e-6, 1, "1 is off"),
        seed=_integer("seed", values, 0, 2**63 - 1),
        negative_prompt=negative if negative and negative.strip() else None,
        inject=values["inject"],
    )


def _top_k(values: Mapping[str, Any], model: ModelConfig) -> int:
    if model.ar is None:
        return 0
    return _integer("top_k", values, 0, model.ar.max_top_k, "0 is off") or model.ar.max_top_k


def _integer(name: str, values: Mapping[str, Any], low: int, high: int | None = None, hint: str = "") -> int:
    value = values[name]
    try:
        number = operator.index(value)
    except TypeError:
        raise OptionsError(f"{name} is {value!r:.80}; a whole number is expected") from None
    if isinstance(value, bool) or number < low or (high is not None and number > high):
        raise OptionsError(f"{name} is {value!r:.80}; it must be {_range(low, high, hint)}")
    return number


def _number(name: str, values: Mapping[str, Any], low: float, high: float, hint: str = "") -> float:
    value = values[name]
    try:
        number = float(value) if not isinstance(value, bool | str) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not low <= number <= high:
        raise OptionsError(f"{name} is {value!r:.80}; it must be a number, {_range(low, high, hint)}")
    return number


def _range(low: float, high: float | None, hint: str) -> str:
    bounds = f"{low:g} or more" if high is None else f"{low} to {high}"
    return f"{bounds} ({hint})" if hint else bounds


@dataclass(frozen=True)
class Timeline:
    """Which prompt holds when: ``entries`` are (seconds, prompt), the first at 0, times rising."""

    entries: tuple[tuple[float, str], ...]

    def __post_init__(self) -> None:
        if not self.entries:
            raise OptionsError("prompts is empty; give at least one prompt")
        for seconds, prompt in self.entries:
            if not re.search(r"[^\W_]", prompt):
                raise OptionsError(f"prompt is {prompt!r:.80}; it must contain at least one word")
            if not math.isfinite(seconds):
                raise OptionsError(f"a prompt starts at {seconds} seconds; a finite time is expected")
        times = [seconds for seconds, _ in self.entries]
        if times[0] != 0:
            raise OptionsError(f"the first prompt starts at {times[0]:g} seconds; it must start at 0")
        if any(b <= a for a, b in itertools.pairwise(times)):
            raise OptionsError(f"prompts start at {', '.join(f'{t:g}' for t in times)} seconds; times must rise")

    @staticmethod
    def of(prompts: str | Iterable[tuple[float, str]] | Timeline) -> Timeline:
        """From one prompt, or from (seconds, prompt) pairs."""
        if isinstance(prompts, Timeline):
            return prompts
        pairs = [(0.0, prompts)] if isinstance(prompts, str) else list(prompts)
        return Timeline(tuple(_entry(pair) for pair in pairs))

    @staticmethod
    def parse(lines: Sequence[str]) -> Timeline:
        """From command-line arguments: ``SECONDS:PROMPT`` each, or one plain prompt."""
        split = [re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*:(.*)", line, re.DOTALL) for line in lines]
        if len(lines) == 1 and split[0] is None:
            return Timeline.of(lines[0])
        for line, found in zip(lines, split, strict=True):
            if found is None:
                raise OptionsError(f"prompt is {line!r:.80}; with several prompts each is SECONDS:PROMPT, as in '4:…'")
        return Timeline(tuple((float(m[1]), m[2].strip()) for m in split if m))

    @staticmethod
    def from_json(path: str | Path) -> Timeline:
        """From a JSON file: ``[{"seconds": 0, "prompt": "…"}, …]`` or ``[[0, "…"], …]``."""
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise OptionsError(f"prompts file {path} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise OptionsError(f"prompts file {path} is not JSON: {error}") from error
        if not isinstance(value, list):
            raise OptionsError(f'prompts file {path} must hold a list, as in [{{"seconds": 0, "prompt": "…"}}]')
        pairs = [(i.get("seconds"), i.get("prompt")) if isinstance(i, dict) else i for i in value]
        return Timeline(tuple(_entry(pair) for pair in pairs))

    def at(self, seconds: float) -> str:
        """The prompt that holds at a time of the video."""
        return [prompt for start, prompt in self.entries if start <= seconds][-1]


def _entry(pair: Any) -> tuple[float, str]:
    match pair:
        case (int() | float() as seconds, str() as prompt) if not isinstance(seconds, bool):
            return float(seconds), prompt
    raise OptionsError(f"prompts holds {pair!r:.80}; (seconds, prompt) is expected")
