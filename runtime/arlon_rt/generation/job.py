"""What the three lanes of one generation share: drafting, denoising and decoding, on one thread or on three."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

from arlon_rt.config import ModelConfig
from arlon_rt.events import Stage
from arlon_rt.generation.control import Reporter
from arlon_rt.networks import Networks, Text, with_scores
from arlon_rt.options import ResolvedOptions
from arlon_rt.request import Request
from arlon_rt.segments import Segment
from arlon_rt.timeline import Script


@dataclass(frozen=True, kw_only=True)
class Job:
    """One checked request and what carries it out."""

    networks: Networks
    model: ModelConfig
    request: Request
    script: Script
    reporter: Reporter
    preview: bool = False

    @property
    def options(self) -> ResolvedOptions:
        return self.request.options

    @cached_property
    def negative(self) -> Text | None:
        """What guidance steers away from, where the request names it."""
        prompt = self.options.negative_prompt
        return self.networks.text_encoder.encode(prompt) if prompt else None

    def encode(self, prompt: str) -> Text:
        """A prompt's embedding, the scores that were asked for appended."""
        return self.networks.text_encoder.encode(self.scored(prompt))

    def scored(self, prompt: str) -> str:
        """The prompt with the scores that were asked for."""
        options = self.options
        return with_scores(
            prompt, self.model.text.prompt_suffix, aesthetic_score=options.aesthetic_score,
            motion_score=options.motion_score, camera_motion=options.camera_motion,
        )

    def all_prompts(self) -> list[str]:
        """Each prompt once with its scores, the negative one included."""
        scored = [self.scored(prompt) for _, prompt in self.request.prompts.entries]
        return list(dict.fromkeys(text for text in [*scored, self.options.negative_prompt] if text))

    def timed(self, stage: Stage) -> AbstractContextManager[None]:
        return self.reporter.timed(stage)

    def progress(self, stage: Stage, segment: Segment) -> Callable[[int, int], None]:
        return self.reporter.progress(stage, segment)
