"""Sessions that take turns on the GPU: an offloaded graph is loaded alone, all resident graphs are loaded together.

An engine is loaded when it first runs in a turn of its group. It is freed when the turn of another group begins.
Tensors that are held stay on the GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from arlon_rt.backends.session import Array, Handle, closed
from arlon_rt.backends.trt.session import TrtSession
from arlon_rt.graphs import GraphSpec

RESIDENT = "resident"
"""The group of all resident graphs. Each offloaded graph is a group of its own, of the same name."""


class Residency:
    """Which group of graphs is on the GPU.

    Runs of one group may overlap. Another group waits until they have ended, and goes before runs that begin later.
    """

    def __init__(self, trim: Callable[[], None]) -> None:
        """``trim`` gives the memory that freed sessions leave back to the GPU."""
        self._changed, self._trim = threading.Condition(), trim
        self._group = ""
        self._loaded: list[Callable[[], None]] = []
        """For each loaded session, the function that frees it."""
        self._running = 0
        self._waiting = 0
        """Threads of other groups that wait."""

    @contextmanager
    def turn(self, group: str) -> Iterator[None]:
        """One run of the calling thread, with no other group loaded."""
        with self._changed:
            if group == self._group:
                self._changed.wait_for(lambda: group != self._group or not self._waiting)
            if group != self._group:
                self._waiting += 1
                try:
                    self._changed.wait_for(lambda: group == self._group or not self._running)
                finally:
                    self._waiting -= 1
                    self._changed.notify_all()
                if group != self._group:
                    self._group = group
                    if self._loaded:
                        while self._loaded:
                            self._loaded.pop()()
                        self._trim()
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def loaded(self, free: Callable[[], None]) -> None:
        """Note that a session was loaded in its turn; ``free`` frees it."""
        with self._changed:
            self._loaded.append(free)


class OffloadableSession:
    """One graph whose engine is loaded in its group's turns; implements `Session` and `Looping`."""

    def __init__(
        self, spec: GraphSpec, float_dtype: np.dtype[Any], residency: Residency, group: str,
        load: Callable[[], TrtSession],
    ) -> None:
        self.spec, self.float_dtype, self._load = spec, float_dtype, load
        self._residency, self._group = residency, group
        self._session: TrtSession | None = None
        self._loading = threading.Lock()
        self._closed = False

    def run(self, feed: Mapping[str, Array | Handle], hold: Collection[str] = ()) -> dict[str, Array | Handle]:
        with self._turn() as session:
            return session.run(feed, hold)

    def loop(
        self, feed: Mapping[str, Array | Handle], each: Mapping[str, Array], carry: Mapping[str, str],
        hold: Collection[str] = (),
    ) -> dict[str, Array | Handle]:
        with self._turn() as session:
            return session.loop(feed, each, carry, hold)

    def upload(self, name: str, array: Array) -> Handle:
        with self._turn() as session:
            return session.upload(name, array)

    def close(self) -> None:
        self._closed = True
        self._free()

    @contextmanager
    def _turn(self) -> Iterator[TrtSession]:
        """The session, loaded, in a turn of its group."""
        with self._residency.turn(self._group):
            with self._loading:
                if self._closed:
                    raise closed(self.spec)
                if self._session is None:
                    self._session = self._load()
                    self._residency.loaded(self._free)
                session = self._session
            yield session

    def _free(self) -> None:
        with self._loading:
            session, self._session = self._session, None
        if session is not None:
            session.close()
