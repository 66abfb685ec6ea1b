"""A budget of GPU memory: what is asked for, and how much of a bundle's work it must hold."""

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
    """What of a request decides how much memory it takes."""

    height: int
    """In pixels, whole latents."""
    width: int
    latents: int
    """Of the longest segment."""
    guided: bool
    """Whether the transformer's batch is 2."""
    also_unguided: bool
    """Whether some steps run without guidance besides."""
    ar_guided: bool
    inject: bool

    @classmethod
    def of(cls, options: GenerateOptions, bundle: HasDefaults) -> Self:
        """Of the largest request to be made; a length that is left out stands for any, footage to go on from for
        another segment."""
        resolved, model = options.resolved(bundle), bundle.model
        window = model.video.segment_frames
        frames = 2 * window if options.num_frames is None else min(options.num_frames, 2 * window)
        return cls.of_segments(resolved, model, plan(frames, model))

    @classmethod
    def of_segments(cls, options: ResolvedOptions, model: ModelConfig, segments: Sequence[Segment]) -> Self:
        """Of a request that is cut already."""
        unit, guided = model.vae.space_stride, options.guidance_scale != 1 and options.guided_steps > 0
        return cls(
            height=options.height // unit * unit, width=options.width // unit * unit,
            latents=max(len(segment.latents) for segment in segments), guided=guided,
            also_unguided=guided and options.guided_steps < options.num_inference_steps,
            ar_guided=options.inject and options.ar_guidance_scale != 1, inject=options.inject,
        )

    def exceeded_by(self, other: Demand) -> list[str]:
        """The fields in which another asks for more."""
        names = [field.name for field in dataclasses.fields(self)]
        return [name for name in names if getattr(other, name) > getattr(self, name)]

    def narrowed(self, model: ModelConfig) -> ModelConfig:
        """The configuration of a bundle that makes no larger picture and no longer segment."""
        chunks = self.latents // model.vae.chunk_latents
        frames = chunks * model.vae.chunk_frames or 1
        assert latent_length(model, frames) == self.latents
        video = dataclasses.replace(
            model.video, height=self.height, width=self.width, max_height=None, max_width=None, segment_frames=frames
        )
        return dataclasses.replace(model, video=video)

    def sizes(self, spec: GraphSpec) -> Mapping[str, int]:
        """The largest size of every axis of a graph of the `narrowed` configuration."""
        rows = {"text": 1, "ar": 1 + self.ar_guided, "dit": 1 + self.guided}
        return {a.name: rows[spec.network] if a.name == "batch" else a.max for a in spec.axes}

    def __str__(self) -> str:
        guidance = "guidance" if self.guided else "no guidance"
        return f"{self.width}x{self.height}, segments of {self.latents} latents, {guidance}"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """So many bytes, for requests no larger than this."""

    size: int
    demand: Demand

    def check(self, asked: Demand) -> None:
        """Raise `OptionsError` for a request that the pipeline's memory was not planned for."""
        if exceeded := self.demand.exceeded_by(asked):
            raise OptionsError(
                f"the pipeline's memory was planned for {self.demand}, and this request, {asked}, takes more "
                f"({', '.join(exceeded)}); open the pipeline with sized_for=GenerateOptions(…) of the largest request"
            )


