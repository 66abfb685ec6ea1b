"""``arlon-rt generate``: a video file from a prompt, or from a timeline of prompts."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from arlon_rt.cli.arguments import add_backend, add_options, add_prompts, machine, open_bundle, read_request
from arlon_rt.cli.display import Display, choose, print_json
from arlon_rt.cli.footage import add_footage, read_footage
from arlon_rt.errors import ArlonError, Cancelled, OptionsError
from arlon_rt.events import Event
from arlon_rt.video import DEFAULT_QUALITY, EFFORTS, PIPE, Quality

if TYPE_CHECKING:
    from arlon_rt.recording import Recording, Summary

OF_ANY_RUN = (
    "output", "resume", "preview", "bundle", "backend", "trust_engines", "vram_budget", "dry_run", "quiet", "json",
    "crf", "effort", "overlap",
)
"""Arguments that --resume allows, or whose default is not None."""


class Generate:
    """The command; see `arlon_rt.cli.main.Command`."""

    help = "Generate a video from a prompt. Frames are written as they come; Ctrl-C leaves a file that plays."

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.usage = "%(prog)s PROMPT -o FILE.mp4 [options]\n       %(prog)s --resume -o FILE.mp4"
        add_prompts(parser)
        parser.add_argument(
            "-o", "--output", metavar="FILE.mp4",
            help="the video to write; also FILE.webm, FOLDER/ for PNG frames, or - for a fragmented MP4 on stdout "
                 "(default: none)",
        )
        parser.add_argument(
            "--resume", action="store_true",
            help="go on with FILE.mp4 where Ctrl-C, a crash or a full disk stopped it; prompt and options are those it "
                 "was begun with (default: off)",
        )
        parser.add_argument(
            "--crf", type=int, metavar="N", help="quality of the video file, 0 to 51, lower is better (default: 18)"
        )
        parser.add_argument(
            "--effort", choices=EFFORTS, default=DEFAULT_QUALITY.effort,
            help="how long the encoder works at a smaller file (default: %(default)s)",
        )
        parser.add_argument(
            "--preview", metavar="FILE.mp4",
            help="also write each segment's draft, as soon as its tokens are drafted (default: none)",
        )
        parser.add_argument(
            "--overlap", action="store_true",
            help="draft, denoise and decode different segments at once; on a CPU each with half the cores' threads "
                 "unless --threads says otherwise (default: off)",
        )
        parser.add_argument(
            "--dry-run", action="store_true",
            help="generate nothing; show the GPU memory that TensorRT would need, and whether --vram-budget holds it "
                 "(default: off)",
        )
        add_footage(parser)
        add_options(parser)
        add_backend(parser)
        shown = parser.add_argument_group("display").add_mutually_exclusive_group()
        shown.add_argument("--quiet", action="store_true", help="print nothing but errors and warnings (default: off)")
        shown.add_argument("--json", action="store_true", help="print events and a summary as JSON (default: off)")

    def run(self, args: argparse.Namespace) -> int:
        if args.dry_run:
            from arlon_rt.cli.plan import show_plan

            show_plan(args)
            return 0
        if args.output is None:
            raise OptionsError("there is no output; name the video to write, e.g. -o out.mp4")
        if args.json and args.output == PIPE:
            raise OptionsError("output is '-' and events are JSON lines; both are standard output: leave one out")
        recording = resumed(args) if args.resume else begun(args)
        recording.prepare()
        stopped = False
        with Stop() as stop:
            try:
                record(recording, args, stop, choose(quiet=args.quiet, as_json=args.json))
            except Cancelled:
                stopped = True
            except ArlonError as error:
                if where := recording.unfinished_output():
                    error.add_note(f"what was written of {recording.num_frames} frames is in {where}")
                if recording.resumable:
                    error.add_note(f"go on with: {resume_command(args)}")
                raise
        print_summary(recording, args, stopped=stopped)
        return 0 if stop.signum is None else 128 + stop.signum


def begun(args: argparse.Namespace) -> Recording:
    """The recording of a new video."""
    from arlon_rt.recording import Recording

    timeline, bundle, options = read_request(args)
    resolved = options.resolved(bundle)
    length = None if args.seconds is None and args.num_frames is None else resolved.num_frames
    sources = read_footage(args, resolved, bundle, length)
    if sources.repainted is not None and length is None:
        options = dataclasses.replace(options, num_frames=len(sources.repainted))
    recording = Recording(args.output, timeline, options, bundle, sources=sources, **how(args))
    if recording.was_stopped_before():
        raise OptionsError(
            f"this very video was begun before and stopped; go on with: {resume_command(args)}, or delete "
            f"{recording.snapshot_path} to begin anew"
        )
    return recording


def resumed(args: argparse.Namespace) -> Recording:
    """The recording of a video that was stopped."""
    from arlon_rt.recording import Recording

    asked = [name for name, value in vars(args).items() if name not in OF_ANY_RUN and value is not None]
    if asked:
        raise OptionsError(f"{', '.join(asked)} cannot change on --resume; leave out all but -o and --bundle")
    return Recording.resume(args.output, open_bundle(args), **how(args))


def how(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `Recording` that a resumed video may change."""
    quality = Quality(crf=args.crf, effort=args.effort)
    return {"preview": args.preview, "overlap": args.overlap, "quality": quality}


