"""A stand-in for a GPU and its TensorRT: memory is numpy's, engines are ONNX Runtime, work is done late.

Nothing runs before a `wait` or a `download`. Memory is overwritten when it is freed, and activations are between two
runs. Memory that is used after it was freed is an error, so that the backend's mistakes show.
"""

from __future__ import annotations

import enum
import itertools
import json
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from arlon_rt.backends import open_session
from arlon_rt.backends.session import numpy_dtype
from arlon_rt.backends.trt.library import TYPES
from arlon_rt.bundle import Bundle
from arlon_rt.errors import BackendError
from arlon_rt.graphs import GraphSpec, signature

ALIGNED = 256
JUNK = 0xA5


class Memory:
    """Device memory in numpy's."""

    def __init__(self, size: int, stream: Stream) -> None:
        self._whole = np.full(size + ALIGNED, JUNK, np.uint8)
        self.size, self._stream = size, stream
        self.address = -(-self._whole.ctypes.data // ALIGNED) * ALIGNED

    @property
    def bytes(self) -> np.ndarray:
        offset = self.address - self._whole.ctypes.data
        return self._whole[offset : offset + self.size]

    def __del__(self) -> None:
        whole, gpu, address = self._whole, self._stream.gpu, self.address

        def free() -> None:
            whole[:] = JUNK
            gpu.memory.pop(address, None)

        gpu.take(-self.size)
        self._stream.work.append(free)


class Stream:
    """Work in one order, none of it done before somebody waits."""

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu, self.work, self.done = gpu, deque(), 0
        self.handle = next(gpu.numbers)
        gpu.streams[self.handle] = self

    def allocate(self, size: int) -> Memory:
        memory = Memory(max(size, 1), self)
        self.gpu.memory[memory.address] = memory.bytes
        self.gpu.take(memory.size)
        return memory

    def upload(self, memory: Memory, array: np.ndarray) -> None:
        content, target = array.tobytes(), memory.bytes
        assert len(content) <= memory.size
        self.work.append(lambda: target[: len(content)].__setitem__(slice(None), np.frombuffer(content, np.uint8)))

    def download(self, memory: Memory, array: np.ndarray) -> None:
        self.gpu.downloads += 1
        self.wait()
        array.reshape(-1).view(np.uint8)[:] = memory.bytes[: array.nbytes]

    def copy(self, target: Any, source: Any, size: int, *, target_at: int = 0, source_at: int = 0) -> None:
        assert target_at + size <= target.size
        assert source_at + size <= source.size
        into, out = self.gpu.at(target.address + target_at, size), self.gpu.at(source.address + source_at, size)
        self.work.append(lambda: into.__setitem__(slice(None), out))

    def after(self, other: Stream) -> None:
        count = other.done + len(other.work)
        self.work.append(lambda: other.wait(until=count))

    def capture(self, enqueue: Callable[[int], bool]) -> Callable[[], None]:
        aside = Stream(self.gpu)
        enqueued = not self.gpu.refuses_graphs and enqueue(aside.handle)
        del self.gpu.streams[aside.handle]   # with what its work refers to
        if not enqueued:
            raise BackendError("a run cannot be captured: operation not permitted when stream is capturing")
        self.gpu.captured += 1
        return Graph(self, list(aside.work), self.gpu.ran.pop()).launch

    def wait(self, until: int | None = None) -> None:
        with self.gpu.working:
            until = self.done + len(self.work) if until is None else until
            while self.done < until:
                step = self.work.popleft()
                step()
                self.done += 1

    def trim(self) -> None:
        self.wait()
        self.gpu.trims.append(self.gpu.live)

    def make_current(self) -> None:
        self.gpu.threads.add(threading.get_ident())


class Graph:
    """Work that was captured, with the addresses it had then."""

    def __init__(self, stream: Stream, work: list[Callable[[], None]], ran: tuple[str, int, int]) -> None:
        self._stream, self._work, self._ran = stream, work, ran

    def launch(self) -> None:
        gpu, (graph, _, profile) = self._stream.gpu, self._ran
        self._stream.work.extend(self._work)
        gpu.ran.append((graph, self._stream.handle, profile))
        gpu.launched += 1


class FakeGpu:
    """The GPU, as tests look at it."""

    def __init__(self) -> None:
        self.numbers = itertools.count(1000)
        self.streams: dict[int, Stream] = {}
        self.memory: dict[int, np.ndarray] = {}
        self.live = self.most = 0
        """Bytes that are taken, weights of engines among them, now and at most."""
        self.threads: set[int] = set()
        self.working, self.counting = threading.RLock(), threading.RLock()
        self.captured = self.launched = 0
        """Numbers of CUDA graphs that were captured, and of their launches."""
        self.refuses_graphs = False
        self.downloads = 0
        self.ran: list[tuple[str, int, int]] = []
        """(graph, stream, profile) of each execution."""
        self.trims: list[int] = []
        """Bytes in use at each return of freed memory to the GPU."""
        self.loaded: list[str] = []
        """Graph of each engine that was loaded, in order."""
        self.streaming: dict[str, int] = {}
        """Graph -> streamable bytes that stay on the device, where the backend set them."""

    def take(self, size: int) -> None:
        """Count bytes that are taken, or, if negative, freed."""
        with self.counting:
            self.live += size
            self.most = max(self.most, self.live)

    def stream(self) -> Stream:
        return Stream(self)

    def at(self, address: int, size: int) -> np.ndarray:
        """Memory from an address on, which may lie inside what was allocated."""
        for start, memory in list(self.memory.items()):
            if start <= address and address + size <= start + memory.size:
                return memory[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address} are not allocated")

    def settle(self) -> None:
        """Let all streams do what they have left."""
        for stream in self.streams.values():
            stream.wait()


class DataType(enum.Enum):
    FLOAT, HALF, BF16, INT64, BOOL, UINT8 = range(6)


class TensorRT:
    """The parts of the module that the backend uses, for one `FakeGpu`."""

    class ILogger:
        class Severity(enum.IntEnum):
            INTERNAL_ERROR, ERROR, WARNING = range(3)

        def __init__(self) -> None: ...

    class ExecutionContextAllocationStrategy(enum.Enum):
        STATIC, USER_MANAGED = range(2)

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu

    def Runtime(self, log: Any) -> Runtime:
        return Runtime(self.gpu, log)


def plan_of(bundle: Path, graph: str, precision: str, weights: int = 0, **changed: Any) -> bytes:
    """A serialised engine of a graph for the fake runtime, of ``weights`` bytes or as many as it needs."""
    stated = {"bundle": str(bundle), "graph": graph, "precision": precision, **changed}
    return json.dumps(stated).encode().ljust(weights)


class Runtime:
    def __init__(self, gpu: FakeGpu, log: Any) -> None:
        self.gpu, self.log = gpu, log

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        try:
            return Engine(self.gpu, self.log, len(plan), **json.loads(plan))
        except ValueError:
            self.log.log(TensorRT.ILogger.Severity.WARNING, "just a warning")
            self.log.log(TensorRT.ILogger.Severity.ERROR, "magic tag does not match")
            return None


class Engine:
    """One graph; ``profiles`` narrow the axis ranges of graphs.py, ``tensors`` replace its inputs and outputs."""

    def __init__(
        self, gpu: FakeGpu, log: Any, weights: int, bundle: str, graph: str, precision: str,
        profiles: list[dict[str, list[int]]] | None = None, lost: str = "", copied: str = "", wide: str = "",
        failing: bool = False, streaming: bool = False, tensors: list[tuple[str, str, list[int | str]]] | None = None,
    ) -> None:
        self.streamable_weights_size = weights if streaming else 0
        self._contexts, self._streamed, self._weights = 0, 0, weights
        opened = Bundle.open(Path(bundle))
        self.gpu, self.log, self.failing, self._copied = gpu, log, failing, copied
        runs = "fp32" if precision == "bf16" else precision   # which ONNX Runtime does not run on a CPU
        self.session: Any = open_session(opened, graph, precision=runs, threads=1)
        self.spec: GraphSpec = opened.spec(graph)
        self._profiles = profiles or [{}]
        stated = tensors or signature((*self.spec.inputs, *self.spec.outputs), precision)
        self.tensors = {n: ("float32" if n == wide else d, a) for n, d, a in stated if n != lost}
        gpu.take(weights)
        gpu.loaded.append(graph)

    def __del__(self) -> None:
        if hasattr(self, "tensors"):
            self.gpu.take(self._streamed - self._weights)

    @property
    def weight_streaming_budget_v2(self) -> int:
        """Bytes of the streamable weights that stay on the device."""
        return self.streamable_weights_size - self._streamed

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, size: int) -> None:
        assert not self._contexts, "TensorRT takes it before there is a context"
        assert 0 <= size <= self.streamable_weights_size
        streamed = self.streamable_weights_size - size
        self.gpu.take(self._streamed - streamed)
        self._streamed = streamed
        self.gpu.streaming[self.spec.name] = size

    num_optimization_profiles = property(lambda self: len(self._profiles))
    num_io_tensors = property(lambda self: len(self.tensors))

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[next(ours for ours, dtype in TYPES.items() if dtype == self.tensors[name][0])]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(axis if isinstance(axis, int) else -1 for axis in self.tensors[name][1])

    def get_aliased_input_tensor(self, name: str) -> str | None:
        alias = next(t.alias for t in self.spec.outputs if t.name == name)
        return None if name == self._copied else alias

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        def size(axis: int | str, which: int) -> int:
            if isinstance(axis, int):
                return axis
            usual = self.spec.axis(axis)
            return self._profiles[index].get(axis, [usual.min, usual.opt, usual.max])[which]

        return [tuple(size(axis, which) for axis in self.tensors[name][1]) for which in range(3)]

    def get_device_memory_size_for_profile_v2(self, index: int) -> int:
        shapes = [self.get_tensor_profile_shape(t.name, index)[2] for t in self.spec.inputs]
        return 64 * sum(int(np.prod(shape)) for shape in shapes)

    def create_execution_context(self, strategy: Any) -> Context:
        self._contexts += 1
        assert strategy is TensorRT.ExecutionContextAllocationStrategy.USER_MANAGED
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.shapes, self.addresses = engine, {}, {}
        self.profile: int | None = None
        self.activations = 0, 0

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return index < self.engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.get_tensor_profile_shape(name, self.profile)
        self.shapes[name] = shape
        return all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True))

    def update_device_memory_size_for_shapes(self) -> int:
        assert set(self.shapes) == {t.name for t in self.engine.spec.inputs}
        self.needed = 64 * sum(int(np.prod(shape)) for shape in self.shapes.values())
        return self.needed

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % ALIGNED == 0
        assert size >= self.needed
        self.activations = address, size

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes: dict[str, int] = {}
        for tensor in self.engine.spec.inputs:
            sizes |= {a: n for a, n in zip(tensor.axes, self.shapes[tensor.name], strict=True) if isinstance(a, str)}
        tensor = next(t for t in self.engine.spec.outputs if t.name == name)
        known = {**sizes, **self._derived(sizes)}
        return tuple(axis if isinstance(axis, int) else known.get(axis, -1) for axis in tensor.axes)

    def _derived(self, sizes: dict[str, int]) -> dict[str, int]:
        """Sizes of output axes that no input has, from a run on zeros."""
        out = {a for t in self.engine.spec.outputs for a in t.axes if isinstance(a, str)} - set(sizes)
        if not out:
            return {}
        feed = {
            t.name: np.zeros(self.shapes[t.name], numpy_dtype(self.engine.tensors[t.name][0]))
            for t in self.engine.spec.inputs
        }
        made = self.engine.session.run(feed)
        return {a: n for t in self.engine.spec.outputs
                for a, n in zip(t.axes, made[t.name].shape, strict=True) if a in out}

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        self.engine.gpu.at(address, 1)
        return address % ALIGNED == 0

    def execute_async_v3(self, stream: int) -> bool:
        engine = self.engine
        if engine.failing:
            engine.log.log(TensorRT.ILogger.Severity.ERROR, "an illegal memory access")
            return False
        engine.gpu.ran.append((engine.spec.name, stream, self.profile))
        addresses, shapes, activations = dict(self.addresses), dict(self.shapes), self.activations[0]
        engine.gpu.streams[stream].work.append(lambda: _execute(engine, addresses, shapes, activations))
        return True


def _execute(
    engine: Engine, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]], activations: int
) -> None:
    gpu = engine.gpu
    gpu.memory[activations][:] = JUNK
    feed = {}
    for tensor in engine.spec.inputs:
        dtype = numpy_dtype(engine.tensors[tensor.name][0])
        size = int(np.prod(shapes[tensor.name])) * dtype.itemsize
        value = gpu.at(addresses[tensor.name], size).view(dtype).reshape(shapes[tensor.name]).copy()
        feed[tensor.name] = value.astype(np.float32) if dtype.name == "bfloat16" else value
    for name, value in engine.session.run(feed).items():
        content = np.ascontiguousarray(value, numpy_dtype(engine.tensors[name][0])).reshape(-1).view(np.uint8)
        gpu.at(addresses[name], content.size)[:] = content
