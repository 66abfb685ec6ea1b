"""What `arlon-rt build` prints: a line for each engine, and on a terminal a bar for TensorRT's phase."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from arlon_engines.build import Planned
from arlon_engines.events import EngineBuilt, EngineFailed, EngineKept, EngineProgress, Event, WaitingForBuild
from arlon_rt.bundle import EngineEntry
from arlon_rt.units import scaled

LAYER_LABELS = {"ATTENTION_INPUT": "attention", "KV_CACHE_UPDATE": "cache updates"}
"""TensorRT layer types that an engine's line counts, and their names in it."""


class Display:
    """Prints each `Event`; use it as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True,
        ) if console.is_terminal else None
        self._task = self._bar.add_task("reading the bundle", total=None) if self._bar else None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def event(self, event: Event) -> None:
        """Move the bar, or print a line."""
        if isinstance(event, EngineProgress):
            if self._bar and self._task is not None:
                name = f"{event.graph} {event.identity.compute_capability}: {event.phase}"
                self._bar.update(self._task, description=escape(name), completed=event.done, total=event.total)
            return
        self._console.print(escape(line_of(event)), soft_wrap=True)


def line_of(event: WaitingForBuild | EngineBuilt | EngineKept | EngineFailed) -> str:
    """An event as one line."""
    if isinstance(event, WaitingForBuild):
        return f"another build is writing to {event.folder}; waiting for it"
    if isinstance(event, EngineKept):
        return f"{event.graph} for {event.identity}: built already"
    if isinstance(event, EngineFailed):
        return f"{event.graph} for {event.identity}: NOT BUILT: {event.message}"
    return built_line(event.entry)


def built_line(entry: EngineEntry) -> str:
    """A built engine as one line: its size, build time and notable layers."""
    header = entry.header
    parts = [
        f"{scaled(header.plan_bytes)}B in {entry.build_seconds:.1f} s", f"{sum(entry.layers.values())} layers",
        *(f"{count} {what}" for kind, what in LAYER_LABELS.items() if (count := entry.layers.get(kind, 0))),
        *(f"{count} {kind} in float32" for kind, count in entry.wider.items()),
    ]
    return f"{header.graph} for {header.identity}: {', '.join(parts)}"


def print_plan(console: Console, plan: Sequence[Planned]) -> None:
    """Print one line for each engine: whether it would be built or kept, and why."""
    for planned in plan:
        what = f"build: {planned.reason}" if planned.reason else "keep: built already"
        console.print(escape(f"{planned.job.graph} for {planned.job.identity}: {what}"), soft_wrap=True)
    missing = sum(planned.reason is not None for planned in plan)
    console.print(f"{missing} of {len(plan)} engines would be built")