def resume_command(args: argparse.Namespace) -> str:
    """The command line that goes on with this video."""
    words = ["--bundle", str(args.bundle)] if args.bundle else []
    words += ["--preview", args.preview] if args.preview else []
    words += ["--overlap"] if args.overlap else []
    words += ["--crf", str(args.crf)] if args.crf is not None else []
    words += ["--effort", args.effort] if args.effort != DEFAULT_QUALITY.effort else []
    return shlex.join(["arlon-rt", "generate", "--resume", "-o", args.output, *words])


def record(recording: Recording, args: argparse.Namespace, stop: Stop, display: Display) -> None:
    """Open the model and record the video, until it is complete or a signal comes."""
    from arlon_rt.pipeline import Pipeline

    def on_event(event: Event) -> None:
        display.show(event)
        stop.check()

    settings = machine(args)
    if settings["threads"] is None and args.overlap and settings["device"] == "cpu":
        settings["threads"] = max(1, (os.cpu_count() or 1) // 2)   # more, and lanes wait for each other's cores
    if recording.resumed_from:
        settings |= dataclasses.asdict(recording.resumed_from.machine)
    with display, Pipeline.open(recording.bundle, **settings, sized_for=recording.largest_request) as pipeline:
        for read in recording.sources.read:
            on_event(read)
        stop.check()
        recording.record(pipeline, on_event)


def print_summary(recording: Recording, args: argparse.Namespace, *, stopped: bool) -> None:
    """The last line: file, frames, seconds and speed; for a video that was stopped, also how to go on."""
    summary = recording.summary(stopped=stopped)
    resume = resume_command(args) if stopped and recording.resumable else None
    if args.json:
        fields = dataclasses.asdict(summary)
        del fields["origin"], fields["written_seconds"]
        print_json("Summary", {**fields, "resume": resume, **summary.origin})
    elif not args.quiet:
        out = sys.stderr if args.output == PIPE else sys.stdout
        print(describe_summary(summary, recording.resolved.num_frames), file=out)
        if resume:
            print(f"go on with: {resume}", file=out)


def describe_summary(summary: Summary, num_frames: int) -> str:
    """One line on what was written; the video was to have ``num_frames``."""
    if summary.file is None:
        return "stopped before the first frame; no file was written"
    name = "stdout" if summary.file == PIPE else summary.file
    length = f"{summary.num_frames} frames, {summary.seconds:.2f} s of video"
    wall = f"in {summary.wall_seconds:.1f} s"
    resumed = summary.written_seconds < summary.seconds
    pace = f", {summary.written_seconds:.2f} s of it {wall}" if resumed else f" {wall}"
    ending = f", stopped at frame {summary.num_frames} of {num_frames}" if summary.stopped else ""
    speed, load = summary.real_time_factor, summary.load_seconds
    return f"{name}: {length}{pace} ({speed:.2f}× real time){ending}; loading took {load:.1f} s"


class Stop:
    """Turns SIGINT and SIGTERM into `Cancelled` at the next event, so that no frame is cut in half.

    A second signal does not wait.
    """

    def __init__(self) -> None:
        self.signum: int | None = None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
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


generate = Generate()
