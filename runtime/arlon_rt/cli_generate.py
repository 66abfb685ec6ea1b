"""``arlon-rt generate``: a prompt, or a timeline of prompts, to an MP4."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Self

from arlon_rt.bundle import Bundle, installed_version
from arlon_rt.cli_arguments import add_backend, add_options, add_prompts, open_bundle, read_options, read_prompts
from arlon_rt.cli_progress import Display, choose, print_json
from arlon_rt.errors import ArlonError, Cancelled
from arlon_rt.events import Event, Progress
from arlon_rt.options import GenerateOptions
from arlon_rt.segments import plan
from arlon_rt.timeline import Timeline

if TYPE_CHECKING:
    from arlon_rt.pipeline import Pipeline


class Generate:
    """The command; see `arlon_rt.cli.Command`."""

    help = "Make a video from a prompt. Frames are written as they are made; Ctrl-C leaves a file that plays."

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.usage = "%(prog)s PROMPT -o FILE.mp4 [options]"
        add_prompts(parser)
        parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.mp4", help="the video to write")
        add_options(parser)
        add_backend(parser)
        shown = parser.add_argument_group("display").add_mutually_exclusive_group()
        shown.add_argument("--quiet", action="store_true", help="print nothing but errors")
        shown.add_argument("--json", action="store_true", help="print events and a summary as JSON lines on stdout")

    def run(self, args: argparse.Namespace) -> int:
        from arlon_rt.video import check_writable

        timeline = read_prompts(args)
        bundle = open_bundle(args)
        options = read_options(args, bundle)
        check_writable(args.output)
        recording = Recording(args.output, timeline, options, bundle)
        with Stop() as stop:
            try:
                make(recording, args, stop, choose(quiet=args.quiet, as_json=args.json))
            except Cancelled:
                recording.stopped = True
            except ArlonError as error:
                if recording.num_frames:
                    error.add_note(f"the {recording.num_frames} frames made before are in {args.output}.part")
                raise
        recording.report(quiet=args.quiet, as_json=args.json)
        return 0 if stop.signum is None else 128 + stop.signum


def make(recording: Recording, args: argparse.Namespace, stop: Stop, display: Display) -> None:
    """Open the model, generate and record, until done or stopped."""
    from arlon_rt.pipeline import Pipeline

    def on_event(event: Event) -> None:
        display.show(event)
        stop.check()

    machine = {"device": args.device, "precision": args.precision, "threads": args.threads}
    with display, Pipeline.open(recording.bundle, **machine) as pipeline:
        stop.check()
        recording.record(pipeline, on_event)


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

    def __init__(self, path: Path, timeline: Timeline, options: GenerateOptions, bundle: Bundle) -> None:
        self.path = path
        self.options = options
        self.bundle = bundle
        self.precision: str | None = None
        self.num_frames = 0
        self.stopped = False
        self.resolved = options.resolved(bundle)
        segments = plan(self.resolved.num_frames, bundle.model, self.resolved.first_segment_frames)
        self.timeline = timeline.in_seconds(segments, self.resolved.fps)
        self._began = self._loaded = self._ended = time.perf_counter()

    def record(self, pipeline: Pipeline, on_event: Callable[[Event], None]) -> None:
        """Write each chunk as it is made. The file is opened at the first one, whose size it takes."""
        from arlon_rt.video import VideoWriter

        self._loaded, self.precision = time.perf_counter(), pipeline.precision
        try:
            with contextlib.ExitStack() as stack:
                writer = None
                for chunk in pipeline.stream(self.timeline, self.options, on_event=on_event):
                    if writer is None:
                        height, width = chunk.frames.shape[1:3]
                        writer = stack.enter_context(VideoWriter(
                            self.path, fps=self.resolved.fps, height=height, width=width, metadata=self.metadata()
                        ))
                    writer.write(chunk.frames)
                    self.num_frames = done = writer.frames_written
                    total = self.resolved.num_frames
                    on_event(Progress(stage="video", segment=chunk.segment, done=done, total=total))
        finally:
            self._ended = time.perf_counter()

    def metadata(self) -> dict[str, str]:
        """The file's tags: all it takes to make it again."""
        prompts = [{"seconds": seconds, "prompt": prompt} for seconds, prompt in self.timeline.entries]
        origin = {
            "arlon_rt": installed_version(), "bundle": self.bundle.hash, "prompts": prompts,
            "options": dataclasses.asdict(self.resolved), "precision": self.precision,
        }
        title = " | ".join(prompt for _, prompt in self.timeline.entries)
        return {"title": title, "comment": json.dumps(origin, ensure_ascii=False)}

    def report(self, *, quiet: bool, as_json: bool) -> None:
        """The last line: file, frames, seconds and how fast that was."""
        seconds, wall = self.num_frames / self.resolved.fps, self._ended - self._loaded
        load, speed = self._loaded - self._began, seconds / wall if wall else 0.0
        if as_json:
            print_json("Summary", {
                "file": str(self.path) if self.num_frames else None, "stopped": self.stopped,
                "num_frames": self.num_frames, "seconds": seconds, "wall_seconds": wall, "load_seconds": load,
                "real_time_factor": speed, **json.loads(self.metadata()["comment"]),
            })
        elif not quiet and not self.num_frames:
            print("stopped before the first frame; no file was written")
        elif not quiet:
            made = f"{self.num_frames} frames, {seconds:.2f} s of video in {wall:.1f} s ({speed:.2f}× real time)"
            ending = f", stopped at frame {self.num_frames} of {self.resolved.num_frames}" if self.stopped else ""
            print(f"{self.path}: {made}{ending}; loading took {load:.1f} s")


generate = Generate()
