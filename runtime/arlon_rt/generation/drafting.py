"""The first stage, segment by segment: prompt -> text -> tokens -> coarse latents."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from arlon_rt.captions import with_scores
from arlon_rt.config import TextConfig
from arlon_rt.options import ResolvedOptions
from arlon_rt.prompts import Text
from arlon_rt.reporting import Reporter
from arlon_rt.request import Boundary, Request
from arlon_rt.segments import Segment
from arlon_rt.stages import Stages
from arlon_rt.steering import Script
from arlon_rt.tokens import OnToken, TokenSource, TokenState


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What a segment is denoised from."""

    segment: Segment
    text: Text
    coarse: NDArray[np.float32] | None
    """Latents (1, channel, frame, height, width); ``None`` where nothing is injected."""
    tokens: TokenState | None
    """Of the token model after it."""


class Drafting:
    """Writes the drafts of one request's segments."""

    def __init__(
        self, stages: Stages, config: TextConfig, request: Request, script: Script, reporter: Reporter, *,
        all_texts_first: bool = False,
    ) -> None:
        self._all_texts_first = all_texts_first
        self._stages, self._config, self._request = stages, config, request
        self._script, self._reporter = script, reporter

    def drafts(self, start: Boundary, negative: Text | None) -> Generator[Draft]:
        """Each segment's text and coarse latents, from ``start`` on."""
        stages, source, reporter = self._stages, self._request.tokens, self._reporter
        if self._all_texts_first:
            with reporter.timed("text"):
                stages.text_encoder.encode_all(self.wanted())
        if source and start.tokens:
            self._restore(source, start, start.tokens, negative)
        for segment in self._request.segments[start.segment :]:
            with reporter.timed("text"):
                text = stages.text_encoder.encode(self._told(self._script.claim(segment)))
            reporter.progress("text", segment)(1, 1)
            coarse = self._coarse(source, text, negative, segment) if source else None
            yield Draft(segment=segment, text=text, coarse=coarse, tokens=source.state() if source else None)

    def tokens(self, source: TokenSource, size: tuple[int, int], negative: Text | None) -> NDArray[np.int64]:
        """All tokens (code_frame, row, column) of the video, and nothing else."""
        grid = np.zeros((0, *size), np.int64)
        for segment in self._request.segments:
            text = self._stages.text_encoder.encode(self._told(self._script.claim(segment)))
            newest, first = self._tokens(source, text, negative, segment)
            grid = np.concatenate([grid[:first], newest[0]])
        return grid

    def wanted(self) -> list[str]:
        """Each prompt once as it is told, the negative one included."""
        told = [self._told(prompt) for _, prompt in self._request.prompts.entries]
        return list(dict.fromkeys(text for text in [*told, self._request.options.negative_prompt] if text))

    def _restore(self, source: TokenSource, start: Boundary, state: TokenState, negative: Text | None) -> None:
        """Bring the token model to where it was after the segment before, or after what the video begins with."""
        last = self._request.segments[max(0, start.segment - 1)]
        prompt = self._script.timeline.at(max(0.0, last.middle(self._request.options.fps)))
        text = self._stages.text_encoder.encode(self._told(prompt))
        with self._reporter.timed("ar"):
            source.restore(state, self._rows(source, text, negative))

    def _coarse(
        self, source: TokenSource, text: Text, negative: Text | None, segment: Segment
    ) -> NDArray[np.float32]:
        """Write the segment's tokens and decode them to its coarse latents."""
        view, decoder, reporter = self._request.view, self._stages.vq_decoder, self._reporter
        assert decoder
        with reporter.timed("ar"):
            grid, _ = self._tokens(source, text, negative, segment, reporter.progress("ar", segment))
        with reporter.timed("vq"):
            coarse = decoder.decode(grid, segment, view.latent_height, view.latent_width)
        reporter.progress("vq", segment)(1, 1)
        return coarse

    def _tokens(
        self, source: TokenSource, text: Text, negative: Text | None, segment: Segment,
        on_token: OnToken = lambda done, total: None,
    ) -> tuple[NDArray[np.int64], int]:
        """The segment's tokens (1, code_frame, row, column) and the number of their first code-frame."""
        assert self._stages.vq_decoder
        code_frames = segment.code_frames(self._stages.vq_decoder.config.stride[0])
        return source.extend(self._rows(source, text, negative), code_frames, on_token), code_frames.start

    def _rows(self, source: TokenSource, text: Text, negative: Text | None) -> list[Text]:
        """The prompts of the token model's batch."""
        return [text, negative or self._stages.text_encoder.null()] if source.guided else [text]

    def _told(self, prompt: str) -> str:
        """The prompt with the scores asked for."""
        options = self._request.options
        return with_scores(
            prompt, self._config.prompt_suffix, aesthetic_score=options.aesthetic_score,
            motion_score=options.motion_score, camera_motion=options.camera_motion,
        )


def negative_text(stages: Stages, options: ResolvedOptions) -> Text | None:
    """What guidance steers away from, where the request names it."""
    return stages.text_encoder.encode(options.negative_prompt) if options.negative_prompt else None
