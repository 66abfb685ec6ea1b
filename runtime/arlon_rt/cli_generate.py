"""``arlon-rt generate``: a prompt, or a timeline of prompts, to an MP4."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from arlon_rt.bundle import Bundle, installed_version
from arlon_rt.cli_arguments import add_backend, add_options, add_prompts, open_bundle, read_options, read_prompts
from arlon_rt.cli_progress import Display, choose, print_json
from arlon_rt.errors import ArlonError, Cancelled, OptionsError, OutputError
from arlon_rt.events import Event, Finished, Progress, Started
from arlon_rt.options import GenerateOptions
from arlon_rt.segments import plan
from arlon_rt.timeline import Timeline

if TYPE_CHECKING:
    from arlon_rt.generation import Generation
    from arlon_rt.pipeline import Pipeline
    from arlon_rt.snapshot import Snapshot

OF_ANY_RUN = ("output", "resume", "preview", "bundle", "device", "quiet", "json")
"""Arguments that may be given with --resume, or have a default that is not None."""


class Generate:
    """The command; see `arlon_rt.cli.Command`."""

    help = "Make a video from a prompt. Frames are written as they are made; Ctrl-C leaves a file that plays."

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.usage = "%(prog)s PROMPT -o FILE.mp4 [options]\n       %(prog)s --resume -o FILE.mp4"
        add_prompts(parser)
        parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.mp4", help="the video to write")
        parser.add_argument(
            "--resume", action="store_true",
            help="go on with FILE.mp4 where it was stopped, by Ctrl-C, a crash or a full disk; prompt and options are "
                 "those it was begun with",
        )
        parser.add_argument(
            "--preview", type=Path, metavar="FILE.mp4", help="also write each segment's draft, as soon as it is there"
        )
        add_options(parser)
        add_backend(parser)
        shown = parser.add_argument_group("display").add_mutually_exclusive_group()
        shown.add_argument("--quiet", action="store_true", help="print nothing but errors")
        shown.add_argument("--json", action="store_true", help="print events and a summary as JSON lines on stdout")

    def run(self, args: argparse.Namespace) -> int:
        recording = resumed(args) if args.resume else begun(args)
        with Stop() as stop:
            try:
                make(recording, args, stop, choose(quiet=args.quiet, as_json=args.json))
            except Cancelled:
                recording.stopped = True
            except ArlonError as error:
                if recording.num_frames:
                    error.add_note(f"the {recording.num_frames} frames made before are in {args.output}.part")
                if recording.resumable:
                    error.add_note(f"go on with: {recording.resume_command(args.bundle)}")
                raise
        recording.report(quiet=args.quiet, as_json=args.json, bundle=args.bundle)
        return 0 if stop.signum is None else 128 + stop.signum


def begun(args: argparse.Namespace) -> Recording:
    """A new video."""
    from arlon_rt.video import check_writable

    timeline = read_prompts(args)
    bundle = open_bundle(args)
    options = read_options(args, bundle)
    recording = Recording(args.output, timeline, options, bundle, preview=args.preview)
    check_writable(args.output)
    check_preview(args)
    if recording.same_was_begun():
        raise OptionsError(
            f"this very video was begun before and stopped; go on with: {recording.resume_command(args.bundle)}, or "
            f"delete {recording.snapshot_path} to begin anew"
        )
    recording.snapshot_path.unlink(missing_ok=True)
    return recording


def resumed(args: argparse.Namespace) -> Recording:
    """A video that was begun before."""
    from arlon_rt.snapshot import Snapshot

    asked = [name for name, value in vars(args).items() if name not in OF_ANY_RUN and value is not None]
    if asked:
        raise OptionsError(f"{', '.join(asked)} cannot change on --resume; leave out all but -o and --bundle")
    path = snapshot_of(args.output)
    if not path.is_file():
        raise OptionsError(f"there is no {path}, so nothing to go on from: a video is begun with a prompt")
    snapshot = Snapshot.load(path)
    check_preview(args)
    return Recording(args.output, snapshot.prompts, snapshot.options, open_bundle(args), snapshot, args.preview)


def check_preview(args: argparse.Namespace) -> None:
    """Raise unless the draft can be written, to a file of its own."""
    from arlon_rt.video import check_writable

    if args.preview is None:
        return
    if args.preview.absolute() == args.output.absolute():
        raise OptionsError(f"preview is {str(args.preview)!r}, as is the output; name another file")
    check_writable(args.preview)


def make(recording: Recording, args: argparse.Namespace, stop: Stop, display: Display) -> None:
    """Open the model, generate and record, until done or stopped."""
    from arlon_rt.pipeline import Pipeline

    def on_event(event: Event) -> None:
        display.show(event)
        recording.note(event)
        stop.check()

    machine = {"device": args.device, "precision": args.precision, "threads": args.threads}
    if recording.resumed_from:
        machine = dataclasses.asdict(recording.resumed_from.machine)
    with display, Pipeline.open(recording.bundle, **machine) as pipeline:
        stop.check()
        recording.record(pipeline, on_event)


def snapshot_of(path: Path) -> Path:
    """Where a video that is not finished says how it goes on: ``<name>.resume`` beside it."""
    return path.with_name(path.name + ".resume")


class Stop:
    """Turns SIGINT and SIGTERM into `Cancelled` at the next event, so that no frame is cut in half.

    A second signal does not wait.
    """

    def __init__(self) -> None:
        self.signum: int | None = None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum

    def check(self) -> None:
        """Raise `Cancelled` if a signal came."""
        if self.signum is not None:
            raise Cancelled(f"stopped by {signal.Signals(self.signum).name}")


class Recording:
    """One generation and its file: what is asked for, how far it got and how long it took."""

    def __init__(
        self, path: Path, timeline: Timeline, options: GenerateOptions, bundle: Bundle,
        resumed_from: Snapshot | None = None, preview: Path | None = None,
    ) -> None:
        self.preview = preview
        self.path, self.snapshot_path = path, snapshot_of(path)
        self.options = options
        self.bundle = bundle
        self.resumed_from = resumed_from
        self.precision: str | None = None
        self.num_frames = 0
        self.stopped = False
        self.resolved = options.resolved(bundle)
        segments = plan(self.resolved.num_frames, bundle.model, self.resolved.first_segment_frames)
        self.timeline = timeline.in_seconds(segments, self.resolved.fps)
        self._first = 0
        self._finished: Finished | None = None
        self._latest: Snapshot | None = None
        self._began = self._loaded = self._ended = time.perf_counter()

    @property
    def resumable(self) -> bool:
        """Whether there is something to go on from."""
        return self.snapshot_path.exists()

    def same_was_begun(self) -> bool:
        """Whether this very request was stopped before, and can go on."""
        from arlon_rt.snapshot import Snapshot

        if not self.resumable:
            return False
        try:
            before = Snapshot.load(self.snapshot_path)
            same_options = before.options.resolved(self.bundle) == self.resolved
        except OptionsError:   # of another version, or damaged: nothing to go on from
            return False
        return before.bundle == self.bundle.hash and same_options and before.prompts == self.timeline

    def note(self, event: Event) -> None:
        """Take what an event tells about the whole."""
        if isinstance(event, Started):
            self._first = event.first_frame
        elif isinstance(event, Finished):
            self._finished = event

    def record(self, pipeline: Pipeline, on_event: Callable[[Event], None]) -> None:
        """Write each chunk as it is made. The file is opened at the first one, whose size it takes."""
        self._loaded, self.precision = time.perf_counter(), pipeline.precision
        told: dict[str, Any] = {"on_event": on_event, "preview": self.preview is not None}
        if self.resumed_from:
            generation = pipeline.resume(self.resumed_from, **told)
        else:
            generation = pipeline.stream(self.timeline, self.options, **told)
        try:
            with contextlib.closing(generation):
                self._write(generation, on_event)
        except BaseException:
            if self._latest:
                with contextlib.suppress(OutputError):   # the error under way is the one to report
                    self._latest.save(self.snapshot_path)   # the file was closed with all its frames
            raise
        finally:
            self._ended = time.perf_counter()
        self.snapshot_path.unlink(missing_ok=True)

    def _write(self, generation: Generation, on_event: Callable[[Event], None]) -> None:
        from arlon_rt.video import VideoWriter

        with contextlib.ExitStack() as stack:
            writers: dict[bool, VideoWriter] = {}
            for chunk in generation:
                path = self.preview if chunk.draft else self.path
                if chunk.draft not in writers and path:
                    height, width = chunk.frames.shape[1:3]
                    writers[chunk.draft] = stack.enter_context(VideoWriter(
                        path, fps=self.resolved.fps, height=height, width=width, metadata=self.metadata(),
                        resumed=self._first,
                    ))
                writers[chunk.draft].write(chunk.frames)
                if chunk.draft:
                    continue
                self.num_frames = done = writers[False].frames_written
                if chunk.ends_segment:
                    for writer in writers.values():
                        writer.end_segment()
                    if self._latest:
                        self._latest.save(self.snapshot_path)   # a file that grows lacks its last segment
                    self._latest = generation.snapshot()
                on_event(Progress(stage="video", segment=chunk.segment, done=done, total=self.resolved.num_frames))

    def metadata(self) -> dict[str, str]:
        """The file's tags: all it takes to make it again."""
        prompts = [{"seconds": seconds, "prompt": prompt} for seconds, prompt in self.timeline.entries]
        origin = {
            "arlon_rt": installed_version(), "bundle": self.bundle.hash, "prompts": prompts,
            "options": dataclasses.asdict(self.resolved), "precision": self.precision,
        }
        title = " | ".join(prompt for _, prompt in self.timeline.entries)
        return {"title": title, "comment": json.dumps(origin, ensure_ascii=False)}

    def resume_command(self, bundle: Path | None) -> str:
        """What to type to go on."""
        named = ["--bundle", str(bundle)] if bundle else []
        return shlex.join(["arlon-rt", "generate", "--resume", "-o", str(self.path), *named])

    def report(self, *, quiet: bool, as_json: bool, bundle: Path | None) -> None:
        """The last line: file, frames, seconds and how fast that was."""
        seconds, wall = self.num_frames / self.resolved.fps, self._ended - self._loaded
        made = max(0, self.num_frames - self._first) / self.resolved.fps
        load, speed = self._loaded - self._began, made / wall if wall else 0.0
        resume = self.resume_command(bundle) if self.stopped and self.resumable else None
        if as_json:
            told = self._finished
            print_json("Summary", {
                "file": str(self.path) if self.num_frames else None, "stopped": self.stopped, "resume": resume,
                "num_frames": self.num_frames, "seconds": seconds, "wall_seconds": wall, "load_seconds": load,
                "real_time_factor": speed, "first_chunk_seconds": told and told.first_chunk_seconds,
                "stage_seconds": dict(told.stage_seconds) if told else None, "peak_memory_bytes": peak_memory(),
                **json.loads(self.metadata()["comment"]),
            })
        elif not quiet and not self.num_frames:
            print("stopped before the first frame; no file was written")
        elif not quiet:
            length = f"{self.num_frames} frames, {seconds:.2f} s of video"
            pace = f"{made:.2f} s of it in {wall:.1f} s" if self._first else f"in {wall:.1f} s"
            ending = f", stopped at frame {self.num_frames} of {self.resolved.num_frames}" if self.stopped else ""
            separator = ", " if self._first else " "
            print(f"{self.path}: {length}{separator}{pace} ({speed:.2f}× real time){ending}; loading took {load:.1f} s")
            if resume:
                print(f"go on with: {resume}")


def peak_memory() -> int | None:
    """The most memory this process had at once, in bytes; ``None`` where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


generate = Generate()
