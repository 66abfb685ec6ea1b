"""What a generation tells while it works: events, one at a time, and the time that each stage took."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from arlon_rt.errors import Cancelled
from arlon_rt.events import Event, OnEvent, Progress, Stage
from arlon_rt.segments import Segment


class Reporter:
    """Shared by the stages, which may be on several threads."""

    def __init__(self, on_event: OnEvent, control: Control) -> None:
        self._on_event, self._control = on_event, control
        self._one_at_a_time = threading.RLock()
        self.seconds: dict[Stage, float] = {}

    def emit(self, event: Event) -> None:
        """Hand an event to the caller."""
        with self._one_at_a_time:
            self._on_event(event)

    def progress(self, stage: Stage, segment: Segment) -> Callable[[int, int], None]:
        """Where every unit of work passes: it may have to wait here, or end."""
        def passed(done: int, total: int) -> None:
            self._control.checkpoint()
            self.emit(Progress(stage=stage, segment=segment.index, done=done, total=total))

        return passed

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Book the time of what is done here."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            with self._one_at_a_time:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begun



class Control:
    """Brakes that all stages share: each passes `checkpoint` after every token, step and chunk."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._paused = self._cancelled = False

    def checkpoint(self) -> None:
        """Wait while paused.

        Raises:
            Cancelled: the generation was cancelled.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._cancelled or not self._paused)
            if self._cancelled:
                raise Cancelled("the generation was cancelled")

    def pause(self) -> None:
        """Stop all work at its next checkpoint."""
        self._set(paused=True, cancelled=self._cancelled)

    def resume(self) -> None:
        """Let it go on."""
        self._set(paused=False, cancelled=self._cancelled)

    def cancel(self) -> None:
        """End all work at its next checkpoint; a paused one, too."""
        self._set(paused=self._paused, cancelled=True)

    def _set(self, *, paused: bool, cancelled: bool) -> None:
        with self._changed:
            self._paused, self._cancelled = paused, cancelled
            self._changed.notify_all()



def peak_memory() -> int | None:
    """The most memory this process had at once, in bytes; ``None`` where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
