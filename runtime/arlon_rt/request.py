"""A checked request, as a value: what one video is made of, and what holds a caller's wishes to one bundle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arlon_rt.bundle import Bundle
from arlon_rt.conditioning import NOTHING, Conditions, FrameEncoder, Placement
from arlon_rt.errors import OptionsError
from arlon_rt.networks import Networks, Sampling, TokenGrid, TokenState, View
from arlon_rt.options import GenerateOptions, ResolvedOptions
from arlon_rt.segments import Segment, plan
from arlon_rt.timeline import Timeline

Prompts = str | Timeline | Iterable[tuple[float, str]]
IMAGE_FPS = 120.0
"""What Open-Sora tells its transformer in place of frames a second for an image (docs/spec.md 5.3)."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One video to generate, checked. It has no state: it may be run often, at once, and in another process.

    Two requests are equal when all their parts are; arrays are compared by identity.
    """

    options: ResolvedOptions
    prompts: Timeline
    """In seconds."""
    view: View
    segments: tuple[Segment, ...]
    """The video's segments, after one for the lead."""
    tokens: Sampling | TokenGrid | None
    """How the token model samples, or the tokens to inject in place of its own; ``None`` injects nothing."""
    known_codes: tuple[tuple[int, int], ...] = ()
    """(index, code) for each token that shows a reference: the model does not write it. A lead's tokens count, too."""
    conditions: Conditions = NOTHING
    lead: int = 0
    """How many frames, in whole chunks, the caller's clip has that the video continues; 0 without a clip."""
    start: Boundary | None = None
    """Where the work begins: after a lead, or where a snapshot was taken; ``None`` is at the first segment."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Boundary:
    """A generation's state between two segments, from which it can go on."""

    segment: int
    """The next segment."""
    before: NDArray[Any] | None = None
    """The last chunk before it: frames (frame, height, width, 3), or latents (1, channel, latent, height, width) where
    latents are reused; ``None`` before the first segment."""
    tokens: TokenState | None = None


BEGINNING = Boundary(segment=0)


