"""The model on one page: three lanes, drafts -> denoised latents -> chunks of frames, segment by segment.

Each lane is an iterator over the one before it. In sequence the lanes are plain generators; with overlap each runs on a
thread of its own (`arlon_rt.generation.ahead`), and makes the same calls on the same values.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Self, TypeVar

from arlon_rt.config import ModelConfig
from arlon_rt.errors import Cancelled
from arlon_rt.events import ChunkReady, Failed, Finished, OnEvent, Started
from arlon_rt.generation.ahead import Ahead
from arlon_rt.generation.control import Control, Reporter, peak_memory
from arlon_rt.generation.decoding import Chunk, chunks
from arlon_rt.generation.denoising import denoised
from arlon_rt.generation.drafting import drafts
from arlon_rt.generation.job import Job
from arlon_rt.networks import Networks
from arlon_rt.request import BEGINNING, Boundary, Request
from arlon_rt.timeline import Script, Timeline

if TYPE_CHECKING:
    from arlon_rt.generation.snapshot import Snapshot

T = TypeVar("T")


class Generation:
    """One video under way: an iterator over its chunks, and the methods that steer it.

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

        ``None`` is as soon as possible: the next segment whose tokens are not being written yet. Returns the second
        from which the prompt holds.

        Raises:
            OptionsError: the prompt cannot be used, or it is too late for it.
        """
        job = self._work.job
        return job.script.set_prompt(prompt, at, job.networks.text_encoder.caption)

    def pause(self) -> None:
        """Stop all work after the token, step or chunk under way, until `resume`."""
        self._work.control.pause()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._work.control.resume()

    def cancel(self) -> None:
        """End all work after the token, step or chunk under way: the iterator raises `Cancelled`."""
        self._work.control.cancel()

    def snapshot(self) -> Snapshot:
        """The video's state at the end of the last segment that was handed out whole.

        `Pipeline.resume` goes on from it; chunks of the segment under way are generated again.
        """
        return self._snapshot(self._work.boundary, self._work.job.script.timeline)

    def close(self) -> None:
        """End the generation on the thread that iterates, as dropping it does; nothing is raised."""
        self._chunks.close()


class Work:
    """One run of a request."""

    def __init__(
        self, networks: Networks, model: ModelConfig, request: Request, report: OnEvent, *, overlap: bool = False,
        preview: bool = False, all_texts_first: bool = False,
    ) -> None:
        """``all_texts_first`` encodes the request's prompts in one go, so that the text encoder is loaded once."""
        self.control, self.boundary = Control(), request.start or BEGINNING
        self.job = Job(
            networks=networks, model=model, request=request, preview=preview,
            script=Script(request.prompts, request.segments, request.options.fps, self.boundary.segment),
            reporter=Reporter(report, self.control),
        )
        self._overlap, self._all_texts_first = overlap, all_texts_first

    def run(self) -> Generator[Chunk]:
        """The model on one page: drafts -> denoised latents -> chunks, each lane an iterator over the one before it."""
        job = self.job
        self._encode_texts()
        drafted = self._lane("drafting", drafts(job, self.boundary))
        segments = self._lane("denoising", denoised(job, drafted, self.boundary.before))
        try:
            for latents in segments:
                for chunk in chunks(job, latents):
                    if chunk.ends_segment:
                        self.boundary = Boundary(
                            segment=chunk.segment + 1, before=latents.end(), tokens=latents.draft.tokens
                        )
                    yield chunk
        finally:
            self.control.cancel()  # the lanes end at their next checkpoint: nobody takes their items any more
            drafted.close()
            segments.close()

    def reported(self, turn: AbstractContextManager[None]) -> Generator[Chunk]:
        """The chunks, between the first and the last event; ``turn`` is held until the generator ends."""
        with turn:
            begun, first_chunk, emit = time.monotonic(), 0.0, self.job.reporter.emit
            first_frame = self.job.request.segments[self.boundary.segment].frames.start
            emit(self._started(first_frame))
            try:
                for prompt in self.job.all_prompts():
                    if cut := self.job.networks.text_encoder.cut(prompt):
                        emit(cut)
                for chunk in self.run():
                    if not chunk.draft:
                        first_chunk = first_chunk or time.monotonic() - begun
                    emit(ChunkReady(
                        segment=chunk.segment, index=chunk.index, num_frames=len(chunk.frames), draft=chunk.draft
                    ))
                    yield chunk
            except Cancelled:
                raise
            except Exception as error:
                emit(Failed(error=str(error)))
                raise
            emit(self._finished(time.monotonic() - begun, first_chunk, first_frame))

    def _lane(self, name: str, items: Generator[T]) -> Generator[T] | Ahead[T]:
        return Ahead(items, f"arlon-rt {name}") if self._overlap else items

    def _encode_texts(self) -> None:
        """Encode the texts that every segment needs, before the lanes have threads of their own."""
        with self.job.reporter.timed("text"):
            _ = self.job.negative
            if self._all_texts_first:
                self.job.networks.text_encoder.encode_all(self.job.all_prompts())

    def _started(self, first_frame: int) -> Started:
        options, view, unit = self.job.request.options, self.job.request.view, self.job.model.vae.space_stride
        return Started(
            num_frames=options.num_frames, fps=options.fps, segments=len(self.job.request.segments),
            height=unit * view.latent_height, width=unit * view.latent_width,
            first_frame=first_frame, overlap=self._overlap,
        )

    def _finished(self, wall: float, first_chunk: float, first_frame: int) -> Finished:
        """After ``wall`` seconds that generated all frames from number ``first_frame`` on."""
        options = self.job.request.options
        return Finished(
            num_frames=options.num_frames, wall_seconds=wall, first_chunk_seconds=first_chunk,
            real_time_factor=(options.num_frames - first_frame) / options.fps / wall, peak_memory_bytes=peak_memory(),
            network_seconds=dict(self.job.reporter.seconds),
        )
