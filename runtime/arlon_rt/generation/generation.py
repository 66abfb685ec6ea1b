"""The model on one page, segment by segment: prompt -> text -> tokens -> coarse latents -> latents -> frames.

Three stages, each an iterator over the one before: drafts (text, tokens, coarse latents), parts (denoised segments)
and chunks (decoded frames). Run in sequence they are plain generators; run ahead (`arlon_rt.ahead`) each works on a
thread of its own, and the same calls are made on the same values.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from arlon_rt import flow, noise
from arlon_rt.ahead import Ahead
from arlon_rt.config import ModelConfig
from arlon_rt.drafting import Draft, Drafting, negative_text
from arlon_rt.errors import Cancelled
from arlon_rt.events import ChunkReady, Failed, Finished, Started
from arlon_rt.peak_memory import peak_memory
from arlon_rt.prompts import Text
from arlon_rt.reporting import OnEvent, Reporter
from arlon_rt.request import BEGINNING, Boundary, Chunk, Request
from arlon_rt.segments import Segment
from arlon_rt.stages import Stages
from arlon_rt.steering import Control, Script
from arlon_rt.timeline import Timeline
from arlon_rt.tokens import TokenSource

if TYPE_CHECKING:
    from arlon_rt.snapshot import Snapshot

T = TypeVar("T")


class _Part:
    """A segment to be decoded: denoised, or its draft. Each chunk is decoded once, by whichever thread asks first."""

    def __init__(
        self, draft: Draft, latents: NDArray[np.float32], chunks: int, decode: Callable[[int], NDArray[np.uint8]], *,
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
        preview: bool = False, start: Boundary = BEGINNING, all_texts_first: bool = False,
    ) -> None:
        """``all_texts_first``: encode the request's prompts in one go, so that their encoder is loaded once."""
        self.stages, self.request = stages, request
        self.control = Control()
        self.boundary = start
        self.script = Script(request.prompts, request.segments, request.options.fps, start.segment)
        self._model, self._overlap, self._preview = model, overlap, preview
        self._reporter = Reporter(report, self.control)
        self._drafting = Drafting(
            stages, model.text, request, self.script, self._reporter, all_texts_first=all_texts_first
        )
        self._negative: Text | None = None

    def reported(self, turn: AbstractContextManager[None]) -> Generator[Chunk]:
        """The chunks, between the first and the last event."""
        with turn:
            begun, first, begin = time.monotonic(), None, self._next_frame
            self._reporter.emit(self._started())
            try:
                for wanted in self._drafting.wanted():
                    if cut := self.stages.text_encoder.cut(wanted):
                        self._reporter.emit(cut)
                for chunk in self._all_chunks():
                    if not chunk.draft:
                        first = first or time.monotonic() - begun
                    self._reporter.emit(ChunkReady(
                        segment=chunk.segment, index=chunk.index, num_frames=len(chunk.frames), draft=chunk.draft
                    ))
                    yield chunk
            except Cancelled:
                raise
            except Exception as error:
                self._reporter.emit(Failed(error=str(error)))
                raise
            self._reporter.emit(self._finished(time.monotonic() - begun, first or 0.0, begin))

    def tokens(self, source: TokenSource, size: tuple[int, int]) -> NDArray[np.int64]:
        """All tokens (code_frame, row, column) of a video, and nothing else."""
        return self._drafting.tokens(source, size, negative_text(self.stages, self.request.options))

    def _all_chunks(self) -> Generator[Chunk]:
        self._negative = negative_text(self.stages, self.request.options)
        drafts = self._ahead(self._drafting.drafts(self.boundary, self._negative), "drafting")
        parts = self._ahead(self._parts(drafts), "denoising")
        try:
            for part in parts:
                yield from self._chunks(part)
        finally:
            self.control.cancel()  # whatever is still under way has no one to take it
            drafts.close()
            parts.close()

    def _parts(self, drafts: Iterator[Draft]) -> Generator[_Part]:
        """Each segment denoised, from the frames before it on; before each its draft, where that is asked for."""
        options, negative = self.request.options, self._negative
        denoising, before = self.stages.denoiser.start(self.request.view), self.boundary.before
        for draft in drafts:
            segment = draft.segment
            if self._preview and draft.coarse is not None:
                yield self._part(draft, draft.coarse, final=False)
            latents, mask = self._initial_latents(segment, before)
            with self._reporter.timed("dit"):
                latents = denoising.denoise(
                    latents, self._steps(segment, mask), _renoise(segment, latents.shape, options.seed),
                    text=draft.text, negative=negative, coarse=draft.coarse, guided_steps=options.guided_steps,
                    reuse_velocity=options.reuse_velocity, on_step=self._reporter.progress("dit", segment),
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
        segment = part.draft.segment
        progress = self._reporter.progress("vae" if part.final else "draft", segment)
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
        """Noise (1, channel, frame, height, width) where nothing is given, and the mask: 0 where it is.

        Given are what references show there, and the chunk before as latents at the start.
        """
        view, channels = self.request.view, self._model.dit.in_channels
        shape = 1, channels, len(segment.latents), view.latent_height, view.latent_width
        latents = noise.normal(self.request.options.seed, "latents", segment.index, shape)
        mask = np.ones(len(segment.latents), np.float32)
        number = segment.index - (self.request.lead > 0)
        self.request.conditions.place(number, latents, mask, self._model.vae.chunk_latents)
        if before is not None:
            with self._reporter.timed("vae"):
                kept = before if before.dtype == np.float32 else self.stages.vae_encoder.encode(before)
            latents[:, :, : kept.shape[2]] = kept
            mask[: kept.shape[2]] = 0
        return latents, mask

    def _steps(self, segment: Segment, mask: NDArray[np.float32]) -> list[flow.Step]:
        options, model = self.request.options, self._model
        frames = len(segment.latents) // model.vae.chunk_latents * model.vae.chunk_frames or 1
        times = flow.timesteps(options.num_inference_steps, options.height, options.width, frames, model.flow)
        return flow.schedule(times, mask, model.flow)

    def _part(self, draft: Draft, latents: NDArray[np.float32], *, final: bool) -> _Part:
        """The segment with its new latents to be decoded; a chunk that the length asked for cuts is decoded whole."""
        decoder, new = self.stages.vae_decoder, latents[:, :, draft.segment.kept :]
        chunks = decoder.chunks(new)
        frames = 1 if new.shape[2] == 1 else chunks * self._model.vae.chunk_frames

        def decode(chunk: int) -> NDArray[np.uint8]:
            with self._reporter.timed("vae" if final else "draft"):
                return decoder.decode_chunk(new, chunk, frames)

        return _Part(draft, latents, chunks, decode, final=final)

    def _ahead(self, stage: Generator[T], name: str) -> Generator[T] | Ahead[T]:
        return Ahead(stage, f"arlon-rt {name}") if self._overlap else stage

    def _started(self) -> Started:
        options, view, unit = self.request.options, self.request.view, self._model.vae.space_stride
        return Started(
            num_frames=options.num_frames, fps=options.fps, segments=len(self.request.segments),
            height=unit * view.latent_height, width=unit * view.latent_width,
            first_frame=self._next_frame, overlap=self._overlap,
        )

    @property
    def _next_frame(self) -> int:
        """Number of the first frame after the boundary."""
        return self.request.segments[self.boundary.segment].frames.start

    def _finished(self, wall: float, first_chunk: float, begin: int) -> Finished:
        """After ``wall`` seconds in which all frames from number ``begin`` on were made."""
        options = self.request.options
        return Finished(
            num_frames=options.num_frames, wall_seconds=wall, first_chunk_seconds=first_chunk,
            real_time_factor=(options.num_frames - begin) / options.fps / wall, peak_memory_bytes=peak_memory(),
            stage_seconds=dict(self._reporter.seconds),
        )


def _renoise(segment: Segment, shape: tuple[int, ...], seed: int) -> Callable[[int], NDArray[np.float32]]:
    """Noise for frames that join at a step."""
    return lambda step: noise.normal(seed, f"segment {segment.index} step", step, shape)
