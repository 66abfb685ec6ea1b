"""Optimisation profiles: the axis ranges of graphs.py, narrowed to the requested sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from arlon_rt.bundle import ANY_SIZE, EngineProfile
from arlon_rt.config import ModelConfig
from arlon_rt.errors import OptionsError
from arlon_rt.graphs import TensorSpec, graph_specs

Ranges = Mapping[str, tuple[int, int, int]]
Bound = Literal["min", "opt", "max"]
_SPACE = frozenset({
    "latent_height", "latent_width", "height", "width", "code_height", "code_width", "coarse_height", "coarse_width",
    "patches",
})
"""Axes that follow from the frame size. Axes in time stay ranges, because a video's last segment is shorter."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """A frame size and the length of the longest segment, as in ``--profile 512x512x68``."""

    width: int
    height: int
    frames: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.frames}"

    def narrowed(self, c: ModelConfig) -> ModelConfig:
        """The configuration of a bundle of this size alone."""
        return c.narrowed(height=self.height, width=self.width, segment_frames=self.frames)


def parse_size(text: str, c: ModelConfig) -> Size:
    """The size that ``WIDTHxHEIGHTxFRAMES`` names.

    Raises:
        OptionsError: the text has another form, or the bundle does not allow this size.
    """
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})x(\d{1,6})", text)
    if not found:
        raise OptionsError(f"profile is {text!r:.80}; WIDTHxHEIGHTxFRAMES is expected, e.g. 512x512x68")
    size = Size(width=int(found[1]), height=int(found[2]), frames=int(found[3]))
    video = c.video
    smallest = 2 * c.vae.space_stride
    highest, widest = video.largest
    if not (smallest <= size.width <= widest and smallest <= size.height <= highest):
        raise OptionsError(
            f"profile is {text}; this bundle makes pictures of {smallest}x{smallest} to {widest}x{highest} pixels"
        )
    if not 1 <= size.frames <= video.segment_frames:
        raise OptionsError(
            f"profile is {text}; a segment has 1 to {video.segment_frames} frames, and longer video is made of segments"
        )
    return size


def profile_name(sizes: Sequence[Size]) -> str:
    """The name of the profile in an engine's identity; the order of the sizes does not matter."""
    ordered = sorted(sizes, key=lambda s: (s.width, s.height, s.frames))
    return "_".join(dict.fromkeys(map(str, ordered))) or ANY_SIZE


def profiles_of(c: ModelConfig, graph: str, sizes: Sequence[Size]) -> tuple[EngineProfile, ...]:
    """The profiles of one graph: one for each size, or one with the full ranges. Equal ones are dropped."""
    named = {str(size): _ranges(size.narrowed(c), graph, exact=True) for size in sizes}
    profiles: list[EngineProfile] = []
    for name, ranges in (named or {ANY_SIZE: _ranges(c, graph, exact=False)}).items():
        for part, narrowed in _parts(graph, ranges).items():
            profile = EngineProfile(name=" ".join(filter(None, (name, part))), ranges=narrowed)
            if all(profile.ranges != p.ranges for p in profiles):
                profiles.append(profile)
    return tuple(profiles)


def shape(tensor: TensorSpec, profile: EngineProfile, bound: Bound) -> tuple[int, ...]:
    """The tensor's smallest, best or largest shape in a profile."""
    place = ("min", "opt", "max").index(bound)
    return tuple(profile.ranges[a][place] if isinstance(a, str) else a for a in tensor.axes)




def _ranges(c: ModelConfig, graph: str, *, exact: bool) -> Ranges:
    return {
        a.name: (a.max, a.max, a.max) if exact and a.name in _SPACE else (a.min, a.opt, a.max)
        for a in graph_specs(c)[graph].axes
    }


def _parts(graph: str, ranges: Ranges) -> dict[str, Ranges]:
    """The ranges by name of their part. ``ar_step`` has two profiles: a context of many tokens, and a single token."""
    if graph != "ar_step":
        return {"": ranges}
    _, _, longest = ranges["length"]
    return {
        "prefill": {**ranges, "length": (1, max(1, longest // 2), longest)},
        "decode": {**ranges, "length": (1, 1, 1)},
    }
