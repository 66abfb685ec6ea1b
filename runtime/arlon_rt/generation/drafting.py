"""The first lane: prompt -> text -> tokens -> coarse latents, segment by segment."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from arlon_rt.generation.job import Job
from arlon_rt.networks import Sampling, Text, TokenGrid, TokenState, TokenStream
from arlon_rt.request import Boundary
from arlon_rt.segments import Segment


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What a segment is denoised from."""

    segment: Segment
    text: Text
    coarse: NDArray[np.float32] | None
    """Coarse latents (1, channel, frame, height, width) to inject; ``None`` injects nothing."""
    tokens: TokenState | None
    """The token model's state after this segment."""


def drafts(job: Job, start: Boundary) -> Generator[Draft]:
    """The draft of each segment from ``start`` on."""
    source = _token_source(job)
    if isinstance(source, TokenStream) and start.tokens:
        _restore(job, source, start, start.tokens)
    for segment in job.request.segments[start.segment :]:
        with job.reporter.timed("text"):
            text = job.encode(job.script.claim(segment))
        job.reporter.progress("text", segment)(1, 1)
        coarse = _coarse(job, source, text, segment) if source else None
        state = source.state() if isinstance(source, TokenStream) else None
        yield Draft(segment=segment, text=text, coarse=coarse, tokens=state)


def all_tokens(job: Job) -> NDArray[np.int64]:
    """The tokens (code_frame, row, column) of the whole video, without denoising or decoding it."""
    stream, grid = _token_source(job), dict[int, NDArray[np.int64]]()
    assert isinstance(stream, TokenStream)
    for segment in job.request.segments:
        rows, code_frames = _rows(job, job.encode(job.script.claim(segment))), _code_frames(job, segment)
        grid |= dict(zip(code_frames, stream.extend(rows, code_frames)[0], strict=True))
    return np.stack(list(grid.values()))


def _token_source(job: Job) -> TokenStream | TokenGrid | None:
    """The token model with an empty grid, or the tokens that came with the request; ``None`` injects nothing."""
    request, networks = job.request, job.networks
    if not isinstance(request.tokens, Sampling):
        return request.tokens
    assert networks.token_model
    assert networks.vq_decoder
    size = networks.vq_decoder.code_size(request.view.latent_height, request.view.latent_width)
    return TokenStream(networks.token_model, *size, request.tokens, request.known_codes)


def _restore(job: Job, stream: TokenStream, start: Boundary, state: TokenState) -> None:
    """Bring the token model to its state after the segment before ``start``, or after the lead."""
    last = job.request.segments[max(0, start.segment - 1)]
    text = job.encode(job.script.timeline.at(max(0.0, last.middle(job.options.fps))))
    with job.reporter.timed("ar"):
        stream.restore(state, _rows(job, text))


def _coarse(job: Job, source: TokenStream | TokenGrid, text: Text, segment: Segment) -> NDArray[np.float32]:
    """The segment's tokens, decoded to its coarse latents (1, channel, frame, height, width)."""
    view, decoder, reporter = job.request.view, job.networks.vq_decoder, job.reporter
    assert decoder
    with reporter.timed("ar"):
        if isinstance(source, TokenGrid):
            tokens = source.window(_code_frames(job, segment))
        else:
            tokens = source.extend(_rows(job, text), _code_frames(job, segment), reporter.progress("ar", segment))
    with reporter.timed("vq"):
        coarse = decoder.decode(tokens, segment, view.latent_height, view.latent_width)
    reporter.progress("vq", segment)(1, 1)
    return coarse


def _code_frames(job: Job, segment: Segment) -> range:
    assert job.model.vq
    return segment.code_frames(job.model.vq.stride[0])


def _rows(job: Job, text: Text) -> list[Text]:
    """The prompts of the token model's batch: with guidance a null prompt after the prompt."""
    return [text] if job.options.ar_guidance_scale == 1 else [text, job.negative or job.networks.text_encoder.null()]