class Requests:
    """Turns a caller's wishes into requests that one bundle can carry out."""

    def __init__(self, bundle: Bundle, networks: Networks, encoder: FrameEncoder) -> None:
        self._bundle, self._networks, self._encoder = bundle, networks, encoder

    def new(
        self, prompt: Prompts, options: GenerateOptions, tokens: NDArray[np.integer] | None,
        after: NDArray[np.uint8] | None, references: Sequence[NDArray[np.uint8]], mask_strategy: str,
    ) -> Request:
        """A new video; arguments and errors are those of `Pipeline.stream`."""
        resolved = options.resolved(self._bundle)
        view, for_image = self._view(resolved), resolved.num_frames == 1
        conditions = self._conditions(after, references, mask_strategy, view, for_image=for_image)
        if after is None or len(after) == 1:
            return self.checked(prompt, options, tokens, conditions)
        if tokens is not None:
            raise OptionsError("tokens and after are both given; a video that goes on writes its own tokens")
        lead = self._encoder.lead(np.asarray(after), view)
        request = self.checked(prompt, options, None, conditions, len(lead))
        return replace(request, start=self._after(request, lead))

    def checked(
        self, prompt: Prompts, options: GenerateOptions, tokens: NDArray[np.integer] | None = None,
        conditions: Conditions = NOTHING, lead: int = 0, start: Boundary | None = None,
    ) -> Request:
        """The request, each part checked against the bundle and the others.

        Raises:
            OptionsError: a part cannot be used; the message names it.
        """
        model = self._bundle.model
        chunk, most = model.vae.chunk_frames, model.video.segment_frames
        if lead % chunk or not 0 <= lead <= most:
            raise OptionsError(f"lead is {lead} frames; whole chunks of {chunk} are needed, at most {most}")
        prompts, resolved = Timeline.of(prompt), options.resolved(self._bundle)
        negative = [resolved.negative_prompt] if resolved.negative_prompt else []
        for text in [*(text for _, text in prompts.entries), *negative]:
            self._networks.text_encoder.caption(text)
        segments, view = plan(resolved.num_frames, model, resolved.first_segment_frames, lead), self._view(resolved)
        new = segments[lead > 0 :]
        source = self._tokens(resolved, view, segments, tokens)
        conditions.check(new, (model.dit.in_channels, view.latent_height, view.latent_width))
        request = Request(
            options=resolved, prompts=prompts.in_seconds(new, resolved.fps), view=view, segments=segments,
            tokens=source, known_codes=self._known_codes(conditions, new) if isinstance(source, Sampling) else (),
            conditions=conditions, lead=lead, start=start,
        )
        if start:
            self._check_start(request, start)
        return request

    def _view(self, options: ResolvedOptions) -> View:
        unit = self._bundle.model.vae.space_stride
        return View(
            height=options.height, width=options.width,
            latent_height=options.height // unit, latent_width=options.width // unit,
            fps=IMAGE_FPS if options.num_frames == 1 else options.fps, guidance_scale=options.guidance_scale,
        )

    def _conditions(
        self, after: NDArray[np.uint8] | None, references: Sequence[NDArray[np.uint8]], mask_strategy: str,
        view: View, *, for_image: bool,
    ) -> Conditions:
        """The references and their places; an image that the video begins with is the last reference."""
        placements = Placement.parse(mask_strategy)
        if references and not placements:
            raise OptionsError(
                "references are given, but mask_strategy does not say where they go; e.g. '0' puts the first latent of "
                "the first one at the start of the video"
            )
        image = [after] if after is not None and len(after) == 1 else []
        begin = [Placement(reference=len(references))] if image else []
        encoded = [self._encoder.reference(np.asarray(f), view, for_image=for_image) for f in (*references, *image)]
        return Conditions(references=tuple(encoded), placements=(*placements, *begin))

    def _tokens(
        self, options: ResolvedOptions, view: View, segments: Sequence[Segment], tokens: NDArray[np.integer] | None
    ) -> Sampling | TokenGrid | None:
        token_model, vq_decoder = self._networks.token_model, self._networks.vq_decoder
        if not (options.inject and token_model and vq_decoder):
            if tokens is not None:
                raise OptionsError("tokens are given, but this request injects none: inject is False, or the bundle "
                                   "has no token model; leave tokens out")
            return None
        size, vq = vq_decoder.code_size(view.latent_height, view.latent_width), vq_decoder.config
        if tokens is not None:
            return TokenGrid(tokens, segments[-1].code_frames(vq.stride[0]).stop, *size, vq.num_codes)
        token_model.check_size(*size)
        return Sampling(
            guidance_scale=options.ar_guidance_scale, temperature=options.temperature,
            top_k=options.top_k, top_p=options.top_p, seed=options.seed,
        )

    def _known_codes(self, conditions: Conditions, segments: Sequence[Segment]) -> tuple[tuple[int, int], ...]:
        """(index in the video, code) for each token of a placed reference."""
        model = self._bundle.model
        assert model.vq
        codes = conditions.codes(segments, model.vae.chunk_latents, model.vq.stride[0], self._encoder.tokens)
        return tuple(codes.items())

    def _after(self, request: Request, lead: NDArray[np.uint8]) -> Boundary:
        """The boundary at which a video begins that continues these frames."""
        tokens, before = None, lead[-self._bundle.model.vae.chunk_frames :]
        if isinstance(request.tokens, Sampling):
            assert self._bundle.model.vq
            written = self._encoder.tokens(latents := self._networks.vae_encoder.encode_clip(lead))
            known = latents.shape[2] // self._bundle.model.vq.stride[0]   # not the code that also covers new latents
            tokens = TokenState.of(written[:, :known])
        kept = self._networks.vae_encoder.encode(before) if request.options.reuse_latents else before
        return Boundary(segment=1, before=kept, tokens=tokens)

    def _check_start(self, request: Request, start: Boundary) -> None:
        """Hold a boundary from outside to the request."""
        segments, view, model = request.segments, request.view, self._bundle.model
        if not (request.lead > 0) <= start.segment < len(segments):
            raise OptionsError(f"segment is {start.segment} of {len(segments)}; nothing is left to be made there")
        kept, unit, vae = segments[start.segment].kept > 0, model.vae.space_stride, model.vae
        frames = vae.chunk_frames, unit * view.latent_height, unit * view.latent_width, 3
        latents = 1, model.dit.in_channels, vae.chunk_latents, view.latent_height, view.latent_width
        fits = f"float32 {latents}" if request.options.reuse_latents else f"uint8 {frames}"
        found = "none" if start.before is None else f"{start.before.dtype} {start.before.shape}"
        if found != (fits if kept else "none"):
            raise OptionsError(f"what is before segment {start.segment} is {found}; {fits if kept else 'none'} fits")
        if start.before is not None and not np.isfinite(start.before).all():
            raise OptionsError(f"what is before segment {start.segment} is not finite")
        if isinstance(request.tokens, Sampling) and kept:
            token_model, vq_decoder = self._networks.token_model, self._networks.vq_decoder
            assert token_model
            assert vq_decoder
            written = segments[start.segment - 1].code_frames(vq_decoder.config.stride[0]).stop
            size = vq_decoder.code_size(view.latent_height, view.latent_width)
            token_model.check_state(start.tokens, *size, written)
