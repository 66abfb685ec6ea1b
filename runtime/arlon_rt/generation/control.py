"""What a generation tells while it works: events, one at a time, and the time that each stage took."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from arlon_rt.events import Event, Progress, Stage
from arlon_rt.segments import Segment
from arlon_rt.steering import Control

OnEvent = Callable[[Event], object]


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
