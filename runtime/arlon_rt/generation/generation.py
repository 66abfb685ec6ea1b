"""The model on one page, segment by segment: prompt -> text -> tokens -> coarse latents -> latents -> frames.

Three stages, each an iterator over the one before: drafts (text, tokens, coarse latents), parts (denoised segments)
and chunks (decoded frames). Run in sequence they are plain generators; run ahead (`arlon_rt.ahead`) each works on a
thread of its own, and the same calls are made on the same values.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from arlon_rt.config import ModelConfig
from arlon_rt.errors import Cancelled
from arlon_rt.events import ChunkReady, Failed, Finished, OnEvent, Started
from arlon_rt.generation.ahead import Ahead
from arlon_rt.generation.control import Control, Reporter, peak_memory
from arlon_rt.generation.decoding import Chunk, chunks
from arlon_rt.generation.denoising import denoised
from arlon_rt.generation.drafting import all_tokens, drafts
from arlon_rt.generation.job import Job
from arlon_rt.networks import Networks, TokenSource
from arlon_rt.request import BEGINNING, Boundary, Request
from arlon_rt.timeline import Script, Timeline

if TYPE_CHECKING:
    from arlon_rt.generation.snapshot import Snapshot

T = TypeVar("T")


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
        return self._work.script.set_prompt(prompt, at, self._work.job.networks.text_encoder.caption)

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
        self, networks: Networks, model: ModelConfig, request: Request, report: OnEvent, *, overlap: bool = False,
        preview: bool = False, start: Boundary = BEGINNING, all_texts_first: bool = False,
    ) -> None:
        """``all_texts_first``: encode the request's prompts in one go, so that their encoder is loaded once."""
        self.control, self.boundary = Control(), start
        self.script = Script(request.prompts, request.segments, request.options.fps, start.segment)
        self.job = Job(
            networks=networks, model=model, request=request, script=self.script,
            reporter=Reporter(report, self.control), preview=preview,
        )
        self._overlap, self._all_texts_first = overlap, all_texts_first

    def run(self) -> Generator[Chunk]:
        """The model on one page: drafts, denoised segments, frames; each lane an iterator over the one before."""
        job, _ = self.job, self.job.negative  # encoded before the lanes begin, which may have threads of their own
        if self._all_texts_first:
            with job.timed("text"):
                job.networks.text_encoder.encode_all(job.all_prompts())
        drafted = self._ahead(drafts(job, self.boundary), "drafting")
        parts = self._ahead(denoised(job, drafted, self.boundary.before), "denoising")
        try:
            for part in parts:
                for chunk in chunks(job, part):
                    if chunk.ends_segment:
                        self.boundary = Boundary(
                            segment=chunk.segment + 1, before=part.end(), tokens=part.draft.tokens
                        )
                    yield chunk
        finally:
            self.control.cancel()  # whatever is still under way has no one to take it
            drafted.close()
            parts.close()

    def reported(self, turn: AbstractContextManager[None]) -> Generator[Chunk]:
        """The chunks, between the first and the last event."""
        with turn:
            begun, first, begin, reporter = time.monotonic(), None, self._next_frame, self.job.reporter
            reporter.emit(self._started())
            try:
                for prompt in self.job.all_prompts():
                    if cut := self.job.networks.text_encoder.cut(prompt):
                        reporter.emit(cut)
                for chunk in self.run():
                    if not chunk.draft:
                        first = first or time.monotonic() - begun
                    reporter.emit(ChunkReady(
                        segment=chunk.segment, index=chunk.index, num_frames=len(chunk.frames), draft=chunk.draft
                    ))
                    yield chunk
            except Cancelled:
                raise
            except Exception as error:
                reporter.emit(Failed(error=str(error)))
                raise
            reporter.emit(self._finished(time.monotonic() - begun, first or 0.0, begin))

    def tokens(self, source: TokenSource, size: tuple[int, int]) -> NDArray[np.int64]:
        """All tokens (code_frame, row, column) of a video, and nothing else."""
        return all_tokens(self.job, source, size)

    def _ahead(self, lane: Generator[T], name: str) -> Generator[T] | Ahead[T]:
        return Ahead(lane, f"arlon-rt {name}") if self._overlap else lane

    def _started(self) -> Started:
        options, view, unit = self.job.request.options, self.job.request.view, self.job.model.vae.space_stride
        return Started(
            num_frames=options.num_frames, fps=options.fps, segments=len(self.job.request.segments),
            height=unit * view.latent_height, width=unit * view.latent_width,
            first_frame=self._next_frame, overlap=self._overlap,
        )

    @property
    def _next_frame(self) -> int:
        """Number of the first frame after the boundary."""
        return self.job.request.segments[self.boundary.segment].frames.start

    def _finished(self, wall: float, first_chunk: float, begin: int) -> Finished:
        """After ``wall`` seconds in which all frames from number ``begin`` on were made."""
        options = self.job.request.options
        return Finished(
            num_frames=options.num_frames, wall_seconds=wall, first_chunk_seconds=first_chunk,
            real_time_factor=(options.num_frames - begin) / options.fps / wall, peak_memory_bytes=peak_memory(),
            stage_seconds=dict(self.job.reporter.seconds),
        )

