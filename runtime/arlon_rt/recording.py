"""A video on disk: frames are written as they are generated, and a snapshot beside an MP4 lets it be resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from arlon_rt.bundle import Bundle
from arlon_rt.errors import OptionsError, OutputError
from arlon_rt.events import Event, Finished, FootageRead, FramesWritten, OnEvent, Started
from arlon_rt.generation import Ahead, peak_memory
from arlon_rt.options import GenerateOptions
from arlon_rt.segments import plan
from arlon_rt.timeline import Timeline
from arlon_rt.version import installed_version
from arlon_rt.video import DEFAULT_QUALITY, PIPE, Quality, Sink, check_sink, is_folder, open_sink, unfinished_path

if TYPE_CHECKING:
    from arlon_rt.generation import Chunk, Generation, Snapshot
    from arlon_rt.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Frames that a request starts from, of the model's size and rate, and the files they were read from."""

    after: NDArray[np.uint8] | None = None
    references: tuple[NDArray[np.uint8], ...] = ()
    mask_strategy: str = ""
    repainted: NDArray[np.uint8] | None = None
    """(frame, height, width, 3); the video moves as they do."""
    read: tuple[FootageRead, ...] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)
    """The use and the name of a file -> its SHA-256."""

    def lead(self, chunk: int) -> int:
        """The frames of the clip before the video, in whole chunks; 0 for an image."""
        return 0 if self.after is None or len(self.after) == 1 else len(self.after) // chunk * chunk

    def arguments(self, pipeline: Pipeline) -> dict[str, Any]:
        """The arguments of `Pipeline.stream` that hold these frames."""
        arguments = {"after": self.after, "references": self.references, "mask_strategy": self.mask_strategy}
        return arguments if self.repainted is None else {**arguments, "tokens": pipeline.tokens_of(self.repainted)}


