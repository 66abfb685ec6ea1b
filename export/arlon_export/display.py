"""What `arlon-rt export` prints: on a terminal a bar with bytes and the time left, elsewhere plain lines."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from arlon_export.events import ExportProgress, GraphDone

LINE_SECONDS = 20.0
"""The least time between two plain lines of progress."""


class Display:
    """Prints `GraphDone` and `ExportProgress` events; use it as a context manager."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._start = self._last_line = clock()
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
            console=console, transient=True,
        ) if console.is_terminal else None
        self._task = self._bar.add_task("reading headers", total=None) if self._bar else None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def graph(self, done: GraphDone) -> None:
        """Print one line for the graph: its size, and how it compared with its torch module."""
        verdict = "kept from the run before" if done.agreement is None else str(done.agreement)
        size = f"{done.onnx_bytes / 1024:.0f} KiB"
        self._console.print(escape(
            f"[{done.done:2d}/{done.total}] {done.graph}.{done.precision}: {size}, {verdict}"
        ), soft_wrap=True)

    def progress(self, progress: ExportProgress) -> None:
        """Move the bar, or print a line if the last one is `LINE_SECONDS` old."""
        if self._bar and self._task is not None:
            self._bar.update(
                self._task, description=progress.task, completed=progress.bytes_done, total=progress.bytes_total
            )
        elif self._clock() - self._last_line >= LINE_SECONDS:
            self._last_line = self._clock()
            self._console.print(self._line(progress), soft_wrap=True)

    def _line(self, progress: ExportProgress) -> str:
        done, total = progress.bytes_done, progress.bytes_total
        left = ""
        if 0 < done < total:
            left = f", about {(self._clock() - self._start) * (total - done) / done:.0f} s left"
        return f"{progress.task}: {done / 1e9:.2f} of {total / 1e9:.2f} GB of weights read{left}"
