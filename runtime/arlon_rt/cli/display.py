"""How the command shows a generation: a bar on a terminal, plain lines elsewhere, JSON lines, or nothing."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import textwrap
import time
from collections.abc import Mapping
from typing import Any, Self

from arlon_rt.events import Event, Finished, FootageRead, FramesWritten, Progress, PromptCut, Started

WORDS = {
    "text": "reading the prompt", "ar": "drafting tokens", "vq": "decoding tokens", "draft": "decoding the draft",
    "dit": "denoising", "vae": "decoding frames", "file": "writing frames",
}
"""What the screen calls each kind of work: a network's, the decoding of drafts (``"draft"``), writing (``"file"``)."""


def work_of(event: Progress | FramesWritten) -> str:
    """The kind of work that an event reports: a key of `WORDS`."""
    if isinstance(event, FramesWritten):
        return "file"
    return "draft" if event.draft else event.network


class Clock:
    """Seconds of each kind of work: the time between two events counts as the work that the second one reports."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def note(self, event: Event) -> None:
        """Count the time since the last event."""
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        if isinstance(event, Progress | FramesWritten):
            work = work_of(event)
            self.seconds[work] = self.seconds.get(work, 0.0) + elapsed


class Display:
    """Shows nothing; the others show events. Entered before the first event and left after the last."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def show(self, event: Event) -> None:
        pass


class JsonLines(Display):
    """Prints each event to stdout as one JSON object, for programs."""

    def show(self, event: Event) -> None:
        print_json(type(event).__name__, dataclasses.asdict(event))


class Lines(Display):
    """Prints lines to stderr, for logs: one at the end of each segment, and one now and then during a long one."""

    def __init__(self, seconds_between: float = 10.0) -> None:
        self._seconds_between = seconds_between
        self._segments = 1
        self._clock = Clock()
        self._overlap = False
        self._begun = self._printed = time.perf_counter()

    def show(self, event: Event) -> None:
        self._clock.note(event)
        if isinstance(event, Started):
            self._segments, self._overlap, self._begun = event.segments, event.overlap, time.perf_counter()
            length = f"{event.num_frames / event.fps:.1f} s at {event.fps:g} fps"
            self._print(f"{event.num_frames} frames of {event.width}×{event.height}, {length}")
        elif isinstance(event, PromptCut | FootageRead):
            self._print(describe_input(event))
        elif isinstance(event, Progress):
            place = f"segment {event.segment + 1}/{self._segments}: "
            if work_of(event) == "vae" and event.done == event.total:
                spent = describe_seconds(self._clock.seconds)
                done = f"done {time.perf_counter() - self._begun:.1f} s after the start"
                self._print(place + (done if self._overlap else spent))
                self._clock.seconds.clear()
            elif time.perf_counter() - self._printed >= self._seconds_between:
                self._print(f"{place}{WORDS[work_of(event)]} {event.done}/{event.total}")
        elif isinstance(event, Finished) and self._overlap:
            self._print(f"in all: {describe_seconds(event.network_seconds)}, at once")

    def _print(self, line: str) -> None:
        self._printed = time.perf_counter()
        print(line, file=sys.stderr, flush=True)


class Terminal(Display):
    """Two bars on stderr: the work under way and the frames that are written."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, console=Console(stderr=True), transient=True)
        self._work = self._bars.add_task("loading", total=None)
        self._frames = self._bars.add_task("frames", total=None)
        self._segments = 1
        self._current = ""

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def show(self, event: Event) -> None:
        if isinstance(event, Started):
            self._segments = event.segments
            self._bars.update(self._frames, total=event.num_frames)
        elif isinstance(event, PromptCut | FootageRead):
            self._bars.console.print(describe_input(event), markup=False, highlight=False, soft_wrap=True)
        elif isinstance(event, FramesWritten):
            self._bars.update(self._frames, completed=event.done)
        elif isinstance(event, Progress):
            text = f"segment {event.segment + 1}/{self._segments}: {WORDS[work_of(event)]}"
            if text != self._current:
                self._current = text
                self._bars.reset(self._work)
            self._bars.update(self._work, description=text, completed=event.done, total=event.total)


def describe_seconds(seconds: Mapping[Any, float]) -> str:
    """The seconds of each kind of work, in words."""
    return ", ".join(f"{words} {seconds[work]:.1f} s" for work, words in WORDS.items() if work in seconds)


def describe_input(event: PromptCut | FootageRead) -> str:
    """One line on the part of a prompt that the model does not read, or on a file that was read and how it changed."""
    if isinstance(event, FootageRead):
        count = "an image" if event.num_frames == 1 else f"{event.num_frames} frames"
        return f"{event.use} {event.file}: {count}; {'; '.join(event.changes) or 'as it is'}"
    prompt, lost = (textwrap.shorten(text, 60, placeholder=" …") for text in (event.prompt, event.lost_text))
    return (f"prompt '{prompt}' is too long: of its {event.max_tokens + event.lost_tokens} tokens the model reads "
            f"{event.max_tokens}; left out is '{lost}'")


def print_json(kind: str, fields: dict[str, Any]) -> None:
    """One JSON line on stdout: ``{"event": "chunk_ready", …}``."""
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", kind).lower()
    print(json.dumps({"event": name, **fields}, ensure_ascii=False), flush=True)


def choose(*, quiet: bool, as_json: bool) -> Display:
    """The display for these options, and for a terminal or none."""
    if as_json:
        return JsonLines()
    if quiet:
        return Display()
    return Terminal() if sys.stderr.isatty() else Lines()
