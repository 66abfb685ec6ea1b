"""Sessions that are loaded by turns: one that passes is alone on the GPU, and the others are loaded together.

Each is loaded when it is first run in its turn, and freed when another party's turn begins. Tensors that are held stay.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from arlon_rt.backends.session import Array, Handle, Looping, Session, closed
from arlon_rt.graphs import GraphSpec

TOGETHER = "together"
"""The party of all sessions that do not pass; each that passes is a party of its own, called by its graph."""


class LoopingSession(Session, Looping, Protocol):
    """What is loaded."""


class Room:
    """Which party is loaded. Runs of one party may overlap; another waits for those under way, and then comes before
    new ones."""

    def __init__(self, trim: Callable[[], None]) -> None:
        """``trim`` gives back what freed sessions leave to the GPU."""
        self._changed, self._trim = threading.Condition(), trim
        self._party = ""
        self._loaded: list[Callable[[], None]] = []
        """What frees each session that is loaded."""
        self._running = 0
        self._waiting = 0
        """Threads of other parties that wait."""

    @contextmanager
    def turn(self, party: str) -> Iterator[None]:
        """The calling thread's run; whatever another party has loaded was freed."""
        with self._changed:
            self._enter(party)
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def loaded(self, free: Callable[[], None]) -> None:
        """Note, in its turn, that a session was loaded; ``free`` frees it."""
        with self._changed:
            self._loaded.append(free)

    def _enter(self, party: str) -> None:
        if party == self._party:
            self._changed.wait_for(lambda: party != self._party or not self._waiting)
        if party != self._party:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: party == self._party or not self._running)
            finally:
                self._waiting -= 1
                self._changed.notify_all()
            if party != self._party:
                self._party = party
                freed = bool(self._loaded)
                while self._loaded:
                    self._loaded.pop()()
                if freed:
                    self._trim()
        self._running += 1


class PassingSession:
    """One graph's engine, loaded in its party's turns; implements `Session` and `Looping` of
    `arlon_rt.backends.session`."""

    def __init__(
        self, spec: GraphSpec, float_dtype: np.dtype[Any], room: Room, party: str, load: Callable[[], LoopingSession]
    ) -> None:
        self._spec, self._float_dtype, self._room, self._party, self._load = spec, float_dtype, room, party, load
        self._session: LoopingSession | None = None
        self._loading = threading.Lock()
        self._closed = False

    @property
    def spec(self) -> GraphSpec:
        return self._spec

    @property
    def float_dtype(self) -> np.dtype[Any]:
        return self._float_dtype

    def run(self, feed: Mapping[str, Array | Handle], hold: Collection[str] = ()) -> dict[str, Array | Handle]:
        """Run the graph once; see `arlon_rt.backends.session.Session.run`."""
        with self._room.turn(self._party):
            return self._opened().run(feed, hold)

    def loop(
        self, feed: Mapping[str, Array | Handle], each: Mapping[str, Array], carry: Mapping[str, str],
        hold: Collection[str] = (),
    ) -> dict[str, Array | Handle]:
        """Run the graph many times; see `arlon_rt.backends.session.Looping.loop`."""
        with self._room.turn(self._party):
            return self._opened().loop(feed, each, carry, hold)

    def upload(self, name: str, array: Array) -> Handle:
        """The input ``name`` as a handle; see `arlon_rt.backends.session.Session.upload`."""
        with self._room.turn(self._party):
            return self._opened().upload(name, array)

    def close(self) -> None:
        """Free the graph for good. A second call does nothing; handles stay valid."""
        self._closed = True
        self._free()

    def _opened(self) -> LoopingSession:
        with self._loading:
            if self._closed:
                raise closed(self._spec)
            if self._session is None:
                self._session = self._load()
                self._room.loaded(self._free)
            return self._session

    def _free(self) -> None:
        with self._loading:
            session, self._session = self._session, None
        if session is not None:
            session.close()
