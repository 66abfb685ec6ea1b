"""Which prompt holds when: a video's prompts, checked, and how they may change while it is generated."""

from __future__ import annotations

import itertools
import json
import math
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from arlon_rt.errors import OptionsError
from arlon_rt.segments import Segment


@dataclass(frozen=True)
class Timeline:
    """Which prompt holds when: ``entries`` are (start, prompt), the first at 0, with rising starts."""

    entries: tuple[tuple[float, str], ...]
    unit: Literal["seconds", "segment"] = "seconds"
    """What a start counts: seconds, or the video's segments."""

    def __post_init__(self) -> None:
        if not self.entries:
            raise OptionsError("prompts is empty; give at least one prompt")
        for start, prompt in self.entries:
            if not re.search(r"[^\W_]", prompt):
                where = f" at {self._named(start)}" if len(self.entries) > 1 else ""
                raise OptionsError(f"prompt{where} is {prompt!r:.80}; it must contain at least one word")
            if not math.isfinite(start):
                raise OptionsError(f"a prompt starts at {self._named(start)}; a finite number is expected")
        starts = [start for start, _ in self.entries]
        if starts[0] != 0:
            raise OptionsError(f"the first prompt starts at {self._named(starts[0])}; it must start at 0")
        if any(b <= a for a, b in itertools.pairwise(starts)):
            raise OptionsError(f"prompts start at {', '.join(map(self._named, starts))}; they must rise")

    def _named(self, start: float) -> str:
        return f"{start:g} seconds" if self.unit == "seconds" else f"segment {start:g}"

    @staticmethod
    def of(prompts: str | Iterable[tuple[float, str]] | Timeline) -> Timeline:
        """From one prompt, from Open-Sora's ``|0| text |6| text``, or from (seconds, prompt) pairs."""
        if isinstance(prompts, Timeline):
            return prompts
        if not isinstance(prompts, str):
            return Timeline(tuple(_entry(pair) for pair in prompts))
        by_segment = _by_segment(prompts)
        return Timeline(by_segment, "segment") if by_segment else Timeline(((0.0, prompts),))

    @staticmethod
    def parse(lines: Sequence[str]) -> Timeline:
        """From command-line arguments: ``SECONDS:PROMPT`` each, or one plain prompt."""
        split = [re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*:(.*)", line, re.DOTALL) for line in lines]
        if len(lines) == 1 and split[0] is None:
            return Timeline.of(lines[0])
        for line, found in zip(lines, split, strict=True):
            if found is None:
                raise OptionsError(f"prompt is {line!r:.80}; with several prompts each is SECONDS:PROMPT, as in '4:…'")
        return Timeline(tuple((float(m[1]), m[2].strip()) for m in split if m))

    @staticmethod
    def from_json(path: str | Path) -> Timeline:
        """From a JSON file: ``[{"seconds": 0, "prompt": "…"}, …]`` or ``[[0, "…"], …]``."""
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise OptionsError(f"prompts file {path} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise OptionsError(f"prompts file {path} is not JSON: {error}") from error
        if not isinstance(value, list):
            raise OptionsError(f'prompts file {path} must hold a list, as in [{{"seconds": 0, "prompt": "…"}}]')
        pairs = [(i.get("seconds"), i.get("prompt")) if isinstance(i, dict) else i for i in value]
        return Timeline(tuple(_entry(pair) for pair in pairs))

    def in_seconds(self, segments: Sequence[Segment], fps: float) -> Timeline:
        """The timeline in seconds, for a video of these segments: a prompt starts with its segment's new frames.

        Raises:
            OptionsError: a prompt would never be shown, because it holds at no segment's middle.
        """
        by_time = self.unit == "seconds"
        shown = {self._entry_at(s.middle(fps) if by_time else number) for number, s in enumerate(segments)}
        begin = [segment.frames.start / fps for segment in segments]
        for start, prompt in self.entries:
            if (start, prompt) not in shown:
                raise OptionsError(
                    f"prompt {prompt!r:.60} at {self._named(start)} would never be shown; a prompt holds for whole "
                    f"segments, which begin at {', '.join(f'{seconds:.2f}' for seconds in begin[:8])}"
                    f"{', …' if len(begin) > 8 else ''} seconds: move it or make the video longer"
                )
        return self if by_time else Timeline(tuple((begin[int(index)], prompt) for index, prompt in self.entries))

    def at(self, start: float) -> str:
        """The prompt that holds at a time of the video (or in a segment, where that is the unit)."""
        return self._entry_at(start)[1]

    def _entry_at(self, start: float) -> tuple[float, str]:
        return [entry for entry in self.entries if entry[0] <= start][-1]


def _by_segment(prompt: str) -> tuple[tuple[float, str], ...]:
    """The (segment, text) pairs of ``|0| text |6| text``; none where the prompt does not begin with a number."""
    before, *parts = re.split(r"\|\s*(\d+)\s*\|", prompt)
    if before.strip():
        return ()
    return tuple((float(index), text.strip()) for index, text in zip(parts[::2], parts[1::2], strict=True))


def _entry(pair: Any) -> tuple[float, str]:
    match pair:
        case (int() | float() as seconds, str() as prompt) if not isinstance(seconds, bool):
            return float(seconds), prompt
    raise OptionsError(f"prompts holds {pair!r:.80}; (seconds, prompt) is expected")


class Script:
    """The timeline of a generation under way: a prompt that no segment has claimed yet may change."""

    def __init__(self, timeline: Timeline, segments: Sequence[Segment], fps: float, claimed: int = 0) -> None:
        """``timeline`` is in seconds; the first ``claimed`` of the video's segments are finished."""
        self.timeline, self._segments, self._fps = timeline, segments, fps
        self._claimed = claimed
        self._lock = threading.Lock()

    def claim(self, segment: Segment) -> str:
        """The segment's prompt, which is fixed from now on."""
        with self._lock:
            self._claimed = segment.index + 1
            return self.timeline.at(segment.middle(self._fps))

    def set_prompt(self, prompt: str, at: float | None, check: Callable[[str], object]) -> float:
        """Let ``prompt`` hold from ``at`` seconds on, until a later entry; ``None`` is from the next open segment on.

        Returns the second from which it holds. ``check`` raises for a prompt that cannot be used.

        Raises:
            OptionsError: the prompt cannot be used, or every segment that would show it is claimed.
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
            others = [e for e in self.timeline.entries if e[0] <= before or e[0] > shown.middle(self._fps)]
            start = start if others and others[0][0] == 0 else 0.0
            self.timeline = Timeline(tuple(sorted([*others, (float(start), prompt)])))
        return float(start)
