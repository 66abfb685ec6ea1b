"""What `arlon-rt export` shows: a bar with bytes and the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from arlon_export.events import GraphDone, Working

LINE_SECONDS = 20.0
"""Between two plain lines on what the export is at."""


class Display:
    """Shows `GraphDone` and `Working`; use as a context manager."""

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
        """A line for each graph, with what was compared."""
        said = "kept from the run before" if done.agreement is None else str(done.agreement)
        size = f"{done.onnx_bytes / 1024:.0f} KiB"
        self._console.print(escape(
            f"[{done.done:2d}/{done.total}] {done.graph}.{done.precision}: {size}, {said}"
        ), soft_wrap=True)

    def work(self, working: Working) -> None:
        """The bar's state, or now and then a line."""
        if self._bar and self._task is not None:
            self._bar.update(
                self._task, description=working.what, completed=working.bytes_done, total=working.bytes_total
            )
        elif self._clock() - self._last_line >= LINE_SECONDS:
            self._last_line = self._clock()
            self._console.print(self._line(working), soft_wrap=True)

    def _line(self, working: Working) -> str:
        done, total = working.bytes_done, working.bytes_total
        left = ""
        if 0 < done < total:
            left = f", about {(self._clock() - self._start) * (total - done) / done:.0f} s left"
        return f"{working.what}: {done / 1e9:.2f} of {total / 1e9:.2f} GB of weights read{left}"
