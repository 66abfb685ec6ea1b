"""Optimisation profiles: the axis ranges of graphs.py, narrowed to the sizes that are asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from arlon_rt.bundle import ANY_SIZE, EngineProfile
from arlon_rt.config import ModelConfig
from arlon_rt.errors import OptionsError
from arlon_rt.graphs import GraphSpec, TensorSpec, graph_specs

Ranges = Mapping[str, tuple[int, int, int]]
Bound = Literal["min", "opt", "max"]
_SPACE = frozenset({
    "latent_height", "latent_width", "height", "width", "code_height", "code_width", "coarse_height", "coarse_width",
    "patches",
})
"""Axes that the picture's size fixes; a segment's length is a range, since a video's last segment is shorter."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """A picture size and the longest segment, as ``--profile 512x512x68`` says them."""

    width: int
    height: int
    frames: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.frames}"

    def narrowed(self, c: ModelConfig) -> ModelConfig:
        """The configuration of a bundle of this size alone."""
        return c.narrowed(height=self.height, width=self.width, segment_frames=self.frames)


def parse_size(text: str, c: ModelConfig) -> Size:
    """``WIDTHxHEIGHTxFRAMES`` within what the bundle allows.

    Raises:
        OptionsError: it is not of that form, or larger.
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
    """The profile of an identity: the same for the same sizes in any order."""
    ordered = sorted(sizes, key=lambda s: (s.width, s.height, s.frames))
    return "_".join(dict.fromkeys(map(str, ordered))) or ANY_SIZE


def profiles_of(c: ModelConfig, graph: str, sizes: Sequence[Size]) -> tuple[EngineProfile, ...]:
    """The profiles of one graph: one a size, without sizes one with the full ranges; equal ones once."""
    named = {str(size): _ranges(size.narrowed(c), graph, exact=True) for size in sizes}
    profiles: list[EngineProfile] = []
    for name, ranges in (named or {ANY_SIZE: _ranges(c, graph, exact=False)}).items():
        for part, narrowed in _parts(graph, ranges).items():
            profile = EngineProfile(name=" ".join(filter(None, (name, part))), ranges=narrowed)
            if all(profile.ranges != p.ranges for p in profiles):
                profiles.append(profile)
    return tuple(profiles)


def shape(tensor: TensorSpec, profile: EngineProfile, bound: Bound) -> tuple[int, ...]:
    """The tensor's shape at one end, or at the best point, of a profile."""
    place = ("min", "opt", "max").index(bound)
    return tuple(profile.ranges[a][place] if isinstance(a, str) else a for a in tensor.axes)


def contract(c: ModelConfig, graph: str) -> GraphSpec:
    """The signature of ``graph``."""
    return graph_specs(c)[graph]


def _ranges(c: ModelConfig, graph: str, *, exact: bool) -> Ranges:
    return {
        a.name: (a.max, a.max, a.max) if exact and a.name in _SPACE else (a.min, a.opt, a.max)
        for a in contract(c, graph).axes
    }


def _parts(graph: str, ranges: Ranges) -> dict[str, Ranges]:
    """The token model's step is compiled twice: for one token, and for the context that fills a new window."""
    if graph != "ar_step":
        return {"": ranges}
    _, _, longest = ranges["length"]
    return {
        "prefill": {**ranges, "length": (1, max(1, longest // 2), longest)},
        "decode": {**ranges, "length": (1, 1, 1)},
    }
