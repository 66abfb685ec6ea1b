"""What all lanes of a generation share: its brakes, its events one at a time, and the time each network took."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from arlon_rt.errors import Cancelled
from arlon_rt.events import Event, OnEvent, Progress
from arlon_rt.graphs import Network
from arlon_rt.segments import Segment


class Control:
    """The brakes. Each lane calls `checkpoint` after every token, step and chunk; any thread may pull them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._paused = self._cancelled = False

    def checkpoint(self) -> None:
        """Wait while paused; raise `Cancelled` once the generation is cancelled."""
        with self._changed:
            self._changed.wait_for(lambda: self._cancelled or not self._paused)
            if self._cancelled:
                raise Cancelled("the generation was cancelled")

    def pause(self) -> None:
        """Stop each lane at its next checkpoint."""
        self._set(paused=True, cancelled=self._cancelled)

    def resume(self) -> None:
        """Let the lanes go on."""
        self._set(paused=False, cancelled=self._cancelled)

    def cancel(self) -> None:
        """End each lane at its next checkpoint, paused or not."""
        self._set(paused=self._paused, cancelled=True)

    def _set(self, *, paused: bool, cancelled: bool) -> None:
        with self._changed:
            self._paused, self._cancelled = paused, cancelled
            self._changed.notify_all()


class Reporter:
    """Hands events to the caller, one at a time, and adds up the seconds of each network."""

    def __init__(self, on_event: OnEvent, control: Control) -> None:
        self._on_event, self._control = on_event, control
        self._one_at_a_time = threading.RLock()
        self.seconds: dict[Network, float] = {}

    def emit(self, event: Event) -> None:
        """Hand an event to the caller."""
        with self._one_at_a_time:
            self._on_event(event)

    def progress(self, network: Network, segment: Segment, *, draft: bool = False) -> Callable[[int, int], None]:
        """A function (done, total) to call after every unit of work. It reports the unit, after a checkpoint."""
        def unit_done(done: int, total: int) -> None:
            self._control.checkpoint()
            self.emit(Progress(network=network, segment=segment.index, done=done, total=total, draft=draft))

        return unit_done

    @contextmanager
    def timed(self, network: Network) -> Iterator[None]:
        """A context whose duration counts as the network's."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            with self._one_at_a_time:
                self.seconds[network] = self.seconds.get(network, 0.0) + time.perf_counter() - begun


def peak_memory() -> int | None:
    """The most memory this process had at once, in bytes; ``None`` where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
