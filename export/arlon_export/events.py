"""What an export reports while it runs: its present task, the weights it has read, the graphs that are done."""

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
    """Graphs that are done, this one included."""
    total: int
    """Graphs of the whole export."""
    onnx_bytes: int
    agreement: Agreement | None
    """``None`` if an earlier, interrupted export finished the graph."""


@dataclass(frozen=True, kw_only=True)
class ExportProgress:
    """The export began a task, or read more weights."""

    task: str
    """E.g. ``tracing dit.fp16``."""
    bytes_done: int
    """Bytes of weights read so far; each tensor counts once."""
    bytes_total: int


class Reporter:
    """Counts graphs and bytes, and calls the listeners with each event."""

    def __init__(
        self, graphs: int, total_bytes: int, on_graph: Callable[[GraphDone], None],
        on_progress: Callable[[ExportProgress], None],
    ) -> None:
        self._graphs, self._total_bytes = graphs, total_bytes
        self._on_graph, self._on_progress = on_graph, on_progress
        self._graphs_done = self._bytes_done = 0
        self._task = ""

    def begin(self, task: str) -> None:
        """Report that the export now works on ``task``."""
        self._task = task
        self.count_bytes(0)

    def count_bytes(self, count: int) -> None:
        """Report that ``count`` more bytes of weights were read."""
        self._bytes_done += count
        self._on_progress(
            ExportProgress(task=self._task, bytes_done=self._bytes_done, bytes_total=self._total_bytes)
        )

    def graph_done(self, graph: str, precision: str, onnx_bytes: int, agreement: Agreement | None) -> None:
        """Report that a graph is exported and checked."""
        self._graphs_done += 1
        self._on_graph(GraphDone(
            graph=graph, precision=precision, done=self._graphs_done, total=self._graphs, onnx_bytes=onnx_bytes,
            agreement=agreement,
        ))
