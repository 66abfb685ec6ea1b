"""``arlon-rt generate``: a prompt, or a timeline of prompts, to an MP4."""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from arlon_rt.cli.arguments import (
    add_backend,
    add_options,
    add_prompts,
    machine,
    open_bundle,
    read_options,
    read_prompts,
)
from arlon_rt.cli.display import Display, choose
from arlon_rt.cli.footage import add_footage, read_footage
from arlon_rt.cli.plan import show_plan
from arlon_rt.errors import ArlonError, Cancelled, OptionsError
from arlon_rt.events import Event
from arlon_rt.recording import Recording, snapshot_of
from arlon_rt.video import EFFORTS, PIPE, check_sink

OF_ANY_RUN = (
    "output", "resume", "preview", "bundle", "backend", "trust_engines", "vram_budget", "dry_run", "quiet", "json",
    "crf", "effort", "overlap",
)
"""Arguments that may be given with --resume, or have a default that is not None."""


class Generate:
    """The command; see `arlon_rt.cli.main.Command`."""

    help = "Make a video from a prompt. Frames are written as they are made; Ctrl-C leaves a file that plays."

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
            help="go on with FILE.mp4 where it was stopped, by Ctrl-C, a crash or a full disk; prompt and options are "
                 "those it was begun with (default: off)",
        )
        parser.add_argument(
            "--crf", type=int, metavar="N", help="quality of the video file, 0 to 51, lower is better (default: 18)"
        )
        parser.add_argument(
            "--effort", choices=EFFORTS, default="usual", help="what the encoder spends time on (default: usual)"
        )
        parser.add_argument(
            "--preview", metavar="FILE.mp4",
            help="also write each segment's draft, as soon as it is decoded (default: none)",
        )
        parser.add_argument(
            "--overlap", action="store_true",
            help="draft, denoise and decode different segments at once; on a CPU each with half the cores' threads "
                 "unless --threads says otherwise (default: off)",
        )
        parser.add_argument(
            "--dry-run", action="store_true",
            help="make nothing; show what TensorRT would take of a GPU's memory, and whether --vram-budget holds it "
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
            return show_plan(args)
        if args.output is None:
            raise OptionsError("there is no output; name the video to write, e.g. -o out.mp4")
        if args.json and args.output == PIPE:
            raise OptionsError("output is '-' and events are JSON lines; both are standard output: leave one out")
        recording = resumed(args) if args.resume else begun(args)
        with Stop() as stop:
            try:
                make(recording, args, stop, choose(quiet=args.quiet, as_json=args.json))
            except Cancelled:
                recording.stopped = True
            except ArlonError as error:
                if where := recording.where_cut_short():
                    error.add_note(f"what was written of {recording.num_frames} frames is in {where}")
                if recording.resumable:
                    error.add_note(f"go on with: {recording.resume_command(args.bundle)}")
                raise
        recording.report(quiet=args.quiet, as_json=args.json, bundle=args.bundle)
        return 0 if stop.signum is None else 128 + stop.signum


def begun(args: argparse.Namespace) -> Recording:
    """A new video."""
    timeline = read_prompts(args)
    bundle = open_bundle(args)
    options = read_options(args, bundle)
    length = None if args.seconds is None and args.num_frames is None else options.resolved(bundle).num_frames
    sources = read_footage(args, options.resolved(bundle), bundle, length)
    if sources.repainted is not None and length is None:
        options = dataclasses.replace(options, num_frames=len(sources.repainted))
    recording = Recording(args, timeline, options, bundle, sources=sources)
    check_sink(args.output)
    check_preview(args)
    if recording.same_was_begun():
        raise OptionsError(
            f"this very video was begun before and stopped; go on with: {recording.resume_command(args.bundle)}, or "
            f"delete {recording.snapshot_path} to begin anew"
        )
    if recording.snapshot_path:
        recording.snapshot_path.unlink(missing_ok=True)
    return recording


def resumed(args: argparse.Namespace) -> Recording:
    """A video that was begun before."""
    from arlon_rt.generation import Snapshot

    asked = [name for name, value in vars(args).items() if name not in OF_ANY_RUN and value is not None]
    if asked:
        raise OptionsError(f"{', '.join(asked)} cannot change on --resume; leave out all but -o and --bundle")
    path = snapshot_of(args.output)
    if path is None:
        raise OptionsError(f"output is {args.output!r}; only an MP4 can go on")
    if not path.is_file():
        raise OptionsError(f"there is no {path}, so nothing to go on from: a video is begun with a prompt")
    snapshot = Snapshot.load(path)
    check_preview(args)
    return Recording(args, snapshot.prompts, snapshot.options, open_bundle(args), resumed_from=snapshot)


def check_preview(args: argparse.Namespace) -> None:
    """Raise unless the draft can be written, to a file of its own."""
    if args.preview is None:
        return
    if args.preview == PIPE or Path(args.preview).absolute() == Path(args.output).absolute():
        raise OptionsError(f"preview is {args.preview!r}, as is the output or a pipe; name another file")
    check_sink(args.preview)


def make(recording: Recording, args: argparse.Namespace, stop: Stop, display: Display) -> None:
    """Open the model, generate and record, until done or stopped."""
    from arlon_rt.pipeline import Pipeline

    def on_event(event: Event) -> None:
        display.show(event)
        recording.note(event)
        stop.check()

    here = machine(args)
    if here["threads"] is None and args.overlap and here["device"] == "cpu":
        here["threads"] = max(1, (os.cpu_count() or 1) // 2)   # more, and stages wait for each other's cores
    here["sized_for"] = recording.options
    if recording.goes_on:
        here["sized_for"] = dataclasses.replace(recording.options, num_frames=None)
    if recording.resumed_from:
        here |= dataclasses.asdict(recording.resumed_from.machine)
    with display, Pipeline.open(recording.bundle, **here) as pipeline:
        for read in recording.sources.read:
            on_event(read)
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


generate = Generate()
