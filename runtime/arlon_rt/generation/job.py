"""What the three lanes of one generation share: the request, the opened networks and where work is reported."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from arlon_rt.config import ModelConfig
from arlon_rt.generation.control import Reporter
from arlon_rt.networks import Networks, Text, with_scores
from arlon_rt.options import ResolvedOptions
from arlon_rt.request import Request
from arlon_rt.timeline import Script


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request under way. The lanes are functions of it, on one thread or on three."""

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
        """The negative prompt's embedding; ``None`` where the request has no negative prompt."""
        prompt = self.options.negative_prompt
        return self.networks.text_encoder.encode(prompt) if prompt else None

    def encode(self, prompt: str) -> Text:
        """The embedding of a prompt with its scores."""
        return self.networks.text_encoder.encode(self._scored(prompt))

    def all_prompts(self) -> list[str]:
        """Each prompt once with its scores, and the negative prompt."""
        scored = [self._scored(prompt) for _, prompt in self.request.prompts.entries]
        return list(dict.fromkeys(text for text in [*scored, self.options.negative_prompt] if text))

    def _scored(self, prompt: str) -> str:
        options = self.options
        return with_scores(
            prompt, self.model.text.prompt_suffix, aesthetic_score=options.aesthetic_score,
            motion_score=options.motion_score, camera_motion=options.camera_motion,
        )
