"""What may be asked of a generation: each option declared once, and checked before any work begins."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from arlon_rt.config import ModelConfig
from arlon_rt.errors import OptionsError, RemovedOptionWarning

BUNDLES = "the bundle's"
KINDS = {
    int: ("integer", "whole number"), float: ("number", "number"), str: ("string", "text"),
    bool: ("boolean", "on or off"),
}
"""Type of an option -> its name in a JSON schema, and in words."""


class HasDefaults(Protocol):
    """The part of a bundle that options need."""

    @property
    def model(self) -> ModelConfig: ...

    @property
    def defaults(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class Option:
    """All that is known of one option, beside its name.

    The command's flags and help, the checks and their messages, the JSON schema and docs/options.md follow from it.
    """

    kind: type
    flags: tuple[str, ...]
    """The command's. A switch that begins with ``--no-`` turns the option off, any other turns it on."""
    help: str
    metavar: str | None = None
    low: float | None = None
    high: float | None = None
    multiple_of: int | None = None
    hint: str = ""
    """Follows the range in error messages."""
    default: Any = None
    """Used where neither the request nor the bundle's manifest has a value (docs/spec.md 9)."""
    unset: str = "none"
    """What the default ``None`` means, in words."""
    refused: str = ""
    """Why a bundle cannot take the option; empty: it can."""
    of_model: Callable[[ModelConfig], Mapping[str, Any]] = lambda model: {}
    """The fields above that follow from a model's configuration."""

    def default_in_words(self) -> str:
        """The default, e.g. ``10``, ``off`` or ``the bundle's``."""
        if self.kind is bool and self.default is not None:
            return "on" if self.default else "off"
        if self.refused:
            return "none"
        return self.unset if self.default is None else str(self.default)

    def values_in_words(self) -> str:
        """What the option may be, e.g. ``whole number, 1 to 1000``."""
        words = KINDS[self.kind][1]
        if self.refused:
            return f"{'off' if self.kind is bool else 'none'}: {self.refused}"
        if self.kind in (bool, str):
            return words
        steps = f" in steps of {self.multiple_of}" if self.multiple_of else ""
        return f"{words}, {BUNDLES} range" if self.low is None else f"{words}, {self._range()}{steps}"

    def checked(self, name: str, value: Any) -> Any:
        """The value as `kind`; ``None`` for ``None`` and for a blank text.

        Raises:
            OptionsError: the value is of another type or out of range, or the bundle cannot take the option.
        """
        if value is None:
            return None
        if self.refused and value is not False:
            raise OptionsError(f"{name} is {value!r:.80}, but {self.refused}; leave {name} out")
        if self.kind in (bool, str):
            if not isinstance(value, self.kind):
                expected = "True or False" if self.kind is bool else "text"
                raise OptionsError(f"{name} is {value!r:.80}; {expected} is expected")
            return None if isinstance(value, str) and not value.strip() else value
        try:
            number = operator.index(value) if self.kind is int else float(math.nan if isinstance(value, str) else value)
        except (TypeError, ValueError, OverflowError):
            if self.kind is int:
                raise OptionsError(f"{name} is {value!r:.80}; a whole number is expected") from None
            number = math.nan   # in no range
        assert self.low is not None
        if isinstance(value, bool) or not self.low <= number <= (math.inf if self.high is None else self.high):
            what, hint = "" if self.kind is int else "a number, ", f" ({self.hint})" if self.hint else ""
            raise OptionsError(f"{name} is {value!r:.80}; it must be {what}{self._range()}{hint}")
        if self.multiple_of and self.high and number % self.multiple_of:
            allowed = ", ".join(map(str, range(self.multiple_of, int(self.high) + 1, self.multiple_of)))
            raise OptionsError(f"{name} is {number}; it must be one of {allowed}")
        return number

    def schema(self) -> dict[str, Any]:
        """The option as a property of a JSON schema."""
        stated = {"minimum": self.low, "maximum": self.high, "multipleOf": self.multiple_of, "default": self.default}
        unset = "" if self.default is not None else f" Default: {self.unset}."
        return {
            "type": KINDS[self.kind][0], "description": self.help + unset,
            **({"const": False} if self.refused else {}), **{k: v for k, v in stated.items() if v is not None},
        }

    def _range(self) -> str:
        return f"{self.low} or more" if self.high is None else f"{self.low} to {self.high}"


