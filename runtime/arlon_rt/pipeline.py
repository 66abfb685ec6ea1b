"""The library's front door: a bundle opened, and requests to it. What a generation does is in generation.py."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from arlon_rt.ar import GivenTokens, Sampling, TokenSource, TokenStream
from arlon_rt.bundle import Bundle, demo_bundle_path
from arlon_rt.conditioning import NOTHING, Conditions, Placement
from arlon_rt.dit import View
from arlon_rt.errors import ArlonError, OptionsError
from arlon_rt.generation import Generation, Work
from arlon_rt.given import Given, checked_frames
from arlon_rt.options import GenerateOptions, ResolvedOptions
from arlon_rt.reporting import OnEvent
from arlon_rt.request import BEGINNING, Boundary, Request, check_boundary, checked_lead
from arlon_rt.segments import Segment, plan
from arlon_rt.snapshot import Machine, Snapshot
from arlon_rt.stages import Stages
from arlon_rt.timeline import Timeline

Prompts = str | Timeline | Iterable[tuple[float, str]]
USUAL = GenerateOptions()
IMAGE_FPS = 120.0
"""What Open-Sora tells its transformer in place of frames a second when it makes an image (spec 5.3)."""


@dataclass(frozen=True, eq=False)
class Video:
    """A whole video in memory."""

    frames: NDArray[np.uint8]
    """(frame, height, width, 3), RGB."""
    fps: float

    @property
    def seconds(self) -> float:
        return len(self.frames) / self.fps


class Pipeline:
    """Text to video with the graphs of one bundle.

    Thread-safety: a pipeline makes one video at a time. A generation started on a second thread waits for the first;
    started on the thread whose first one is unfinished it raises, because waiting would never end. Two pipelines
    share nothing. Close a pipeline, or leave its ``with`` block, when no generation is running.
    """

    def __init__(
        self, bundle: Bundle, stages: Stages, *, backend: str = "", device: str = "", threads: int | None = None
    ) -> None:
        """From stages that are open; `Pipeline.open` is the usual way. The rest says what they run on."""
        self.bundle, self._stages = bundle, stages
        self._machine = Machine(backend=backend, device=device, precision=stages.precision, threads=threads)
        self._given = Given(stages, bundle.model)
        self._turn, self._owner = threading.Lock(), 0

    @classmethod
    def open(
        cls, bundle: Bundle | str | os.PathLike[str] | None = None, *, backend: str = "onnxruntime",
        device: str = "cpu", precision: str | None = None, threads: int | None = None,
    ) -> Self:
        """Open every graph of a bundle, by default the demo bundle.

        Args:
            bundle: a bundle or the path of one.
            backend: what runs the graphs.
            device: where they run, e.g. ``"cpu"``.
            precision: ``"fp32"`` or ``"fp16"``; by default fp32 on a CPU and fp16, where there is one, elsewhere.
            threads: CPU threads; by default what the backend thinks best.

        Raises:
            BundleError: the bundle cannot be opened.
            BackendError: one of its graphs cannot be opened.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(demo_bundle_path() if bundle is None else bundle)
        stages = Stages.open(opened, backend=backend, device=device, precision=precision, threads=threads)
        return cls(opened, stages, backend=backend, device=device, threads=threads)

    def stream(
        self, prompt: Prompts, options: GenerateOptions = USUAL, *, tokens: NDArray[np.integer] | None = None,
        after: NDArray[np.uint8] | None = None, references: Sequence[NDArray[np.uint8]] = (), mask_strategy: str = "",
        on_event: OnEvent | None = None, overlap: bool = False, preview: bool = False,
    ) -> Generation:
        """Make a video and hand out its frames as they are made, in memory that does not grow with its length.

        The request is checked at once; work begins with the first chunk asked for. Closing the iterator early ends
        the generation; its other methods steer it.

        Args:
            prompt: one prompt, Open-Sora's ``|0| text |6| text``, (seconds, prompt) pairs or a `Timeline`.
            options: what else is asked for.
            tokens: (code_frame, row, column), as `tokens` makes them; injected in place of those the token model
                would write.
            after: frames (frame, height, width, 3) that are there already, of the video's own size and rate. A single
                one is an image that the video begins with. 17 or more are a clip that it continues; up to 68 of its
                last frames are looked at, and all that is said of the video, ``num_frames`` and prompts and the
                numbers of frames, is about what is new.
            references: images (1, height, width, 3) and clips (frame, height, width, 3) of the video's size, for it to
                take frames from.
            mask_strategy: which of them go where, in Open-Sora's words:
                ``segment,reference,start,at,length,edit_ratio`` with ``;`` between entries, each told by
                `arlon_rt.conditioning.Placement`.
            on_event: called with each event, one at a time; what it raises ends the generation. With ``overlap`` it
                is called on the threads that work, else on the one that iterates.
            overlap: draft the next segment and decode the last one while one is denoised, on three threads. The
                frames are the same.
            preview: hand out each segment twice: its tokens decoded as they are, as chunks whose `Chunk.draft` is
                true, before it is denoised, and then its final frames.

        Raises:
            OptionsError: a prompt, an option or the tokens cannot be used.
        """
        resolved = options.resolved(self.bundle)
        view = self._view(resolved)
        conditions = self._conditions(after, references, mask_strategy, view, for_image=resolved.num_frames == 1)
        if after is None or len(after) == 1:
            request, start = self._request(prompt, options, tokens, conditions), BEGINNING
        else:
            if tokens is not None:
                raise OptionsError("tokens and after are both given; a video that goes on writes its own tokens")
            lead = self._given.lead(np.asarray(after), view)
            request = self._request(prompt, options, None, conditions, len(lead))
            start = self._after(request, lead)
        return self._generation(request, start, on_event, overlap=overlap, preview=preview)

    def resume(
        self, snapshot: Snapshot | str | os.PathLike[str], *, on_event: OnEvent | None = None, overlap: bool = False,
        preview: bool = False,
    ) -> Generation:
        """Go on from a snapshot: the frames are those that the uninterrupted generation would have made.

        ``snapshot`` is one or the path of its file; the other arguments are those of `stream`.

        Raises:
            OptionsError: it cannot be read, is of another bundle, backend, device, precision or number of threads, or
                of a video that is complete.
        """
        taken = snapshot if isinstance(snapshot, Snapshot) else Snapshot.load(snapshot)
        if taken.bundle != self.bundle.hash:
            raise OptionsError(
                f"the snapshot is of bundle {taken.bundle:.12}, this one is {self.bundle.hash:.12}; open the pipeline "
                "with the bundle it was made with"
            )
        for name, value in dataclasses.asdict(taken.machine).items():
            if value != (have := getattr(self._machine, name)):
                raise OptionsError(
                    f"the snapshot was made with {name} {value!r:.40}, this pipeline has {have!r}, and would make "
                    f"another video; open the pipeline with {name}={value!r:.40}"
                )
        lead = checked_lead(taken.lead, self.bundle.model)
        request = self._request(taken.prompts, taken.options, taken.given_tokens, taken.conditions, lead)
        check_boundary(taken.boundary, request, self.bundle.model)
        return self._generation(request, taken.boundary, on_event, overlap=overlap, preview=preview)

    def generate(
        self, prompt: Prompts, options: GenerateOptions = USUAL, *, tokens: NDArray[np.integer] | None = None,
        on_event: OnEvent | None = None, overlap: bool = False,
    ) -> Video:
        """Make a video and return all of it; arguments and errors are those of `stream`."""
        chunks = self.stream(prompt, options, tokens=tokens, on_event=on_event, overlap=overlap)
        frames = [chunk.frames for chunk in chunks]
        return Video(np.concatenate(frames), options.resolved(self.bundle).fps)

    def tokens(self, prompt: Prompts, options: GenerateOptions = USUAL) -> NDArray[np.int64]:
        """The tokens (code_frame, row, column) that `stream` would inject; the diffusion transformer does not run.

        Raises:
            OptionsError: a prompt or an option cannot be used, or the request injects no tokens.
        """
        request = self._request(prompt, options, None)
        source = request.tokens
        if source is None:
            raise OptionsError("this request injects no tokens: the bundle has no token model, or inject is False")
        work = Work(self._stages, self.bundle.model, request, lambda event: None)
        with self._one_at_a_time():
            return work.tokens(source, self._code_size(request.view))

    def tokens_of(self, frames: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The tokens (code_frame, row, column) of a clip (frame, height, width, 3), to be rendered anew.

        Given to `stream` with another prompt, what moves how stays and how it looks is the prompt's.

        Raises:
            OptionsError: the bundle has no tokens, or the frames are no clip.
        """
        with self._one_at_a_time():
            tokens: NDArray[np.int64] = self._given.tokens(self._given.latents(checked_frames(frames)))[0]
            return tokens

    @property
    def precision(self) -> str:
        """The precision set that runs, e.g. ``"fp32"``."""
        return self._stages.precision

    def close(self) -> None:
        """Close every graph."""
        self._stages.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _generation(
        self, request: Request, start: Boundary, on_event: OnEvent | None, *, overlap: bool, preview: bool
    ) -> Generation:
        if preview and request.tokens is None:
            raise OptionsError("preview is True, but a draft is made of tokens and this request injects none")
        report = on_event or (lambda event: None)
        work = Work(
            self._stages, self.bundle.model, request, report, overlap=overlap, preview=preview, start=start
        )
        given = request.tokens.tokens if isinstance(request.tokens, GivenTokens) else None
        options = GenerateOptions(**dataclasses.asdict(request.options))

        def snapshot(boundary: Boundary, prompts: Timeline) -> Snapshot:
            return Snapshot(
                bundle=self.bundle.hash, machine=self._machine, options=options, prompts=prompts, boundary=boundary,
                given_tokens=given, conditions=request.conditions, lead=request.lead,
            )

        return Generation(work, self._one_at_a_time(), snapshot)

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
        tokens, before = None, lead[-self.bundle.model.vae.chunk_frames :]
        if isinstance(request.tokens, TokenStream):
            assert self.bundle.model.vq
            written = self._given.tokens(latents := self._given.latents(lead))
            known = latents.shape[2] // self.bundle.model.vq.stride[0]   # a code half of which is to come is not known
            tokens = request.tokens.after(written[:, :known])
        kept = self._given.latents(before) if request.options.reuse_latents else before
        return Boundary(segment=1, before=kept, tokens=tokens)

    def _request(
        self, prompt: Prompts, options: GenerateOptions, tokens: NDArray[np.integer] | None,
        conditions: Conditions = NOTHING, lead: int = 0,
    ) -> Request:
        """The request, checked."""
        prompts, resolved = Timeline.of(prompt), options.resolved(self.bundle)
        unwanted = [resolved.negative_prompt] if resolved.negative_prompt else []
        for wanted in [*(text for _, text in prompts.entries), *unwanted]:
            self._stages.text_encoder.caption(wanted)
        segments = plan(resolved.num_frames, self.bundle.model, resolved.first_segment_frames, lead)
        view, made = self._view(resolved), segments[1:] if lead else segments
        source = self._token_source(resolved, view, segments, tokens)
        conditions.check(made, (self.bundle.model.dit.in_channels, view.latent_height, view.latent_width))
        if isinstance(source, TokenStream):
            model = self.bundle.model
            assert model.vq
            source.know(conditions.codes(made, model.vae.chunk_latents, model.vq.stride[0], self._given.tokens))
        return Request(
            options=resolved, view=view, segments=segments, prompts=prompts.in_seconds(made, resolved.fps),
            tokens=source, conditions=conditions, lead=lead,
        )

    def _code_size(self, view: View) -> tuple[int, int]:
        assert self._stages.vq_decoder
        return self._stages.vq_decoder.code_size(view.latent_height, view.latent_width)

    def _token_source(
        self, options: ResolvedOptions, view: View, segments: list[Segment], tokens: NDArray[np.integer] | None
    ) -> TokenSource | None:
        """The tokens given, or an empty token grid; ``None`` where nothing is injected."""
        token_model, vq_decoder = self._stages.token_model, self._stages.vq_decoder
        if not (options.inject and token_model and vq_decoder):
            if tokens is not None:
                raise OptionsError("tokens are given, but this request injects none: inject is False, or the bundle "
                                   "has no token model; leave tokens out")
            return None
        size, vq = self._code_size(view), vq_decoder.config
        if tokens is not None:
            return GivenTokens(tokens, segments[-1].code_frames(vq.stride[0]).stop, *size, vq.num_codes)
        sampling = Sampling(
            guidance_scale=options.ar_guidance_scale, temperature=options.temperature,
            top_k=options.top_k, top_p=options.top_p, seed=options.seed,
        )
        return token_model.start(*size, sampling)

    def _view(self, options: ResolvedOptions) -> View:
        unit = self.bundle.model.vae.space_stride
        return View(
            height=options.height, width=options.width,
            latent_height=options.height // unit, latent_width=options.width // unit,
            fps=IMAGE_FPS if options.num_frames == 1 else options.fps, guidance_scale=options.guidance_scale,
        )

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        if self._owner == threading.get_ident():
            raise ArlonError("this pipeline is making a video on this thread; finish or close it, or open a second one")
        with self._turn:
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = 0
