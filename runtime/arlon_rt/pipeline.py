"""The library's front door: a bundle opened, and requests to it. What a generation does is in generation.py."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from arlon_rt.ar import GivenTokens, Sampling, TokenSource, TokenStream
from arlon_rt.bundle import Bundle, demo_bundle_path
from arlon_rt.dit import View
from arlon_rt.errors import ArlonError, OptionsError
from arlon_rt.generation import Generation, OnEvent, Work
from arlon_rt.options import GenerateOptions, ResolvedOptions
from arlon_rt.request import BEGINNING, Boundary, Request, check_boundary
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
        after: NDArray[np.uint8] | None = None, on_event: OnEvent | None = None, overlap: bool = False,
        preview: bool = False,
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
                last frames are looked at, `Chunk.index` counts on from their end, and prompts and ``num_frames`` are
                about what is new.
            on_event: called with each event, one at a time; what it raises ends the generation. With ``overlap`` it
                is called on the threads that work, else on the one that iterates.
            overlap: draft the next segment and decode the last one while one is denoised, on three threads. The
                frames are the same.
            preview: hand out each segment twice: its tokens decoded as they are, as chunks whose `Chunk.draft` is
                true, before it is denoised, and then its final frames.

        Raises:
            OptionsError: a prompt, an option or the tokens cannot be used.
        """
        if after is None:
            request, start = self._request(prompt, options, tokens), BEGINNING
        else:
            request, start = self._continuation(prompt, options, tokens, np.asarray(after))
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
        request = self._request(taken.prompts, taken.options, taken.given_tokens)
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
        encoder = self._stages.vq_encoder
        if encoder is None:
            raise OptionsError("this bundle cannot turn frames into tokens: it has no graph vq_encoder")
        with self._one_at_a_time():
            tokens: NDArray[np.int64] = encoder.encode(self._stages.vae_encoder.encode_clip(checked_frames(frames)))[0]
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
                given_tokens=given,
            )

        return Generation(work, self._one_at_a_time(), snapshot)

    def _continuation(
        self, prompt: Prompts, options: GenerateOptions, tokens: NDArray[np.integer] | None, frames: NDArray[np.uint8]
    ) -> tuple[Request, Boundary]:
        """The request as that of a whole video which begins with what is there, and where its work begins."""
        if tokens is not None:
            raise OptionsError("tokens and after are both given; a video that goes on writes its own tokens")
        resolved, model = options.resolved(self.bundle), self.bundle.model
        chunk, stages = model.vae.chunk_frames, self._stages
        frames, view = checked_frames(frames), self._view(resolved)
        size = view.latent_height * model.vae.space_stride, view.latent_width * model.vae.space_stride
        if frames.shape[1:3] != size or (1 < len(frames) < chunk):
            raise OptionsError(f"after has shape {frames.shape}; (frame, {size[0]}, {size[1]}, 3) is needed, with one "
                               f"frame, or {chunk} and more")
        image = len(frames) == 1
        used = min(len(frames) // chunk * chunk, model.video.segment_frames)
        if not image:
            frames = frames[-used:]
            new = dataclasses.asdict(resolved) | {
                "num_frames": used + resolved.num_frames, "first_segment_frames": used,
            }
            options, prompt = GenerateOptions(**new), Timeline.of(prompt).delayed(used / resolved.fps)
        request = self._request(prompt, options, None)
        written = None
        if isinstance(request.tokens, TokenStream):
            if stages.vq_encoder is None:
                raise OptionsError(
                    "this bundle cannot go on from frames: it has no graph vq_encoder to turn them into tokens; set "
                    "inject to False, or export it with vq.has_encoder"
                )
            assert model.vq
            # an image stands still for a chunk; the code that it shares with what is to come is the model's to write
            latents = stages.vae_encoder.encode_clip(np.repeat(frames, chunk, axis=0) if image else frames)
            known = 1 if image else latents.shape[2] // model.vq.stride[0]
            written = request.tokens.after(stages.vq_encoder.encode(latents)[:, :known])
        before: NDArray[Any] = frames[-chunk:]
        if resolved.reuse_latents and not image:
            before = stages.vae_encoder.encode(before)
        return request, Boundary(segment=0 if image else 1, before=before, tokens=written)

    def _request(
        self, prompt: Prompts, options: GenerateOptions, tokens: NDArray[np.integer] | None
    ) -> Request:
        """The request, checked."""
        prompts, resolved = Timeline.of(prompt), options.resolved(self.bundle)
        unwanted = [resolved.negative_prompt] if resolved.negative_prompt else []
        for wanted in [*(text for _, text in prompts.entries), *unwanted]:
            self._stages.text_encoder.caption(wanted)
        segments = plan(resolved.num_frames, self.bundle.model, resolved.first_segment_frames)
        view = self._view(resolved)
        return Request(
            options=resolved, view=view, segments=segments, prompts=prompts.in_seconds(segments, resolved.fps),
            tokens=self._token_source(resolved, view, segments, tokens),
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


def checked_frames(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames from outside.

    Raises:
        OptionsError: they are not uint8 (frame, height, width, 3), or there is none.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise OptionsError(f"frames are {frames.dtype} {frames.shape}; uint8 (frame, height, width, 3) is expected")
    return frames
