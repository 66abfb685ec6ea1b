"""The first lane: prompt -> text -> tokens -> coarse latents, segment by segment."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from arlon_rt.generation.job import Job
from arlon_rt.networks import OnToken, Text, TokenSource, TokenState
from arlon_rt.request import Boundary
from arlon_rt.segments import Segment


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What a segment is denoised from."""

    segment: Segment
    text: Text
    coarse: NDArray[np.float32] | None
    """Latents (1, channel, frame, height, width); ``None`` where nothing is injected."""
    tokens: TokenState | None
    """Of the token model after it."""


def drafts(job: Job, start: Boundary) -> Generator[Draft]:
    """Each segment's text and coarse latents, from ``start`` on."""
    source = job.request.tokens
    if source and start.tokens:
        _restore(job, source, start, start.tokens)
    for segment in job.request.segments[start.segment :]:
        with job.timed("text"):
            text = job.encode(job.script.claim(segment))
        job.progress("text", segment)(1, 1)
        coarse = _coarse(job, source, text, segment) if source else None
        yield Draft(segment=segment, text=text, coarse=coarse, tokens=source.state() if source else None)


def all_tokens(job: Job, source: TokenSource, size: tuple[int, int]) -> NDArray[np.int64]:
    """All tokens (code_frame, row, column) of the video, and nothing else."""
    grid = np.zeros((0, *size), np.int64)
    for segment in job.request.segments:
        newest, first = _tokens(job, source, job.encode(job.script.claim(segment)), segment)
        grid = np.concatenate([grid[:first], newest[0]])
    return grid


def _restore(job: Job, source: TokenSource, start: Boundary, state: TokenState) -> None:
    """Bring the token model to where it was after the segment before, or after what the video begins with."""
    last = job.request.segments[max(0, start.segment - 1)]
    text = job.encode(job.script.timeline.at(max(0.0, last.middle(job.options.fps))))
    with job.timed("ar"):
        source.restore(state, _rows(job, source, text))


def _coarse(job: Job, source: TokenSource, text: Text, segment: Segment) -> NDArray[np.float32]:
    """Write the segment's tokens and decode them to its coarse latents."""
    view, decoder = job.request.view, job.networks.vq_decoder
    assert decoder
    with job.timed("ar"):
        grid, _ = _tokens(job, source, text, segment, job.progress("ar", segment))
    with job.timed("vq"):
        coarse = decoder.decode(grid, segment, view.latent_height, view.latent_width)
    job.progress("vq", segment)(1, 1)
    return coarse


def _tokens(
    job: Job, source: TokenSource, text: Text, segment: Segment, on_token: OnToken = lambda done, total: None
) -> tuple[NDArray[np.int64], int]:
    """The segment's tokens (1, code_frame, row, column) and the number of their first code-frame."""
    assert job.networks.vq_decoder
    code_frames = segment.code_frames(job.networks.vq_decoder.config.stride[0])
    return source.extend(_rows(job, source, text), code_frames, on_token), code_frames.start


def _rows(job: Job, source: TokenSource, text: Text) -> list[Text]:
    """The prompts of the token model's batch."""
    return [text, job.negative or job.networks.text_encoder.null()] if source.guided else [text]
