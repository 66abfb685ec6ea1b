"""The model on one page: prompt -> text -> tokens -> coarse latents -> latents -> frames, segment by segment."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from arlon_rt import flow, noise
from arlon_rt.ar import GivenTokens, OnToken, Sampling, TokenSource
from arlon_rt.bundle import Bundle, demo_bundle_path
from arlon_rt.captions import with_scores
from arlon_rt.dit import View
from arlon_rt.errors import ArlonError, Cancelled, OptionsError
from arlon_rt.events import ChunkReady, Event, Failed, Finished, Progress, Stage, Started
from arlon_rt.options import GenerateOptions, ResolvedOptions
from arlon_rt.prompts import Text
from arlon_rt.segments import Segment, plan
from arlon_rt.stages import Stages
from arlon_rt.timeline import Timeline

Prompts = str | Timeline | Iterable[tuple[float, str]]
OnEvent = Callable[[Event], object]

USUAL = GenerateOptions()
IMAGE_FPS = 120.0
"""What Open-Sora tells its transformer in place of frames a second when it makes an image (spec 5.3)."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Frames that are ready."""

    frames: NDArray[np.uint8]
    """(frame, height, width, 3), RGB."""
    index: int
    """Number of the first frame in the video."""
    segment: int


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

    def __init__(self, bundle: Bundle, stages: Stages) -> None:
        """From stages that are open; `Pipeline.open` is the usual way."""
        self.bundle, self._stages = bundle, stages
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
        return cls(opened, stages)

    def stream(
        self, prompt: Prompts, options: GenerateOptions = USUAL, *, tokens: NDArray[np.integer] | None = None,
        on_event: OnEvent | None = None,
    ) -> Iterator[Chunk]:
        """Make a video and hand out its frames as they are made, in memory that does not grow with its length.

        The request is checked at once; work begins with the first chunk asked for. Closing the iterator early ends
        the generation. ``tokens`` (code_frame, row, column), as `tokens` makes them, are injected in place of those
        the token model would write. ``on_event`` is called on the thread that iterates; what it raises ends the
        generation.

        Raises:
            OptionsError: a prompt, an option or the tokens cannot be used.
        """
        prompts, resolved, segments = self._request(prompt, options)
        view = self._view(resolved)
        source = self._token_source(resolved, view, segments, tokens)
        return self._reported(segments, prompts, resolved, view, source, on_event or (lambda event: None))

    def generate(
        self, prompt: Prompts, options: GenerateOptions = USUAL, *, tokens: NDArray[np.integer] | None = None,
        on_event: OnEvent | None = None,
    ) -> Video:
        """Make a video and return all of it; arguments and errors are those of `stream`."""
        frames = [chunk.frames for chunk in self.stream(prompt, options, tokens=tokens, on_event=on_event)]
        return Video(np.concatenate(frames), options.resolved(self.bundle).fps)

    def tokens(self, prompt: Prompts, options: GenerateOptions = USUAL) -> NDArray[np.int64]:
        """The tokens (code_frame, row, column) that `stream` would inject; the diffusion transformer does not run.

        Raises:
            OptionsError: a prompt or an option cannot be used, or the request injects no tokens.
        """
        prompts, resolved, segments = self._request(prompt, options)
        view = self._view(resolved)
        source = self._token_source(resolved, view, segments, None)
        if source is None:
            raise OptionsError("this request injects no tokens: the bundle has no token model, or inject is False")
        with self._one_at_a_time():
            negative = self._negative(resolved)
            grid = np.zeros((0, *self._code_size(view)), np.int64)
            for segment in segments:
                text = self._stages.text_encoder.encode(prompts.at(segment.middle(resolved.fps)))
                newest, first = self._segment_tokens(source, text, negative, segment)
                grid = np.concatenate([grid[:first], newest[0]])
        return grid

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

    def _generate(
        self, segments: list[Segment], prompts: Timeline, options: ResolvedOptions, view: View,
        tokens: TokenSource | None, report: OnEvent,
    ) -> Iterator[Chunk]:
        """The paper's figure: each segment from its prompt, the tokens so far and the frames before it."""
        stages, negative = self._stages, self._negative(options)
        denoising = stages.denoiser.start(view)
        before: NDArray[np.uint8] | None = None
        for segment in segments:
            progress = _Reporter(report, segment.index)
            text = stages.text_encoder.encode(prompts.at(segment.middle(options.fps)))
            progress("text", 1, 1)
            coarse = self._coarse(tokens, text, negative, segment, view, progress) if tokens else None
            latents, mask = self._initial_latents(segment, before, view, options.seed)
            latents = denoising.denoise(
                latents, self._steps(segment, mask, options), _renoise(segment, latents.shape, options.seed),
                text=text, negative=negative, coarse=coarse, on_step=progress.of("dit"),
            )
            for chunk in self._frames(segment, latents, progress):
                before = chunk.frames.copy()  # the caller may draw on the frames
                yield chunk

    def _request(
        self, prompt: Prompts, options: GenerateOptions
    ) -> tuple[Timeline, ResolvedOptions, list[Segment]]:
        """The request, checked as far as prompts and options go."""
        prompts, resolved = Timeline.of(prompt), options.resolved(self.bundle)
        for wanted in _texts(prompts, resolved):
            self._stages.text_encoder.caption(wanted)
        segments = plan(resolved.num_frames, self.bundle.model, resolved.first_segment_frames)
        return self._scored(prompts.in_seconds(segments, resolved.fps), resolved), resolved, segments

    def _scored(self, prompts: Timeline, options: ResolvedOptions) -> Timeline:
        """Each prompt with the scores asked for."""
        suffix = self.bundle.model.text.prompt_suffix
        return Timeline(tuple((seconds, with_scores(
            prompt, suffix, aesthetic_score=options.aesthetic_score, motion_score=options.motion_score,
            camera_motion=options.camera_motion,
        )) for seconds, prompt in prompts.entries))

    def _negative(self, options: ResolvedOptions) -> Text | None:
        unwanted = options.negative_prompt
        return self._stages.text_encoder.encode(unwanted) if unwanted else None

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

    def _segment_tokens(
        self, source: TokenSource, text: Text, negative: Text | None, segment: Segment,
        on_token: OnToken = lambda done, total: None,
    ) -> tuple[NDArray[np.int64], int]:
        """The segment's tokens (1, code_frame, row, column) and the number of their first code-frame."""
        assert self._stages.vq_decoder
        code_frames = segment.code_frames(self._stages.vq_decoder.config.stride[0])
        texts = [text, negative or self._stages.text_encoder.null()] if source.guided else [text]
        return source.extend(texts, code_frames, on_token), code_frames.start

    def _coarse(
        self, source: TokenSource, text: Text, negative: Text | None, segment: Segment, view: View,
        progress: _Reporter,
    ) -> NDArray[np.float32]:
        """Write the segment's tokens and decode them to its coarse latents."""
        assert self._stages.vq_decoder
        grid, _ = self._segment_tokens(source, text, negative, segment, progress.of("ar"))
        coarse = self._stages.vq_decoder.decode(grid, segment, view.latent_height, view.latent_width)
        progress("vq", 1, 1)
        return coarse

    def _initial_latents(
        self, segment: Segment, before: NDArray[np.uint8] | None, view: View, seed: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Noise (1, channel, frame, height, width), the frames before encoded at its start, and the mask: 0 there."""
        channels = self.bundle.model.dit.in_channels
        shape = 1, channels, len(segment.latents), view.latent_height, view.latent_width
        latents = noise.normal(seed, "latents", segment.index, shape)
        mask = np.ones(len(segment.latents), np.float32)
        if segment.kept and before is not None:
            latents[:, :, : segment.kept] = self._stages.vae_encoder.encode(before)
            mask[: segment.kept] = 0
        return latents, mask

    def _steps(self, segment: Segment, mask: NDArray[np.float32], options: ResolvedOptions) -> list[flow.Step]:
        model = self.bundle.model
        chunks = len(segment.latents) // model.vae.chunk_latents
        frames = chunks * model.vae.chunk_frames or 1
        times = flow.timesteps(options.num_inference_steps, options.height, options.width, frames, model.flow)
        return flow.schedule(times, mask, model.flow)

    def _frames(self, segment: Segment, latents: NDArray[np.float32], progress: _Reporter) -> Iterator[Chunk]:
        """Decode the new latents chunk by chunk; the last chunk of the video is cut to the length asked for."""
        vae, new = self.bundle.model.vae, latents[:, :, segment.kept :]
        chunks = math.ceil(new.shape[2] / vae.chunk_latents)
        decoded = 1 if new.shape[2] == 1 else chunks * vae.chunk_frames
        for i, frames in enumerate(self._stages.vae_decoder.decode(new, decoded)):
            index = segment.frames.start + i * vae.chunk_frames
            progress("vae", i + 1, chunks)
            yield Chunk(frames[: segment.frames.stop - index], index, segment.index)

    def _view(self, options: ResolvedOptions) -> View:
        unit = self.bundle.model.vae.space_stride
        return View(
            height=options.height, width=options.width,
            latent_height=options.height // unit, latent_width=options.width // unit,
            fps=IMAGE_FPS if options.num_frames == 1 else options.fps, guidance_scale=options.guidance_scale,
        )

    def _reported(
        self, segments: list[Segment], prompts: Timeline, options: ResolvedOptions, view: View,
        tokens: TokenSource | None, report: OnEvent,
    ) -> Iterator[Chunk]:
        """The generation between its first and its last event."""
        begun, unit = time.monotonic(), self.bundle.model.vae.space_stride
        with self._one_at_a_time():
            report(Started(
                num_frames=options.num_frames, fps=options.fps, segments=len(segments),
                height=unit * view.latent_height, width=unit * view.latent_width,
            ))
            try:
                for wanted in _texts(prompts, options):
                    if cut := self._stages.text_encoder.cut(wanted):
                        report(cut)
                for chunk in self._generate(segments, prompts, options, view, tokens, report):
                    report(ChunkReady(segment=chunk.segment, index=chunk.index, num_frames=len(chunk.frames)))
                    yield chunk
            except Cancelled:
                raise
            except Exception as error:
                report(Failed(error=str(error)))
                raise
            report(Finished(num_frames=options.num_frames, wall_seconds=time.monotonic() - begun))

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


class _Reporter:
    """Progress events of one segment."""

    def __init__(self, report: OnEvent, segment: int) -> None:
        self._report, self._segment = report, segment

    def __call__(self, stage: Stage, done: int, total: int) -> None:
        self._report(Progress(stage=stage, segment=self._segment, done=done, total=total))

    def of(self, stage: Stage) -> Callable[[int, int], None]:
        return lambda done, total: self(stage, done, total)


def _texts(prompts: Timeline, options: ResolvedOptions) -> list[str]:
    """Each prompt of a request once, the negative one included."""
    wanted = [*(prompt for _, prompt in prompts.entries), options.negative_prompt]
    return list(dict.fromkeys(text for text in wanted if text))


def _renoise(segment: Segment, shape: tuple[int, ...], seed: int) -> Callable[[int], NDArray[np.float32]]:
    """Noise for frames that join at a step."""
    return lambda step: noise.normal(seed, f"segment {segment.index} step", step, shape)
