"""What of a request decides how much GPU memory it takes, and a budget for requests up to one size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from arlon_rt.config import ModelConfig
from arlon_rt.errors import OptionsError
from arlon_rt.graphs import GraphSpec, latent_length
from arlon_rt.options import GenerateOptions, HasDefaults, ResolvedOptions
from arlon_rt.segments import Segment, plan


@dataclass(frozen=True, kw_only=True)
class Demand:
    """The part of a request that decides how much memory it takes."""

    height: int
    """In pixels, a whole number of latents."""
    width: int
    """Likewise."""
    latents: int
    """Latent frames of the longest segment."""
    guided: bool
    """Whether the transformer runs with guidance, and so with a batch of 2."""
    also_unguided: bool
    """Whether it also runs some steps without guidance."""
    ar_guided: bool
    """Whether the token model runs with guidance."""
    inject: bool
    """Whether the token model's draft is injected; without it no token model runs."""

    @classmethod
    def of(cls, options: GenerateOptions, bundle: HasDefaults) -> Self:
        """The demand of the largest request. Without ``num_frames``: of a video of any length."""
        resolved, model = options.resolved(bundle), bundle.model
        window = model.video.segment_frames
        frames = 2 * window if options.num_frames is None else min(options.num_frames, 2 * window)
        return cls.of_segments(resolved, model, plan(frames, model))

    @classmethod
    def of_segments(cls, options: ResolvedOptions, model: ModelConfig, segments: Sequence[Segment]) -> Self:
        """The demand of a request that is cut into segments."""
        guided = options.guidance_scale != 1 and options.guided_steps > 0
        return cls(
            height=model.vae.whole(options.height), width=model.vae.whole(options.width),
            latents=max(len(segment.latents) for segment in segments), guided=guided,
            also_unguided=guided and options.guided_steps < options.num_inference_steps,
            ar_guided=options.inject and options.ar_guidance_scale != 1, inject=options.inject,
        )

    def narrowed(self, model: ModelConfig) -> ModelConfig:
        """The configuration of a bundle whose largest picture and longest segment are those of this demand."""
        chunks = self.latents // model.vae.chunk_latents
        frames = chunks * model.vae.chunk_frames or 1
        assert latent_length(model, frames) == self.latents
        return model.narrowed(height=self.height, width=self.width, segment_frames=frames)

    def sizes(self, spec: GraphSpec) -> Mapping[str, int]:
        """Axis -> its largest size, for a graph of the `narrowed` configuration."""
        rows = {"text": 1, "ar": 1 + self.ar_guided, "dit": 1 + self.guided}
        return {a.name: rows[spec.network] if a.name == "batch" else a.max for a in spec.axes}

    def __str__(self) -> str:
        guidance = "guidance" if self.guided else "no guidance"
        return f"{self.width}x{self.height}, segments of {self.latents} latents, {guidance}"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Bytes of GPU memory, for requests up to a demand."""

    size: int
    demand: Demand

    def check(self, requested: Demand) -> None:
        """Raise `OptionsError` if a request needs more memory than the pipeline planned for."""
        names = [field.name for field in dataclasses.fields(requested)]
        if exceeded := [name for name in names if getattr(requested, name) > getattr(self.demand, name)]:
            raise OptionsError(
                f"the pipeline's memory was planned for {self.demand}, and this request, {requested}, takes more "
                f"({', '.join(exceeded)}); open the pipeline with sized_for=GenerateOptions(…) of the largest request"
            )