def option(kind: type, *flags: str, **declared: Any) -> Any:
    """A field of `GenerateOptions`, with its `Option`."""
    return field(default=None, metadata={"option": Option(kind=kind, flags=flags, **declared)})


def accepting_removed(kind: Any) -> Any:
    """The dataclass; its constructor also takes the options in ``kind.REMOVED``, and ignores them with a warning."""
    init = kind.__init__

    @functools.wraps(init)
    def __init__(self: Any, **values: Any) -> None:
        for name, instead in kind.REMOVED.items():
            if values.pop(name, None) is not None:
                warnings.warn(f"{name} was removed and is ignored; {instead}", RemovedOptionWarning, stacklevel=2)
        init(self, **values)

    kind.__init__ = __init__
    return kind


def _top_k(model: ModelConfig) -> dict[str, Any]:
    most = model.ar.max_top_k if model.ar else None
    return {"high": most, "default": min(OPTIONS["top_k"].default, most or 0)}


def _scores(model: ModelConfig) -> dict[str, Any]:
    return {"refused": "" if model.text.prompt_suffix else "this bundle's model was trained without scores"}


@accepting_removed
@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """One request. ``None`` means the bundle's default; ``arlon-rt options`` lists every field."""

    REMOVED: ClassVar[Mapping[str, str]] = {
        "reuse_velocity": "use fewer denoising steps (num_inference_steps, --steps)",
    }
    """Options that the next release will not know any more -> what to do instead."""

    num_frames: int | None = option(
        int, "--num-frames", metavar="N", low=1, high=10_000_000, hint="1 is an image", unset=BUNDLES,
        help="Length of the video in frames; 1 is an image.",
        of_model=lambda model: {"default": model.video.segment_frames},
    )
    height: int | None = option(
        int, "--height", metavar="PIXELS", unset=BUNDLES,
        help="Height of a frame. Frames come out rounded down to whole latents: 8 pixels in Open-Sora, 426 gives 424.",
        of_model=lambda model: {
            "default": model.video.height, "low": 2 * model.vae.space_stride, "high": model.video.largest[0],
        },
    )
    width: int | None = option(
        int, "--width", metavar="PIXELS", unset=BUNDLES, help="Width of a frame, rounded like the height.",
        of_model=lambda model: {
            "default": model.video.width, "low": 2 * model.vae.space_stride, "high": model.video.largest[1],
        },
    )
    first_segment_frames: int | None = option(
        int, "--first-segment-frames", metavar="N", unset=BUNDLES,
        help="Length of the first segment, in whole chunks of the video autoencoder. A shorter one shows its first "
             "frames sooner, and changes the rest of the video.",
        of_model=lambda model: {
            "default": model.video.segment_frames, "low": model.vae.chunk_frames, "high": model.video.segment_frames,
            "multiple_of": model.vae.chunk_frames,
        },
    )
    fps: float | None = option(
        float, "--fps", metavar="F", low=1, high=240, unset=BUNDLES,
        help="Frames a second, of the file and as the model reads it.",
        of_model=lambda model: {"default": model.video.fps},
    )
    num_inference_steps: int | None = option(
        int, "--steps", "--num-inference-steps", metavar="N", low=1, high=1000, hint="10 is usual, 5 is fast",
        default=10, help="Denoising steps of a segment; fewer is faster.",
    )
    guidance_scale: float | None = option(
        float, "--guidance-scale", metavar="X", low=0, high=100, hint="1 is off", default=7.0,
        help="How closely frames follow the prompt: classifier-free guidance of the diffusion transformer. 1 turns it "
             "off and halves the work.",
    )
    ar_guidance_scale: float | None = option(
        float, "--ar-guidance-scale", metavar="X", low=0, high=100, hint="1 is off", default=1.0,
        help="How closely drafted tokens follow the prompt: classifier-free guidance of the token model. 1 turns it "
             "off.",
    )
    temperature: float | None = option(
        float, "--temperature", metavar="X", low=0, high=100, hint="0 takes the likeliest token", default=1.0,
        help="Variety of the drafted tokens; 0 takes the likeliest token.",
    )
    top_k: int | None = option(
        int, "--top-k", metavar="N", low=0, hint="0 is off", default=100, of_model=_top_k,
        help="Each token is drawn from the N likeliest; 0 is as many as the bundle's graph allows.",
    )
    top_p: float | None = option(
        float, "--top-p", metavar="P", low=1e-6, high=1, hint="1 is off", default=0.95,
        help="Each token is drawn from the likeliest that together have this probability; 1 is off.",
    )
    seed: int | None = option(
        int, "--seed", metavar="N", low=0, high=2**63 - 1, default=0, help="The same seed gives the same video."
    )
    negative_prompt: str | None = option(
        str, "--negative-prompt", metavar="TEXT",
        help="What guidance steers away from. Blank: the learned null caption (diffusion transformer) and the empty "
             "prompt (token model).",
    )
    aesthetic_score: float | None = option(
        float, "--aesthetic-score", metavar="X", low=0, high=10, hint="6.5 is usual", of_model=_scores,
        unset=f"{BUNDLES}, 6.5 in Open-Sora",
        help="Score appended to each prompt that has none itself, for models that were trained with scores.",
    )
    motion_score: float | None = option(
        float, "--motion-score", metavar="X", low=0, high=100, hint="higher is more", of_model=_scores,
        help="How much moves, appended to the prompt likewise; higher is more.",
    )
    camera_motion: str | None = option(
        str, "--camera-motion", metavar="TEXT", of_model=_scores,
        help="How the camera moves, e.g. 'pan right', appended to the prompt likewise.",
    )
    inject: bool | None = option(
        bool, "--no-injection", unset=BUNDLES,
        help="The drafted tokens guide the diffusion transformer; without, it denoises from the prompt alone.",
        of_model=lambda model: {
            "default": model.injection is not None,
            "refused": "" if model.injection else "this bundle has no token model to inject from",
        },
    )
    guided_steps: int | None = option(
        int, "--guided-steps", metavar="N", low=0, high=1000, unset="all steps",
        help="Only the first N denoising steps of a segment are guided: faster, approximate.",
    )
    reuse_latents: bool | None = option(
        bool, "--reuse-latents", default=False,
        help="A segment goes on from the last latents as they were denoised, not from the last frames, which are "
             "encoded again: faster, approximate.",
    )

    def resolved(self, bundle: HasDefaults) -> ResolvedOptions:
        """Every option with a value, checked against what the bundle can do.

        Raises:
            OptionsError: an option cannot be used; the message names it, its value and what is allowed.
        """
        values = {}
        for name, declared in options_of(bundle).items():
            asked = getattr(self, name)
            values[name] = declared.checked(name, declared.default if asked is None else asked)
        model, steps = bundle.model, values["num_inference_steps"]
        values["top_k"] = (values["top_k"] or model.ar.max_top_k) if model.ar else 0
        values["guided_steps"] = steps if values["guided_steps"] is None else min(values["guided_steps"], steps)
        return ResolvedOptions(**values)


