"""The model on one page, segment by segment: prompt -> text -> tokens -> coarse latents -> latents -> frames.

Three stages, each an iterator over the one before: drafts (text, tokens, coarse latents), parts (denoised segments)
and chunks (decoded frames). Run in sequence they are plain generators; run ahead (`arlon_rt.ahead`) each works on a
thread of its own, and the same calls are made on the same values.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from arlon_rt import flow, noise
from arlon_rt.ahead import Ahead
from arlon_rt.ar import OnToken, TokenSource, TokenState
from arlon_rt.captions import with_scores
from arlon_rt.config import ModelConfig
from arlon_rt.errors import Cancelled
from arlon_rt.events import ChunkReady, Event, Failed, Finished, Progress, Stage, Started
from arlon_rt.options import ResolvedOptions
from arlon_rt.prompts import Text
from arlon_rt.request import BEGINNING, Boundary, Chunk, Request
from arlon_rt.segments import Segment
from arlon_rt.stages import Stages
from arlon_rt.steering import Control, Script
from arlon_rt.timeline import Timeline

if TYPE_CHECKING:
    from arlon_rt.snapshot import Snapshot

T = TypeVar("T")
OnEvent = Callable[[Event], object]


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """What a segment is denoised from."""

    segment: Segment
    text: Text
    coarse: NDArray[np.float32] | None
    tokens: TokenState | None
    """Of the token model after it."""


class _Part:
    """A segment to be decoded: denoised, or its draft. Each chunk is decoded once, by whichever thread asks first."""

    def __init__(
        self, draft: _Draft, latents: NDArray[np.float32], chunks: int, decode: Callable[[int], NDArray[np.uint8]], *,
        final: bool,
    ) -> None:
        self.draft, self.latents, self._decode, self.final = draft, latents, decode, final
        self._locks = [threading.Lock() for _ in range(chunks)]
        self._frames: dict[int, NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return len(self._locks)

    def frames(self, chunk: int) -> NDArray[np.uint8]:
        """(frame, height, width, 3)."""
        with self._locks[chunk]:
            if chunk not in self._frames:
                self._frames[chunk] = self._decode(chunk)
            return self._frames[chunk]


class Generation:
    """One video under way: an iterator over its chunks, and the handles that steer it.

    Work begins with the first chunk asked for and ends when the last is handed out, when `close` is called, or when the
    iterator is dropped. The other methods may be called from any thread, and from ``on_event``.
    """

    def __init__(
        self, work: Work, turn: AbstractContextManager[None], snapshot: Callable[[Boundary, Timeline], Snapshot]
    ) -> None:
        self._work, self._snapshot = work, snapshot
        self._chunks = work.reported(turn)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def set_prompt(self, prompt: str, at: float | None = None) -> float:
        """Change what is shown from ``at`` seconds on, until a later prompt of the request.

        ``None`` is as soon as can be: the next segment whose tokens are not being written yet. Returns the second from
        which it holds.

        Raises:
            OptionsError: the prompt cannot be used, or it is too late for it.
        """
        return self._work.script.set_prompt(prompt, at, self._work.stages.text_encoder.caption)

    def pause(self) -> None:
        """Stop all work after the token, step or chunk under way, until `resume`."""
        self._work.control.pause()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._work.control.resume()

    def cancel(self) -> None:
        """End all work after the token, step or chunk under way: whoever iterates gets `Cancelled`."""
        self._work.control.cancel()

    def snapshot(self) -> Snapshot:
        """Where the video stands, at the end of the last segment that was handed out whole.

        `Pipeline.resume` goes on from there; chunks of the segment under way are made again.
        """
        return self._snapshot(self._work.boundary, self._work.script.timeline)

    def close(self) -> None:
        """End the generation on the thread that iterates, as dropping it does; nothing is raised."""
        self._chunks.close()


class Work:
    """What a generation does; made by `arlon_rt.pipeline.Pipeline`."""

    def __init__(
        self, stages: Stages, model: ModelConfig, request: Request, report: OnEvent, *, overlap: bool = False,
        preview: bool = False, start: Boundary = BEGINNING,
    ) -> None:
        self.stages, self.request = stages, request
        self.control = Control()
        self.boundary = start
        self.script = Script(request.prompts, request.segments, request.options.fps, self.boundary.segment)
        self._model, self._report, self._overlap, self._preview = model, report, overlap, preview
        self._reporting = threading.RLock()
        self._seconds: dict[Stage, float] = {}
        self._negative: Text | None = None

    def reported(self, turn: AbstractContextManager[None]) -> Generator[Chunk]:
        """The chunks, between the first and the last event."""
        with turn:
            begun, first = time.monotonic(), None
            self._emit(self._started())
            try:
                for wanted in self._wanted():
                    if cut := self.stages.text_encoder.cut(wanted):
                        self._emit(cut)
                for chunk in self._all_chunks():
                    if not chunk.draft:
                        first = first or time.monotonic() - begun
                    self._emit(ChunkReady(
                        segment=chunk.segment, index=chunk.index, num_frames=len(chunk.frames), draft=chunk.draft
                    ))
                    yield chunk
            except Cancelled:
                raise
            except Exception as error:
                self._emit(Failed(error=str(error)))
                raise
            self._emit(Finished(
                num_frames=self.request.options.num_frames, wall_seconds=time.monotonic() - begun,
                first_chunk_seconds=first or 0.0, stage_seconds=dict(self._seconds),
            ))

    def tokens(self, source: TokenSource, size: tuple[int, int]) -> NDArray[np.int64]:
        """All tokens (code_frame, row, column) of a video, and nothing else."""
        negative = negative_text(self.stages, self.request.options)
        grid = np.zeros((0, *size), np.int64)
        for segment in self.request.segments:
            text = self.stages.text_encoder.encode(self._told(self.script.claim(segment)))
            newest, first = segment_tokens(self.stages, source, text, negative, segment)
            grid = np.concatenate([grid[:first], newest[0]])
        return grid

    def _all_chunks(self) -> Generator[Chunk]:
        self._negative = negative_text(self.stages, self.request.options)
        drafts = self._ahead(self._drafts(), "drafting")
        parts = self._ahead(self._parts(drafts), "denoising")
        try:
            for part in parts:
                yield from self._chunks(part)
        finally:
            self.control.cancel()  # whatever is still under way has no one to take it
            drafts.close()
            parts.close()

    def _drafts(self) -> Generator[_Draft]:
        """Each segment's text and coarse latents."""
        stages, source, negative = self.stages, self.request.tokens, self._negative
        if source and self.boundary.tokens:
            self._restore(source, self.boundary.tokens)
        for segment in self.request.segments[self.boundary.segment :]:
            with self._timed("text"):
                text = stages.text_encoder.encode(self._told(self.script.claim(segment)))
            self._progress("text", segment)(1, 1)
            coarse = self._coarse(source, text, negative, segment) if source else None
            yield _Draft(segment=segment, text=text, coarse=coarse, tokens=source.state() if source else None)

    def _restore(self, source: TokenSource, state: TokenState) -> None:
        """Bring the token model to where it was after the segment before, or after what the video begins with."""
        last = self.request.segments[max(0, self.boundary.segment - 1)]
        prompt = self.script.timeline.at(last.middle(self.request.options.fps))
        text = self.stages.text_encoder.encode(self._told(prompt))
        with self._timed("ar"):
            source.restore(state, _rows(self.stages, source, text, self._negative))

    def _coarse(
        self, source: TokenSource, text: Text, negative: Text | None, segment: Segment
    ) -> NDArray[np.float32]:
        """Write the segment's tokens and decode them to its coarse latents."""
        stages, view = self.stages, self.request.view
        assert stages.vq_decoder
        with self._timed("ar"):
            grid, _ = segment_tokens(stages, source, text, negative, segment, self._progress("ar", segment))
        with self._timed("vq"):
            coarse = stages.vq_decoder.decode(grid, segment, view.latent_height, view.latent_width)
        self._progress("vq", segment)(1, 1)
        return coarse

    def _parts(self, drafts: Iterator[_Draft]) -> Generator[_Part]:
        """Each segment denoised, from the frames before it on; before each its draft, where that is asked for."""
        options, negative = self.request.options, self._negative
        denoising, before = self.stages.denoiser.start(self.request.view), self.boundary.before
        for draft in drafts:
            segment = draft.segment
            if self._preview and draft.coarse is not None:
                yield self._part(draft, draft.coarse, final=False)
            latents, mask = self._initial_latents(segment, before)
            with self._timed("dit"):
                latents = denoising.denoise(
                    latents, self._steps(segment, mask), _renoise(segment, latents.shape, options.seed),
                    text=draft.text, negative=negative, coarse=draft.coarse, guided_steps=options.guided_steps,
                    reuse_velocity=options.reuse_velocity, on_step=self._progress("dit", segment),
                )
            part = self._part(draft, latents, final=True)
            yield part
            if segment.index + 1 < len(self.request.segments):
                before = self._before_next(part)

    def _before_next(self, part: _Part) -> NDArray[Any]:
        """What the next segment goes on from."""
        if self.request.options.reuse_latents:
            return part.latents[:, :, -self._model.vae.chunk_latents :]
        return part.frames(len(part) - 1)

    def _chunks(self, part: _Part) -> Generator[Chunk]:
        """The segment's new frames; its last chunk is where the next segment goes on from."""
        segment, progress = part.draft.segment, self._progress("vae" if part.final else "draft", part.draft.segment)
        for i in range(len(part)):
            frames, index = part.frames(i), segment.frames.start + i * self._model.vae.chunk_frames
            progress(i + 1, len(part))
            last = i + 1 == len(part)
            if last and part.final:
                before = self._before_next(part)
                self.boundary = Boundary(segment=segment.index + 1, before=before, tokens=part.draft.tokens)
                frames = frames.copy()  # the caller may draw on it
            yield Chunk(
                frames[: segment.frames.stop - index], index, segment.index, last and part.final, not part.final
            )

    def _initial_latents(
        self, segment: Segment, before: NDArray[Any] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Noise (1, channel, frame, height, width), the chunk before as latents at its start, and the mask: 0 there."""
        view, channels = self.request.view, self._model.dit.in_channels
        shape = 1, channels, len(segment.latents), view.latent_height, view.latent_width
        latents = noise.normal(self.request.options.seed, "latents", segment.index, shape)
        mask = np.ones(len(segment.latents), np.float32)
        if before is not None:
            with self._timed("vae"):
                kept = before if before.dtype == np.float32 else self.stages.vae_encoder.encode(before)
            latents[:, :, : kept.shape[2]] = kept
            mask[: kept.shape[2]] = 0
        return latents, mask

    def _steps(self, segment: Segment, mask: NDArray[np.float32]) -> list[flow.Step]:
        options, model = self.request.options, self._model
        frames = len(segment.latents) // model.vae.chunk_latents * model.vae.chunk_frames or 1
        times = flow.timesteps(options.num_inference_steps, options.height, options.width, frames, model.flow)
        return flow.schedule(times, mask, model.flow)

    def _part(self, draft: _Draft, latents: NDArray[np.float32], *, final: bool) -> _Part:
        """The segment with its new latents to be decoded; a chunk that the length asked for cuts is decoded whole."""
        decoder, new = self.stages.vae_decoder, latents[:, :, draft.segment.kept :]
        chunks = decoder.chunks(new)
        frames = 1 if new.shape[2] == 1 else chunks * self._model.vae.chunk_frames

        def decode(chunk: int) -> NDArray[np.uint8]:
            with self._timed("vae" if final else "draft"):
                return decoder.decode_chunk(new, chunk, frames)

        return _Part(draft, latents, chunks, decode, final=final)

    def _ahead(self, stage: Generator[T], name: str) -> Generator[T] | Ahead[T]:
        return Ahead(stage, f"arlon-rt {name}") if self._overlap else stage

    def _told(self, prompt: str) -> str:
        """The prompt with the scores asked for."""
        options = self.request.options
        return with_scores(
            prompt, self._model.text.prompt_suffix, aesthetic_score=options.aesthetic_score,
            motion_score=options.motion_score, camera_motion=options.camera_motion,
        )

    def _wanted(self) -> list[str]:
        """Each prompt once as it is told, the negative one included."""
        told = [self._told(prompt) for _, prompt in self.request.prompts.entries]
        return list(dict.fromkeys(text for text in [*told, self.request.options.negative_prompt] if text))

    def _started(self) -> Started:
        options, view, unit = self.request.options, self.request.view, self._model.vae.space_stride
        return Started(
            num_frames=options.num_frames, fps=options.fps, segments=len(self.request.segments),
            height=unit * view.latent_height, width=unit * view.latent_width,
            first_frame=self.request.segments[self.boundary.segment].frames.start, overlap=self._overlap,
        )

    def _progress(self, stage: Stage, segment: Segment) -> Callable[[int, int], None]:
        """Where every unit of work passes: it may have to wait here, or end."""
        def passed(done: int, total: int) -> None:
            self.control.checkpoint()
            self._emit(Progress(stage=stage, segment=segment.index, done=done, total=total))

        return passed

    def _emit(self, event: Event) -> None:
        with self._reporting:
            self._report(event)

    @contextmanager
    def _timed(self, stage: Stage) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            with self._reporting:
                self._seconds[stage] = self._seconds.get(stage, 0.0) + time.perf_counter() - begun


def negative_text(stages: Stages, options: ResolvedOptions) -> Text | None:
    """What guidance steers away from, where the request names it."""
    return stages.text_encoder.encode(options.negative_prompt) if options.negative_prompt else None


def segment_tokens(
    stages: Stages, source: TokenSource, text: Text, negative: Text | None, segment: Segment,
    on_token: OnToken = lambda done, total: None,
) -> tuple[NDArray[np.int64], int]:
    """The segment's tokens (1, code_frame, row, column) and the number of their first code-frame."""
    assert stages.vq_decoder
    code_frames = segment.code_frames(stages.vq_decoder.config.stride[0])
    return source.extend(_rows(stages, source, text, negative), code_frames, on_token), code_frames.start


def _rows(stages: Stages, source: TokenSource, text: Text, negative: Text | None) -> list[Text]:
    """The prompts of the token model's batch."""
    return [text, negative or stages.text_encoder.null()] if source.guided else [text]


def _renoise(segment: Segment, shape: tuple[int, ...], seed: int) -> Callable[[int], NDArray[np.float32]]:
    """Noise for frames that join at a step."""
    return lambda step: noise.normal(seed, f"segment {segment.index} step", step, shape)
