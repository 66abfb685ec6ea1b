"""What a caller may change while a video is being made: whether the work goes on, and what is yet to be shown."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from arlon_rt.errors import Cancelled, OptionsError
from arlon_rt.segments import Segment
from arlon_rt.timeline import Timeline


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


class Script:
    """Which prompt holds when, as it stands: what no segment has claimed yet may change."""

    def __init__(self, timeline: Timeline, segments: Sequence[Segment], fps: float, claimed: int = 0) -> None:
        """``timeline`` in seconds, for a video of these segments, of which the first ``claimed`` are made."""
        self._timeline, self._segments, self._fps = timeline, segments, fps
        self._claimed = claimed
        self._lock = threading.Lock()

    @property
    def timeline(self) -> Timeline:
        return self._timeline

    def claim(self, segment: Segment) -> str:
        """The segment's prompt, from now on fixed."""
        with self._lock:
            self._claimed = segment.index + 1
            return self._timeline.at(segment.middle(self._fps))

    def set_prompt(self, prompt: str, at: float | None, check: Callable[[str], object]) -> float:
        """Let ``prompt`` hold from ``at`` seconds on, until a later entry; ``None``: from the next open segment on.

        Returns the second from which it holds. ``check`` raises for a prompt that cannot be used.

        Raises:
            OptionsError: the prompt cannot be used, or every segment that it would be shown in is claimed.
        """
        check(prompt)
        with self._lock:
            still_open = [segment for segment in self._segments if segment.index >= self._claimed]
            if not still_open:
                raise OptionsError("the prompt of every segment is in use already; nothing is left to change")
            start = still_open[0].frames.start / self._fps if at is None else at
            shown = next((s for s in self._segments if s.middle(self._fps) >= start), None)
            if not start >= 0 or shown is None or shown.index < self._claimed:
                raise OptionsError(
                    f"at is {start:g} seconds, where nothing can change any more; segments that are still open begin "
                    f"at {', '.join(f'{s.frames.start / self._fps:.2f}' for s in still_open[:8])} seconds"
                )
            before = self._segments[shown.index - 1].middle(self._fps) if shown.index else -1.0
            others = [e for e in self._timeline.entries if e[0] <= before or e[0] > shown.middle(self._fps)]
            start = start if others and others[0][0] == 0 else 0.0
            self._timeline = Timeline(tuple(sorted([*others, (float(start), prompt)])))
        return float(start)
