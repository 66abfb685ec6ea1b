"""What a generation is asked for, where its work begins and what it hands out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arlon_rt.ar import TokenStream
from arlon_rt.conditioning import NOTHING, Conditions
from arlon_rt.config import ModelConfig
from arlon_rt.dit import View
from arlon_rt.errors import OptionsError
from arlon_rt.options import ResolvedOptions
from arlon_rt.segments import Segment
from arlon_rt.timeline import Timeline
from arlon_rt.tokens import TokenSource, TokenState


@dataclass(frozen=True, eq=False)
class Chunk:
    """Frames that are ready."""

    frames: NDArray[np.uint8]
    """(frame, height, width, 3), RGB."""
    index: int
    """Number of the first frame in the video."""
    segment: int
    ends_segment: bool
    """Whether its segment ends with it, so that a snapshot taken now holds it."""
    draft: bool = False
    """Whether it only shows the tokens, decoded as they are; the final frames of its place come later."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A checked request."""

    options: ResolvedOptions
    view: View
    segments: list[Segment]
    prompts: Timeline
    """In seconds."""
    tokens: TokenSource | None
    """``None``: nothing is injected."""
    conditions: Conditions = NOTHING
    lead: int = 0
    """Frames of the first segment, which are there already; 0: it is made like the others."""

    @property
    def made(self) -> list[Segment]:
        """The segments that are made."""
        return self.segments[1:] if self.lead else self.segments


@dataclass(frozen=True, kw_only=True, eq=False)
class Boundary:
    """Where a generation can go on from: between two segments."""

    segment: int
    """The next one."""
    before: NDArray[Any] | None = None
    """The last chunk before it, frames (frame, height, width, 3) or, where they are reused, its latents (1, channel,
    latent, height, width); at the start ``None``."""
    tokens: TokenState | None = None


BEGINNING = Boundary(segment=0)


def check_boundary(boundary: Boundary, request: Request, model: ModelConfig) -> None:
    """Hold a boundary from outside to the request that it is of.

    Raises:
        OptionsError: it does not fit.
    """
    segments, view = request.segments, request.view
    if not (request.lead > 0) <= boundary.segment < len(segments):
        raise OptionsError(f"segment is {boundary.segment} of {len(segments)}; nothing is left to be made there")
    kept, unit, vae = segments[boundary.segment].kept > 0, model.vae.space_stride, model.vae
    frames = vae.chunk_frames, unit * view.latent_height, unit * view.latent_width, 3
    latents = 1, model.dit.in_channels, vae.chunk_latents, view.latent_height, view.latent_width
    fits = f"float32 {latents}" if request.options.reuse_latents else f"uint8 {frames}"
    found = "none" if boundary.before is None else f"{boundary.before.dtype} {boundary.before.shape}"
    if found != (fits if kept else "none"):
        raise OptionsError(f"what is before segment {boundary.segment} is {found}; {fits if kept else 'none'} fits")
    if boundary.before is not None and not np.isfinite(boundary.before).all():
        raise OptionsError(f"what is before segment {boundary.segment} is not finite")
    if isinstance(request.tokens, TokenStream) and kept:
        assert model.vq
        written = segments[boundary.segment - 1].code_frames(model.vq.stride[0]).stop
        request.tokens.check(boundary.tokens, written)


def checked_lead(lead: int, model: ModelConfig) -> int:
    """A lead from outside.

    Raises:
        OptionsError: it is not whole chunks, or more than a segment.
    """
    chunk, most = model.vae.chunk_frames, model.video.segment_frames
    if lead % chunk or not 0 <= lead <= most:
        raise OptionsError(f"lead is {lead} frames; whole chunks of {chunk} are needed, at most {most}")
    return lead
