"""Profiles and execution contexts of one TensorRT engine, and the CUDA graphs of its runs."""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from arlon_rt.backends.trt.cuda import Memory, Stream
from arlon_rt.errors import BackendError
from arlon_rt.graphs import GraphSpec

MOST_GRAPHS = 8
"""The most CUDA graphs of a context: one for each set of addresses, which recur."""
MOST_SEEN = 64
"""The most sets of addresses that a context remembers to have run."""

_log = logging.getLogger(__name__)


@dataclass
class Lane:
    """What the sessions of one lane share: a stream, memory for activations, and the turn to use them."""

    stream: Stream
    graphs: bool = True
    """Whether runs that recur are captured as CUDA graphs."""
    device: str = "cuda"
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _activations: Memory | None = None
    _sessions: int = 0

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Give the lane to the calling thread, which may take it again, until the block ends."""
        with self._lock:
            self.stream.make_current()
            yield

    def activations(self, size: int) -> Memory:
        """Memory of ``size`` bytes or more, whose content is lost between two runs."""
        if self._activations is None or self._activations.size < size:
            self._activations = None   # freed before the larger memory is allocated, in the stream's order
            self._activations = self.stream.allocate(size)
        return self._activations

    def enter(self) -> None:
        """Count a session that opens."""
        self._sessions += 1

    def leave(self) -> None:
        """Count a session that closes; the last one frees the activations."""
        self._sessions -= 1
        if not self._sessions:
            self._activations = None


@dataclass(order=True)
class Profile:
    """The shapes that one optimisation profile takes; the narrowest profile sorts first."""

    volume: int
    index: int
    ranges: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(compare=False)
    """Input -> its smallest and its largest shape."""

    @classmethod
    def of(cls, engine: Any, index: int, spec: GraphSpec) -> Profile:
        """Profile ``index`` of an engine."""
        shapes = {t.name: engine.get_tensor_profile_shape(t.name, index) for t in spec.inputs}
        ranges = {name: (tuple(least), tuple(most)) for name, (least, _, most) in shapes.items()}
        return cls(sum(math.prod(most) for _, most in ranges.values()), index, ranges)

    def fits(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether the profile takes inputs of these shapes."""
        return all(
            a <= size <= b
            for name, (least, most) in self.ranges.items() for a, size, b in zip(least, shapes[name], most, strict=True)
        )


class Context:
    """An execution context for one profile, with activations in the lane's memory.

    The first run with certain shapes and addresses is enqueued, so that TensorRT can prepare for the shapes. The second
    is captured as a CUDA graph, which later runs launch. A graph holds its addresses, so it is launched only for the
    same ones. A change of shapes drops all graphs, because it may move memory of the context.
    """

    def __init__(
        self, trt: ModuleType, engine: Any, profile: int, lane: Lane, graph: str, complaint: Callable[[], str]
    ) -> None:
        self._graph, self._complaint, self._lane = graph, complaint, lane
        self._context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._context is None or not self._context.set_optimization_profile_async(profile, lane.stream.handle):
            raise BackendError(f"{graph}: no execution context can be created: {complaint()}")
        lane.stream.wait()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._size = 0
        self._seen: OrderedDict[tuple[int, ...], None] = OrderedDict()
        self.graphs: OrderedDict[tuple[int, ...], Callable[[], None]] = OrderedDict()
        """The set of addresses of each CUDA graph -> its launch."""
        self.refused = ""
        """Why runs of this context are not captured; empty if they are."""

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Set the shapes of the inputs."""
        changed = {name: shape for name, shape in shapes.items() if self._shapes.get(name) != shape}
        if not changed:
            return
        self.forget()
        for name, shape in changed.items():
            if not self._context.set_input_shape(name, shape):
                raise BackendError(f"{self._graph}: the engine does not take {name} of {shape}: {self._complaint()}")
            self._shapes[name] = shape
        self._size = self._context.update_device_memory_size_for_shapes()

    def shape_of(self, output: str) -> tuple[int, ...]:
        """The shape of an output, for the inputs' shapes."""
        found = tuple(self._context.get_tensor_shape(output))
        if min(found, default=0) < 0:
            raise BackendError(f"{self._graph}: the engine does not tell the shape of {output} before it runs")
        return found

    def run(self, tensors: Mapping[str, Memory]) -> None:
        """Enqueue one execution on the lane's stream."""
        activations = self._lane.activations(self._size)
        placed = (activations.address, *(memory.address for memory in tensors.values()))
        if placed not in self.graphs:
            self._context.set_device_memory(activations.address, activations.size)
            for name, memory in tensors.items():
                if not self._context.set_tensor_address(name, memory.address):
                    raise BackendError(
                        f"{self._graph}: the engine does not take memory for {name}: {self._complaint()}"
                    )
            if not (placed in self._seen and self._capture(placed)):
                self._seen[placed] = None
                if len(self._seen) > MOST_SEEN:
                    self._seen.popitem(last=False)
                if not self._context.execute_async_v3(self._lane.stream.handle):
                    raise BackendError(f"{self._graph}: the engine did not run: {self._complaint()}")
                return
        self.graphs.move_to_end(placed)
        self.graphs[placed]()

    def forget(self) -> None:
        """Drop all CUDA graphs, after those that were launched are done."""
        if self.graphs:
            self._lane.stream.wait()
        self.graphs.clear()
        self._seen.clear()

    def _capture(self, placed: tuple[int, ...]) -> bool:
        """Whether a run with these addresses was captured; a context that fails once warns and never tries again."""
        if self.refused or not self._lane.graphs:
            return False
        try:
            graph = self._lane.stream.capture(self._context.execute_async_v3)
        except BackendError as error:
            self.refused = f"{error}; {self._complaint()}"
            _log.warning("%s runs without CUDA graphs, which is slower: %s", self._graph, self.refused)
            return False
        if len(self.graphs) == MOST_GRAPHS:
            self._lane.stream.wait()
            self.graphs.popitem(last=False)
        self.graphs[placed] = graph
        return True
