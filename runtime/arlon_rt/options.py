"""What a user may ask for: the options of a generation, checked at the door."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from arlon_rt.config import ModelConfig
from arlon_rt.errors import OptionsError

MAX_FPS = 240.0
MAX_STEPS = 1000
MAX_FRAMES = 10_000_000
DEFAULTS: Mapping[str, Any] = {
    "num_inference_steps": 10, "guidance_scale": 7.0, "ar_guidance_scale": 1.0,
    "temperature": 1.0, "top_k": 100, "top_p": 0.95, "seed": 0, "negative_prompt": None,
    "aesthetic_score": None, "motion_score": None, "camera_motion": None,
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
    first_segment_frames: int | None = None
    """Length of the first segment, whole chunks of the video autoencoder: a shorter one shows its first frames sooner,
    and the rest of the video comes out another."""
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
    aesthetic_score: float | None = None
    """0 to 10, told to the model after each prompt that names none itself; left out: the bundle's, 6.5 in Open-Sora."""
    motion_score: float | None = None
    """Likewise, how much moves; left out: nothing is said."""
    camera_motion: str | None = None
    """Likewise, how the camera moves, e.g. ``"pan right"``."""
    inject: bool | None = None
    """Whether tokens guide the diffusion transformer; ``False`` runs it alone, on a bundle with injection too."""
    guided_steps: int | None = None
    """Denoising steps of a segment with guidance, the first ones; an approximation that saves half of the others' work.
    Left out: all of them."""
    reuse_latents: bool | None = None
    """Whether a segment goes on from the last latents as they were denoised, instead of from the last frames, encoded:
    an approximation that saves an encoding and waits for no decoding. Left out: from the frames, as published."""
    reuse_velocity: float | None = None
    """Denoising steps are taken with the last velocity while it is expected to have changed by less than this part,
    e.g. 0.1: an approximation that saves the transformer's work of those steps. Left out: every step is computed."""

    def resolved(self, bundle: HasDefaults) -> ResolvedOptions:
        """Every option filled in and checked against what the bundle can do.

        Raises:
            OptionsError: an option cannot be used; the message names it, its value and what is allowed.
        """
        video = bundle.model.video
        values = {
            "num_frames": video.segment_frames, "height": video.height, "width": video.width, "fps": video.fps,
            "first_segment_frames": video.segment_frames,
            "inject": bundle.model.injection is not None, "guided_steps": None, "reuse_latents": False,
            "reuse_velocity": None, **DEFAULTS,
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
    first_segment_frames: int
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
    aesthetic_score: float | None
    """``None``: what `TextConfig.prompt_suffix` says."""
    motion_score: float | None
    camera_motion: str | None
    inject: bool
    guided_steps: int
    """0 .. num_inference_steps."""
    reuse_latents: bool
    reuse_velocity: float | None


def _check(values: Mapping[str, Any], model: ModelConfig) -> ResolvedOptions:
    smallest = 2 * model.vae.space_stride
    highest, widest = model.video.largest
    _check_scores(values, model)
    for name in ("inject", "reuse_latents"):
        if not isinstance(values[name], bool):
            raise OptionsError(f"{name} is {values[name]!r:.80}; True or False is expected")
    if values["inject"] and model.injection is None:
        raise OptionsError("inject is True, but this bundle has no token model to inject from; leave inject out")
    steps = _integer("num_inference_steps", values, 1, MAX_STEPS, "10 is usual, 5 is fast")
    guided = steps if values["guided_steps"] is None else _integer("guided_steps", values, 0, MAX_STEPS)
    return ResolvedOptions(
        num_frames=_integer("num_frames", values, 1, MAX_FRAMES, "1 is an image"),
        height=_integer("height", values, smallest, highest),
        width=_integer("width", values, smallest, widest),
        first_segment_frames=_first_segment_frames(values, model),
        fps=_number("fps", values, 1, MAX_FPS),
        num_inference_steps=steps,
        guidance_scale=_number("guidance_scale", values, 0, 100, "1 is off"),
        ar_guidance_scale=_number("ar_guidance_scale", values, 0, 100, "1 is off"),
        temperature=_number("temperature", values, 0, 100, "0 takes the likeliest token"),
        top_k=_top_k(values, model),
        top_p=_number("top_p", values, 1e-6, 1, "1 is off"),
        seed=_integer("seed", values, 0, 2**63 - 1),
        negative_prompt=_text("negative_prompt", values),
        aesthetic_score=_optional("aesthetic_score", values, 10, "6.5 is usual"),
        motion_score=_optional("motion_score", values, 100, "higher is more"),
        camera_motion=_text("camera_motion", values),
        inject=values["inject"],
        guided_steps=min(guided, steps),
        reuse_latents=values["reuse_latents"],
        reuse_velocity=_optional("reuse_velocity", values, 100, "0.1 is usual"),
    )


def _first_segment_frames(values: Mapping[str, Any], model: ModelConfig) -> int:
    chunk, whole = model.vae.chunk_frames, model.video.segment_frames
    number = _integer("first_segment_frames", values, chunk, whole)
    if number % chunk:
        sizes = ", ".join(map(str, range(chunk, whole + 1, chunk)))
        raise OptionsError(f"first_segment_frames is {number}; it must be one of {sizes}")
    return number


def _check_scores(values: Mapping[str, Any], model: ModelConfig) -> None:
    for name in ("aesthetic_score", "motion_score", "camera_motion"):
        if values[name] is not None and not model.text.prompt_suffix:
            raise OptionsError(
                f"{name} is {values[name]!r:.80}, but this bundle's model was trained without scores; leave {name} out"
            )


def _optional(name: str, values: Mapping[str, Any], high: float, hint: str) -> float | None:
    return None if values[name] is None else _number(name, values, 0, high, hint)


def _text(name: str, values: Mapping[str, Any]) -> str | None:
    """``None`` where it is blank."""
    value = values[name]
    if value is not None and not isinstance(value, str):
        raise OptionsError(f"{name} is {value!r:.80}; text is expected")
    return value if value and value.strip() else None


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