NO_SOURCES = Sources()


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a recording wrote, and how long that took."""

    file: str | None
    """``None``: not a single frame was written."""
    stopped: bool
    num_frames: int
    """In the file, with those of the runs before this one."""
    seconds: float
    """Length of the video in the file."""
    written_seconds: float
    """Length of the part that this run wrote; less than ``seconds`` where it resumed an earlier one."""
    wall_seconds: float
    load_seconds: float
    """From the creation of the `Recording` to the start of `Recording.record`."""
    real_time_factor: float
    """Seconds of video that this run wrote in a second."""
    first_chunk_seconds: float | None
    network_seconds: Mapping[str, float] | None
    """As in `Finished`; ``None`` where the generation did not finish."""
    peak_memory_bytes: int | None
    origin: Mapping[str, Any]
    """See `Recording.origin`."""


def snapshot_path(output: str) -> Path | None:
    """The snapshot of an unfinished MP4, ``<name>.resume`` beside it; ``None`` for other outputs."""
    path = Path(output)
    return path.with_name(path.name + ".resume") if path.suffix.lower() == ".mp4" else None


class Recording:
    """One generation and the file it is written to. It is begun with `Recording`, or resumed with `resume`.

    Args:
        output: the target of `open_sink`: an MP4, a WebM, a folder of PNG frames, or ``-`` for standard output.
        timeline, options: what is generated, as for `Pipeline.stream`.
        bundle: the model.
        preview: a second target, for each segment's draft.
        overlap: see `Pipeline.stream`.
        quality: how frames are encoded.
        sources: frames that the request starts from.
        resumed_from: the snapshot of an earlier run; timeline and options must be the snapshot's.
    """

    def __init__(
        self, output: str, timeline: Timeline, options: GenerateOptions, bundle: Bundle, *, preview: str | None = None,
        overlap: bool = False, quality: Quality = DEFAULT_QUALITY, sources: Sources = NO_SOURCES,
        resumed_from: Snapshot | None = None,
    ) -> None:
        self.output, self.preview, self.overlap, self.quality = output, preview, overlap, quality
        self.snapshot_path = snapshot_path(output)
        self.options, self.bundle = options, bundle
        self.sources, self.resumed_from = sources, resumed_from
        self._hashes = resumed_from.sources if resumed_from else sources.hashes
        self.num_frames = 0
        self.resolved = options.resolved(bundle)
        lead = resumed_from.lead if resumed_from else sources.lead(bundle.model.vae.chunk_frames)
        segments = plan(self.resolved.num_frames, bundle.model, self.resolved.first_segment_frames, lead)
        self.timeline = timeline.in_seconds(segments[lead > 0 :], self.resolved.fps)
        self._precision: str | None = None
        self._first_frame = 0
        self._finished: Finished | None = None
        self._latest: Snapshot | None = None
        self._created = self._started = self._ended = time.perf_counter()

    @classmethod
    def resume(
        cls, output: str, bundle: Bundle, *, preview: str | None = None, overlap: bool = False,
        quality: Quality = DEFAULT_QUALITY,
    ) -> Self:
        """The recording that was stopped before ``output`` was complete.

        The pipeline must be opened as the snapshot's `Machine` says.

        Raises:
            OptionsError: ``output`` is no MP4, or has no snapshot that can be read.
        """
        from arlon_rt.generation import Snapshot

        path = snapshot_path(output)
        if path is None:
            raise OptionsError(f"output is {output!r}; only an MP4 can go on")
        if not path.is_file():
            raise OptionsError(f"there is no {path}, so nothing to go on from: a video is begun with a prompt")
        snapshot = Snapshot.load(path)
        return cls(
            output, snapshot.prompts, snapshot.options, bundle, preview=preview, overlap=overlap, quality=quality,
            resumed_from=snapshot,
        )

    @property
    def resumable(self) -> bool:
        """Whether a snapshot lies beside the output."""
        return self.snapshot_path is not None and os.path.exists(self.snapshot_path)   # False for a name too long

    @property
    def largest_request(self) -> GenerateOptions:
        """The ``sized_for`` of `Pipeline.open`. A video that goes on from earlier frames may need whole segments."""
        goes_on = self.resumed_from is not None or self._hashes
        return dataclasses.replace(self.options, num_frames=None) if goes_on else self.options

    def unfinished_output(self) -> Path | None:
        """The file or folder that holds the frames after an error; ``None`` where there are none."""
        path = Path(self.output)
        where = path if is_folder(self.output) else unfinished_path(path)
        return where if self.output != PIPE and self.num_frames and where.exists() else None

    def was_stopped_before(self) -> bool:
        """Whether the snapshot beside the output is of this very request, which can then be resumed."""
        from arlon_rt.generation import Snapshot

        if self.snapshot_path is None or not self.resumable:
            return False
        asked = self.bundle.hash, self.resolved, self.timeline, self.sources.hashes
        try:
            before = Snapshot.load(self.snapshot_path)
            return (before.bundle, before.options.resolved(self.bundle), before.prompts, before.sources) == asked
        except OptionsError:   # damaged, or of another version: nothing to resume
            return False

    def prepare(self) -> None:
        """Check that the files can be written, and remove the snapshot of an earlier video that had this name.

        `record` does it, too; done before a model is loaded, it saves the wait.

        Raises:
            OptionsError: the preview has no file of its own.
            OutputError: the output or the preview cannot be written.
        """
        if not self.resumed_from:
            check_sink(self.output)
        if self.preview is not None:
            if self.preview == PIPE or Path(self.preview).absolute() == Path(self.output).absolute():
                raise OptionsError(f"preview is {self.preview!r}, as is the output or a pipe; name another file")
            check_sink(self.preview)
        if self.snapshot_path and self.resumable and not self.resumed_from:
            self.snapshot_path.unlink()

    def record(self, pipeline: Pipeline, on_event: OnEvent | None = None) -> None:
        """Generate the video and write each chunk as it comes. The file is opened at the first one, whose size it has.

        What ``on_event`` raises ends the recording. After `Cancelled` the file is complete as far as it goes, and
        after another error its frames are in `unfinished_output`. An MP4 then has a snapshot, unless it was stopped
        before its first segment ended.

        Raises:
            OptionsError: a prompt, an option or a source cannot be used.
            OutputError: a file cannot be written.
        """
        self.prepare()
        self._started, self._precision = time.perf_counter(), pipeline.precision

        def report(event: Event) -> None:
            if isinstance(event, Started):
                self._first_frame = event.first_frame
            elif isinstance(event, Finished):
                self._finished = event
            if on_event:
                on_event(event)

        settings: dict[str, Any] = {"on_event": report, "preview": self.preview is not None, "overlap": self.overlap}
        if self.resumed_from:
            generation = pipeline.resume(self.resumed_from, **settings)
        else:
            generation = pipeline.stream(self.timeline, self.options, **self.sources.arguments(pipeline), **settings)
        decoded = _with_snapshots(generation)
        chunks = Ahead(decoded, "arlon-rt decoding") if self.overlap else decoded
        try:
            with contextlib.closing(chunks):
                try:
                    self._write(chunks, report)
                except BaseException:
                    generation.cancel()   # work on other threads is not waited for
                    raise
        except BaseException:
            with contextlib.suppress(OutputError):   # the error under way is the one to report
                self._save_snapshot()   # the file was closed with all its frames
            raise
        finally:
            self._ended = time.perf_counter()
        if self.snapshot_path:
            self.snapshot_path.unlink(missing_ok=True)

    def _write(self, chunks: Iterable[tuple[Chunk, Snapshot | None]], report: OnEvent) -> None:
        with contextlib.ExitStack() as stack:
            sinks: dict[bool, Sink] = {}
            for chunk, snapshot in chunks:
                target = self.preview if chunk.draft else self.output
                if chunk.draft not in sinks and target:
                    height, width = chunk.frames.shape[1:3]
                    sinks[chunk.draft] = sink = open_sink(
                        target, fps=self.resolved.fps, height=height, width=width, metadata=self.metadata(),
                        quality=self.quality, resumed=self._first_frame,
                    )
                    stack.enter_context(sink)
                sinks[chunk.draft].write(chunk.frames)
                if chunk.draft:
                    continue
                self.num_frames = done = sinks[False].frames_written
                if snapshot:
                    for sink in sinks.values():
                        sink.end_segment()
                    self._save_snapshot()   # the one before: a file that grows lacks its last segment
                    self._latest = dataclasses.replace(snapshot, sources=self._hashes)
                report(FramesWritten(segment=chunk.segment, done=done, total=self.resolved.num_frames))

    def _save_snapshot(self) -> None:
        if self._latest and self.snapshot_path:
            self._latest.save(self.snapshot_path)

    def origin(self) -> dict[str, Any]:
        """All that it takes to generate the video again: versions, prompts, options and hashes."""
        return {
            "arlon_rt": installed_version(), "bundle": self.bundle.hash,
            "prompts": [{"seconds": seconds, "prompt": prompt} for seconds, prompt in self.timeline.entries],
            # Removed options stay in the tags for their release, as null: the same file as before comes out.
            "options": dataclasses.asdict(self.resolved) | dict.fromkeys(GenerateOptions.REMOVED),
            "precision": self._precision,
            **({"sources": dict(self._hashes)} if self._hashes else {}),
        }

    def metadata(self) -> dict[str, str]:
        """The file's tags: the prompts as its title, and `origin` as its comment."""
        title = " | ".join(prompt for _, prompt in self.timeline.entries)
        return {"title": title, "comment": json.dumps(self.origin(), ensure_ascii=False)}

    def summary(self, *, stopped: bool) -> Summary:
        """What was written, after `record` returned or, with ``stopped``, raised `Cancelled`."""
        fps, wall, finished = self.resolved.fps, self._ended - self._started, self._finished
        written = max(0, self.num_frames - self._first_frame) / fps
        return Summary(
            file=self.output if self.num_frames else None, stopped=stopped, num_frames=self.num_frames,
            seconds=self.num_frames / fps, written_seconds=written, wall_seconds=wall,
            load_seconds=self._started - self._created, real_time_factor=written / wall if wall else 0.0,
            first_chunk_seconds=finished.first_chunk_seconds if finished else None,
            network_seconds={str(n): spent for n, spent in finished.network_seconds.items()} if finished else None,
            peak_memory_bytes=peak_memory(), origin=self.origin(),
        )


def _with_snapshots(generation: Generation) -> Generator[tuple[Chunk, Snapshot | None]]:
    """Each chunk, and with a segment's last one the generation's snapshot."""
    with contextlib.closing(generation):
        for chunk in generation:
            yield chunk, generation.snapshot() if chunk.ends_segment else None
