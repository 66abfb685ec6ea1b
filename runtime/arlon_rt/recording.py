"""One generation and its file, for the command: written as it is made, with a snapshot from which it may go on."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from arlon_rt.bundle import Bundle, installed_version
from arlon_rt.cli.display import print_json
from arlon_rt.errors import OptionsError, OutputError
from arlon_rt.events import Event, Finished, FootageRead, FramesWritten, Started
from arlon_rt.generation import Ahead, peak_memory
from arlon_rt.options import GenerateOptions
from arlon_rt.segments import plan
from arlon_rt.timeline import Timeline
from arlon_rt.video import PIPE, Quality, Sink, is_folder, open_sink

if TYPE_CHECKING:
    from arlon_rt.generation import Chunk, Generation, Snapshot
    from arlon_rt.pipeline import Pipeline

@dataclass(frozen=True, kw_only=True)
class Sources:
    """What the command's files hold, brought to the model's size and rate."""

    after: NDArray[np.uint8] | None = None
    references: tuple[NDArray[np.uint8], ...] = ()
    mask_strategy: str = ""
    repainted: NDArray[np.uint8] | None = None
    read: tuple[FootageRead, ...] = ()
    hashes: dict[str, str] = field(default_factory=dict)
    """Argument and file name to the file's sha256."""

    def lead(self, chunk: int) -> int:
        """How many frames of a clip, in whole chunks, the video goes on from."""
        return 0 if self.after is None or len(self.after) == 1 else len(self.after) // chunk * chunk

    def arguments(self, pipeline: Pipeline) -> dict[str, Any]:
        """Those of `Pipeline.stream`."""
        tokens = None if self.repainted is None else pipeline.tokens_of(self.repainted)
        told = {"after": self.after, "references": self.references, "mask_strategy": self.mask_strategy}
        return told if tokens is None else {**told, "tokens": tokens}


NO_SOURCES = Sources()


def snapshot_of(output: str) -> Path | None:
    """Where an MP4 that is not finished says how it goes on: ``<name>.resume`` beside it."""
    path = Path(output)
    return path.with_name(path.name + ".resume") if path.suffix.lower() == ".mp4" else None


