"""An iterator that runs on a thread of its own, so that one lane works while the next uses what it made."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """The items of ``source``, produced on a worker thread. At most ``depth`` of them wait to be taken.

    A slow consumer slows the work. What ``source`` raises is raised once, to the consumer. `close` ends the thread
    after the item under way; ``source`` is closed on its own thread.
    """

    def __init__(self, source: Generator[T], name: str, depth: int = 1) -> None:
        self._source, self._depth = source, depth
        self._changed = threading.Condition()
        self._waiting: deque[T] = deque()
        self._closing = self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def __iter__(self) -> Ahead[T]:
        return self

    def __next__(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended)
            if self._waiting:
                self._changed.notify_all()
                return self._waiting.popleft()
            error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration

    def close(self) -> None:
        """End the work and wait for the thread. A second call does nothing."""
        with self._changed:
            self._closing = True
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        try:
            for item in self._source:
                with self._changed:
                    self._waiting.append(item)
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._closing or len(self._waiting) < self._depth)
                    if self._closing:
                        break
            self._source.close()
        except BaseException as error:  # raised again to the consumer
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