@dataclass(frozen=True, kw_only=True)
class ResolvedOptions:
    """`GenerateOptions` as `GenerateOptions.resolved` leaves them; ``None`` only where there is nothing to say.

    ``top_k`` is 0 only where there is no token model, and ``guided_steps`` at most ``num_inference_steps``.
    """

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
    top_p: float
    seed: int
    negative_prompt: str | None
    aesthetic_score: float | None
    motion_score: float | None
    camera_motion: str | None
    inject: bool
    guided_steps: int
    reuse_latents: bool


OPTIONS: Mapping[str, Option] = {f.name: f.metadata["option"] for f in dataclasses.fields(GenerateOptions)}
"""The declaration of each option."""


def options_of(bundle: HasDefaults) -> dict[str, Option]:
    """Each option with the limits and the default that it has in this bundle."""
    found = {}
    for name, declared in OPTIONS.items():
        changes = dict(declared.of_model(bundle.model))
        if (stated := bundle.defaults.get(name)) is not None:
            changes["default"] = stated
        found[name] = dataclasses.replace(declared, **changes)
    return found


def json_schema(bundle: HasDefaults) -> dict[str, Any]:
    """A JSON Schema (2020-12) of the requests that this bundle can take; options that it refuses are left out."""
    options = options_of(bundle)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "GenerateOptions", "type": "object",
        "properties": {n: o.schema() for n, o in options.items() if o.kind is bool or not o.refused},
        "additionalProperties": False,
    }
