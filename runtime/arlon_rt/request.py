"""What a generation is asked for, where its work begins and what it hands out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arlon_rt.bundle import Bundle
from arlon_rt.conditioning import NOTHING, Conditions, Given, Placement
from arlon_rt.config import ModelConfig
from arlon_rt.errors import OptionsError
from arlon_rt.networks import GivenTokens, Networks, Sampling, TokenSource, TokenState, TokenStream, View
from arlon_rt.options import GenerateOptions, ResolvedOptions
from arlon_rt.segments import Segment, plan
from arlon_rt.timeline import Timeline


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


Prompts = str | Timeline | Iterable[tuple[float, str]]
IMAGE_FPS = 120.0
"""What Open-Sora tells its transformer in place of frames a second when it makes an image (spec 5.3)."""


class Requests:
    """Checks what is asked of one bundle; encodes the frames that come with it."""

    def __init__(self, bundle: Bundle, networks: Networks) -> None:
        self._bundle, self._networks = bundle, networks
        self._given = Given(networks, bundle.model)

    def begun(
        self, prompt: Prompts, options: GenerateOptions, tokens: NDArray[np.integer] | None,
        after: NDArray[np.uint8] | None, references: Sequence[NDArray[np.uint8]], mask_strategy: str,
    ) -> tuple[Request, Boundary]:
        """A new video and where its work begins; arguments and errors are those of `Pipeline.stream`."""
        resolved = options.resolved(self._bundle)
        view, for_image = self._view(resolved), resolved.num_frames == 1
        conditions = self._conditions(after, references, mask_strategy, view, for_image=for_image)
        if after is None or len(after) == 1:
            return self.checked(prompt, options, tokens, conditions), BEGINNING
        if tokens is not None:
            raise OptionsError("tokens and after are both given; a video that goes on writes its own tokens")
        lead = self._given.lead(np.asarray(after), view)
        request = self.checked(prompt, options, None, conditions, len(lead))
        return request, self._after(request, lead)

    def _conditions(
        self, after: NDArray[np.uint8] | None, references: Sequence[NDArray[np.uint8]], mask_strategy: str,
        view: View, *, for_image: bool,
    ) -> Conditions:
        """What the video takes over, an image that it begins with included."""
        placements = Placement.parse(mask_strategy)
        if references and not placements:
            raise OptionsError(
                "references are given, but mask_strategy does not say where they go; e.g. '0' puts the first latent of "
                "the first one at the start of the video"
            )
        images = [frames for frames in (after,) if frames is not None and len(frames) == 1]
        begin = [Placement(reference=len(references) + i) for i in range(len(images))]
        frames = [
            self._given.reference(np.asarray(f), view, for_image=for_image) for f in (*references, *images)
        ]
        return Conditions(references=tuple(frames), placements=(*placements, *begin))

    def _after(self, request: Request, lead: NDArray[np.uint8]) -> Boundary:
        """Where a video begins that goes on from these frames."""
        tokens, before = None, lead[-self._bundle.model.vae.chunk_frames :]
        if isinstance(request.tokens, TokenStream):
            assert self._bundle.model.vq
            written = self._given.tokens(latents := self._given.latents(lead))
            known = latents.shape[2] // self._bundle.model.vq.stride[0]   # a code half of which is to come is not known
            tokens = request.tokens.after(written[:, :known])
        kept = self._given.latents(before) if request.options.reuse_latents else before
        return Boundary(segment=1, before=kept, tokens=tokens)

    def checked(
        self, prompt: Prompts, options: GenerateOptions, tokens: NDArray[np.integer] | None,
        conditions: Conditions = NOTHING, lead: int = 0,
    ) -> Request:
        """The request, checked."""
        prompts, resolved = Timeline.of(prompt), options.resolved(self._bundle)
        unwanted = [resolved.negative_prompt] if resolved.negative_prompt else []
        for wanted in [*(text for _, text in prompts.entries), *unwanted]:
            self._networks.text_encoder.caption(wanted)
        segments = plan(resolved.num_frames, self._bundle.model, resolved.first_segment_frames, lead)
        view, made = self._view(resolved), segments[1:] if lead else segments
        source = self._token_source(resolved, view, segments, tokens)
        conditions.check(made, (self._bundle.model.dit.in_channels, view.latent_height, view.latent_width))
        if isinstance(source, TokenStream):
            model = self._bundle.model
            assert model.vq
            source.know(conditions.codes(made, model.vae.chunk_latents, model.vq.stride[0], self._given.tokens))
        return Request(
            options=resolved, view=view, segments=segments, prompts=prompts.in_seconds(made, resolved.fps),
            tokens=source, conditions=conditions, lead=lead,
        )

    def code_size(self, view: View) -> tuple[int, int]:
        assert self._networks.vq_decoder
        return self._networks.vq_decoder.code_size(view.latent_height, view.latent_width)

    def _token_source(
        self, options: ResolvedOptions, view: View, segments: list[Segment], tokens: NDArray[np.integer] | None
    ) -> TokenSource | None:
        """The tokens given, or an empty token grid; ``None`` where nothing is injected."""
        token_model, vq_decoder = self._networks.token_model, self._networks.vq_decoder
        if not (options.inject and token_model and vq_decoder):
            if tokens is not None:
                raise OptionsError("tokens are given, but this request injects none: inject is False, or the bundle "
                                   "has no token model; leave tokens out")
            return None
        size, vq = self.code_size(view), vq_decoder.config
        if tokens is not None:
            return GivenTokens(tokens, segments[-1].code_frames(vq.stride[0]).stop, *size, vq.num_codes)
        sampling = Sampling(
            guidance_scale=options.ar_guidance_scale, temperature=options.temperature,
            top_k=options.top_k, top_p=options.top_p, seed=options.seed,
        )
        return token_model.start(*size, sampling)

    def _view(self, options: ResolvedOptions) -> View:
        unit = self._bundle.model.vae.space_stride
        return View(
            height=options.height, width=options.width,
            latent_height=options.height // unit, latent_width=options.width // unit,
            fps=IMAGE_FPS if options.num_frames == 1 else options.fps, guidance_scale=options.guidance_scale,
        )
