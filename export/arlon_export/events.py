"""What an export reports while it runs: what it is at, how much it has read, which graphs are done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from arlon_export.onnx_graphs.check import Agreement


@dataclass(frozen=True, kw_only=True)
class GraphDone:
    """One graph of one precision set is exported and checked."""

    graph: str
    precision: str
    done: int
    total: int
    onnx_bytes: int
    agreement: Agreement | None
    """``None``: an interrupted export finished it before."""


@dataclass(frozen=True, kw_only=True)
class Working:
    """What the export is at now."""

    what: str
    """E.g. ``tracing dit.fp16``."""
    bytes_done: int
    """Weights read so far, of each tensor once."""
    bytes_total: int


class Watch:
    """Counts what is done and passes it on."""

    def __init__(
        self, graphs: int, total_bytes: int, on_graph: Callable[[GraphDone], None], on_work: Callable[[Working], None]
    ) -> None:
        self._graphs, self._total_bytes = graphs, total_bytes
        self._on_graph, self._on_work = on_graph, on_work
        self._done = self._bytes = 0
        self._what = ""

    def at(self, what: str) -> None:
        """From now on the export is at ``what``."""
        self._what = what
        self.read(0)

    def read(self, count: int) -> None:
        """``count`` more bytes of weights were read."""
        self._bytes += count
        self._on_work(Working(what=self._what, bytes_done=self._bytes, bytes_total=self._total_bytes))

    def graph(self, graph: str, precision: str, onnx_bytes: int, agreement: Agreement | None) -> None:
        """A graph is done."""
        self._done += 1
        self._on_graph(GraphDone(
            graph=graph, precision=precision, done=self._done, total=self._graphs, onnx_bytes=onnx_bytes,
            agreement=agreement,
        ))