class Recording:
    """One generation and its file: what is asked for, how far it got and how long it took."""

    def __init__(
        self, args: argparse.Namespace, timeline: Timeline, options: GenerateOptions, bundle: Bundle, *,
        sources: Sources = NO_SOURCES, resumed_from: Snapshot | None = None,
    ) -> None:
        self.output: str = args.output
        self.preview: str | None = args.preview
        self.overlap: bool = args.overlap
        self.quality = Quality(crf=args.crf, effort=args.effort)
        self.snapshot_path = snapshot_of(self.output)
        self.options = options
        self.bundle = bundle
        self.sources, self.resumed_from = sources, resumed_from
        self._hashes = resumed_from.sources if resumed_from else sources.hashes
        self.precision: str | None = None
        self.num_frames = 0
        self.stopped = False
        self.resolved = options.resolved(bundle)
        lead = resumed_from.lead if resumed_from else sources.lead(bundle.model.vae.chunk_frames)
        segments = plan(self.resolved.num_frames, bundle.model, self.resolved.first_segment_frames, lead)
        self.timeline = timeline.in_seconds(segments[lead > 0 :], self.resolved.fps)
        self._first = 0
        self._finished: Finished | None = None
        self._latest: Snapshot | None = None
        self._began = self._loaded = self._ended = time.perf_counter()

    @property
    def resumable(self) -> bool:
        """Whether there is something to go on from."""
        return self.snapshot_path is not None and self.snapshot_path.exists()

    @property
    def goes_on(self) -> bool:
        """Whether there are frames before it, of footage or of a run that was stopped."""
        return self.resumed_from is not None or bool(self._hashes)

    def where_cut_short(self) -> str | None:
        """Where frames are found after an error, if any are."""
        where = self.output if is_folder(self.output) else f"{self.output}.part"
        return where if self.output != PIPE and self.num_frames and Path(where).exists() else None

    def same_was_begun(self) -> bool:
        """Whether this very request was stopped before, and can go on."""
        from arlon_rt.generation import Snapshot

        if self.snapshot_path is None or not self.resumable:
            return False
        try:
            before = Snapshot.load(self.snapshot_path)
            same_options = before.options.resolved(self.bundle) == self.resolved
        except OptionsError:   # of another version, or damaged: nothing to go on from
            return False
        same_request = same_options and before.prompts == self.timeline and before.sources == self.sources.hashes
        return before.bundle == self.bundle.hash and same_request

    def note(self, event: Event) -> None:
        """Take what an event tells about the whole."""
        if isinstance(event, Started):
            self._first = event.first_frame
        elif isinstance(event, Finished):
            self._finished = event

    def record(self, pipeline: Pipeline, on_event: Callable[[Event], None]) -> None:
        """Write each chunk as it is made. The file is opened at the first one, whose size it takes."""
        self._loaded, self.precision = time.perf_counter(), pipeline.precision
        told: dict[str, Any] = {
            "on_event": on_event, "preview": self.preview is not None, "overlap": self.overlap,
        }
        if self.resumed_from:
            generation = pipeline.resume(self.resumed_from, **told)
        else:
            generation = pipeline.stream(
                self.timeline, self.options, **self.sources.arguments(pipeline), **told
            )
        made = self._made(generation)
        chunks = Ahead(made, "arlon-rt decoding") if self.overlap else made
        try:
            with contextlib.closing(chunks):
                try:
                    self._write(chunks, on_event)
                except BaseException:
                    generation.cancel()   # what is under way on other threads is not waited for
                    raise
        except BaseException:
            with contextlib.suppress(OutputError):   # the error under way is the one to report
                self._save()   # the file was closed with all its frames
            raise
        finally:
            self._ended = time.perf_counter()
        if self.snapshot_path:
            self.snapshot_path.unlink(missing_ok=True)

    def _save(self) -> None:
        if self._latest and self.snapshot_path:
            self._latest.save(self.snapshot_path)

    def _made(self, generation: Generation) -> Generator[tuple[Chunk, Snapshot | None]]:
        """Each chunk, and after a segment's last one where the generation stands."""
        with contextlib.closing(generation):
            for chunk in generation:
                yield chunk, generation.snapshot() if chunk.ends_segment else None

    def _write(
        self, chunks: Iterable[tuple[Chunk, Snapshot | None]], on_event: Callable[[Event], None]
    ) -> None:
        with contextlib.ExitStack() as stack:
            writers: dict[bool, Sink] = {}
            for chunk, snapshot in chunks:
                target = self.preview if chunk.draft else self.output
                if chunk.draft not in writers and target:
                    height, width = chunk.frames.shape[1:3]
                    writers[chunk.draft] = stack.enter_context(open_sink(
                        target, fps=self.resolved.fps, height=height, width=width, metadata=self.metadata(),
                        quality=self.quality, resumed=self._first,
                    ))
                writers[chunk.draft].write(chunk.frames)
                if chunk.draft:
                    continue
                self.num_frames = done = writers[False].frames_written
                if snapshot:
                    for writer in writers.values():
                        writer.end_segment()
                    self._save()   # the one before: a file that grows lacks its last segment
                    self._latest = dataclasses.replace(snapshot, sources=self._hashes)
                on_event(FramesWritten(segment=chunk.segment, done=done, total=self.resolved.num_frames))

    def metadata(self) -> dict[str, str]:
        """The file's tags: all it takes to make it again."""
        prompts = [{"seconds": seconds, "prompt": prompt} for seconds, prompt in self.timeline.entries]
        origin = {
            "arlon_rt": installed_version(), "bundle": self.bundle.hash, "prompts": prompts,
            "options": dataclasses.asdict(self.resolved), "precision": self.precision,
            **({"sources": dict(self._hashes)} if self._hashes else {}),
        }
        title = " | ".join(prompt for _, prompt in self.timeline.entries)
        return {"title": title, "comment": json.dumps(origin, ensure_ascii=False)}

    def resume_command(self, bundle: Path | None) -> str:
        """What to type to go on."""
        named = ["--bundle", str(bundle)] if bundle else []
        named += ["--preview", self.preview] if self.preview else []
        named += ["--overlap"] if self.overlap else []
        named += ["--crf", str(self.quality.crf)] if self.quality.crf is not None else []
        named += ["--effort", self.quality.effort] if self.quality != Quality(crf=self.quality.crf) else []
        return shlex.join(["arlon-rt", "generate", "--resume", "-o", self.output, *named])

    def report(self, *, quiet: bool, as_json: bool, bundle: Path | None) -> None:
        """The last line: file, frames, seconds and how fast that was."""
        seconds, wall = self.num_frames / self.resolved.fps, self._ended - self._loaded
        made = max(0, self.num_frames - self._first) / self.resolved.fps
        load, speed = self._loaded - self._began, made / wall if wall else 0.0
        resume = self.resume_command(bundle) if self.stopped and self.resumable else None
        if as_json:
            told = self._finished
            print_json("Summary", {
                "file": self.output if self.num_frames else None, "stopped": self.stopped, "resume": resume,
                "num_frames": self.num_frames, "seconds": seconds, "wall_seconds": wall, "load_seconds": load,
                "real_time_factor": speed, "first_chunk_seconds": told and told.first_chunk_seconds,
                "network_seconds": dict(told.network_seconds) if told else None, "peak_memory_bytes": peak_memory(),
                **json.loads(self.metadata()["comment"]),
            })
        out = sys.stderr if self.output == PIPE else sys.stdout
        if as_json or quiet:
            return
        if not self.num_frames:
            print("stopped before the first frame; no file was written", file=out)
        else:
            length = f"{self.num_frames} frames, {seconds:.2f} s of video"
            pace = f"{made:.2f} s of it in {wall:.1f} s" if self._first else f"in {wall:.1f} s"
            ending = f", stopped at frame {self.num_frames} of {self.resolved.num_frames}" if self.stopped else ""
            separator = ", " if self._first else " "
            name = "stdout" if self.output == PIPE else self.output
            print(f"{name}: {length}{separator}{pace} ({speed:.2f}× real time){ending}; loading took {load:.1f} s",
                  file=out)
            if resume:
                print(f"go on with: {resume}", file=out)
