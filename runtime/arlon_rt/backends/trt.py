"""TensorRT and TensorRT for RTX as a backend: one code path, plain execution with held and aliased buffers.

Memory and streams come from `arlon_rt.backends.cuda`. Nothing here has been executed on a GPU yet: the tests run this
file on a stand-in whose engines are ONNX Runtime.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from arlon_rt.backends.cuda import CudaStream, Memory, Stream
from arlon_rt.backends.session import Array, FeedCheck, Handle
from arlon_rt.backends.trt_library import check_contract, import_tensorrt, new_log, stream_weights
from arlon_rt.engine_file import Flavour
from arlon_rt.errors import BackendError
from arlon_rt.graphs import GraphSpec, TensorSpec
from arlon_rt.manifest import signature
from arlon_rt.memory_plan import STAGE_OF as STAGE_OF


class TrtHandle:
    """A tensor on the GPU, written by work on ``lane``."""

    def __init__(self, memory: Memory, shape: tuple[int, ...], dtype: np.dtype[Any], lane: Lane) -> None:
        self.memory, self.shape, self.dtype, self.lane = memory, shape, dtype, lane

    def numpy(self) -> Array:
        """A copy on the host."""
        array = np.empty(self.shape, self.dtype)
        with self.lane.turn():
            self.lane.stream.download(self.memory, array)
        return array


@dataclass
class Lane:
    """What the sessions of one stage share: a stream, memory for activations, and the turn to use them."""

    stream: Stream
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _activations: Memory | None = None
    _sessions: int = 0

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The calling thread's turn."""
        with self._lock:
            self.stream.make_current()
            yield

    def activations(self, size: int) -> Memory:
        """``size`` bytes or more that hold nothing between two runs."""
        if self._activations is None or self._activations.size < size:
            self._activations = None   # freed first, in the stream's order
            self._activations = self.stream.allocate(size)
        return self._activations

    def enter(self) -> None:
        """A session more."""
        self._sessions += 1

    def leave(self) -> None:
        """A session less; the last one takes the activations along."""
        self._sessions -= 1
        if not self._sessions:
            self._activations = None


class Gpu:
    """One GPU with a TensorRT, for the sessions of one pipeline."""

    def __init__(self, trt: ModuleType, new_stream: Callable[[], Stream]) -> None:
        self._trt, self._new_stream = trt, new_stream
        self._lanes: dict[str, Lane] = {}
        self._log = new_log(trt)
        self._runtime = trt.Runtime(self._log)

    @classmethod
    def open(cls, flavour: Flavour, number: int) -> Gpu:
        """GPU ``number`` with the TensorRT of this flavour."""
        return cls(import_tensorrt(flavour), lambda: CudaStream.on(number))

    def session(
        self, plan: bytes, spec: GraphSpec, precision: str, *, weights_on_device: int | None = None
    ) -> TrtSession:
        """Open an engine from what TensorRT serialised.

        Args:
            weights_on_device: bytes of its weights that stay there, the others are streamed; ``None``: all stay.

        Raises:
            BackendError: TensorRT refuses it.
            BundleError: it is no engine of this graph.
        """
        stage = STAGE_OF[spec.network]
        lane = self._lanes.setdefault(stage, Lane(self._new_stream()))
        self._log.errors.clear()
        with lane.turn():   # whichever thread opens it
            engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError(f"{spec.name}: the engine does not load: {self.complaint()}")
        stream_weights(engine, spec.name, len(plan), weights_on_device)
        check_contract(self._trt, engine, spec, precision)
        return TrtSession(self._trt, engine, lane, spec, precision, self.complaint)

    def complaint(self) -> str:
        """What TensorRT logged as errors since it was last asked."""
        said, self._log.errors[:] = "; ".join(self._log.errors), []
        return " ".join(said.split())[:400] or "it gives no reason"


class TrtSession:
    """One graph's engine; implements `arlon_rt.backends.session.Session`."""

    def __init__(
        self, trt: ModuleType, engine: Any, lane: Lane, spec: GraphSpec, precision: str, complaint: Callable[[], str]
    ) -> None:
        self._trt, self._engine, self._lane, self._spec = trt, engine, lane, spec
        self._complaint = complaint
        self._check = FeedCheck(spec, precision)
        self._dtypes = {name: np.dtype(dtype) for name, dtype, _ in signature((*spec.inputs, *spec.outputs), precision)}
        self._float_dtype = np.dtype({"fp32": "float32", "fp16": "float16"}[precision])
        self._profiles = [_Profile.of(engine, index, spec) for index in range(engine.num_optimization_profiles)]
        self._contexts: dict[int, _Context] = {}
        lane.enter()
        self._kept: dict[str, Memory] = {}
        """Memory of inputs that come from the host and of outputs that go there."""

    @property
    def spec(self) -> GraphSpec:
        return self._spec

    @property
    def float_dtype(self) -> np.dtype[Any]:
        return self._float_dtype

    @property
    def activations(self) -> tuple[int, ...]:
        """Bytes of activations that each profile asks for at most."""
        profiles = range(self._engine.num_optimization_profiles)
        return tuple(self._engine.get_device_memory_size_for_profile_v2(i) for i in profiles)

    def run(self, feed: Mapping[str, Array | Handle], hold: Collection[str] = ()) -> dict[str, Array | Handle]:
        """Run the engine once; see `arlon_rt.backends.session.Session.run`."""
        if self._engine is None:
            raise BackendError(f"{self._spec.name}: the session is closed")
        self._check(feed, hold)
        with self._lane.turn():
            inputs = {t.name: self._input(t, feed[t.name]) for t in self._spec.inputs}
            context = self._context({name: handle.shape for name, handle in inputs.items()})
            outputs = {t.name: self._output(t, context, inputs, t.name in hold) for t in self._spec.outputs}
            context.run(self._lane, {**inputs, **outputs})
            if any(handle.lane is not self._lane for handle in inputs.values()):
                self._lane.stream.wait()   # their memory is freed in the order of another stream
            return {name: handle if name in hold else handle.numpy() for name, handle in outputs.items()}

    def upload(self, name: str, array: Array) -> TrtHandle:
        """The input ``name`` as a handle; see `arlon_rt.backends.session.Session.upload`."""
        if name not in {t.name for t in self._spec.inputs}:
            raise BackendError(f"{self._spec.name}: cannot upload {name}; there is no such input")
        with self._lane.turn():
            return self._uploaded(name, array, self._lane.stream.allocate)

    def close(self) -> None:
        """Free the engine and its buffers. A second call does nothing; handles stay valid."""
        with self._lane.turn():
            if self._engine is None:
                return
            self._lane.stream.wait()
            self._contexts.clear()
            self._kept.clear()
            self._engine = None
            self._lane.leave()

    def _input(self, tensor: TensorSpec, value: Array | Handle) -> TrtHandle:
        if isinstance(value, np.ndarray):
            if any(t.alias == tensor.name for t in self._spec.outputs):
                return self._uploaded(tensor.name, value, self._lane.stream.allocate)
            return self._uploaded(tensor.name, value, lambda size: self._keep(tensor.name, size))
        if not isinstance(value, TrtHandle):
            raise BackendError(f"{self._spec.name}: {tensor.name} is a {type(value).__name__} of another backend")
        if value.lane is not self._lane:
            with value.lane.turn():
                value.lane.stream.wait()   # what another stage's stream has still to write
        return value

    def _uploaded(self, name: str, array: Array, allocate: Callable[[int], Memory]) -> TrtHandle:
        with np.errstate(over="raise"):
            try:
                converted = np.ascontiguousarray(array, self._dtypes[name])
            except FloatingPointError:
                raise BackendError(
                    f"{self._spec.name}: {name} has values too large for {self._dtypes[name]}; use fp32"
                ) from None
        memory = allocate(converted.nbytes)
        self._lane.stream.upload(memory, converted)
        return TrtHandle(memory, converted.shape, converted.dtype, self._lane)

    def _output(
        self, tensor: TensorSpec, context: _Context, inputs: Mapping[str, TrtHandle], held: bool
    ) -> TrtHandle:
        if tensor.alias:
            return inputs[tensor.alias]
        shape, dtype = context.shape_of(tensor.name), self._dtypes[tensor.name]
        size = math.prod(shape) * dtype.itemsize
        memory = self._lane.stream.allocate(size) if held else self._keep(tensor.name, size)
        return TrtHandle(memory, shape, dtype, self._lane)

    def _keep(self, name: str, size: int) -> Memory:
        memory = self._kept.get(name)
        if memory is None or memory.size < size:
            memory = self._kept[name] = self._lane.stream.allocate(size)
        return memory

    def _context(self, shapes: Mapping[str, tuple[int, ...]]) -> _Context:
        """The execution context of the profile for these shapes, set to them."""
        profile = next((p for p in sorted(self._profiles) if p.fits(shapes)), None)
        if profile is None:
            told = ", ".join(f"{name} {shape}" for name, shape in shapes.items() if name in self._profiles[0].ranges)
            raise BackendError(
                f"{self._spec.name}: no profile of the engine takes {told}; build one with `arlon-rt build --profile`"
            )
        if profile.index not in self._contexts:
            self._contexts[profile.index] = _Context(
                self._trt, self._engine, profile.index, self._lane, self._spec.name, self._complaint
            )
        context = self._contexts[profile.index]
        context.shape({name: shapes[name] for name in profile.ranges})
        return context


@dataclass(order=True)
class _Profile:
    """Which shapes one optimisation profile takes; the narrowest comes first."""

    volume: int
    index: int
    ranges: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(compare=False)
    """Input -> smallest and largest shape."""

    @classmethod
    def of(cls, engine: Any, index: int, spec: GraphSpec) -> _Profile:
        ranges = {}
        for tensor in spec.inputs:
            least, _, most = (tuple(shape) for shape in engine.get_tensor_profile_shape(tensor.name, index))
            ranges[tensor.name] = least, most
        return cls(sum(math.prod(most) for _, most in ranges.values()), index, ranges)

    def fits(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return all(
            a <= size <= b
            for name, (least, most) in self.ranges.items() for a, size, b in zip(least, shapes[name], most, strict=True)
        )


class _Context:
    """An execution context for one profile, with activations in the lane's memory."""

    def __init__(
        self, trt: ModuleType, engine: Any, profile: int, lane: Lane, graph: str, complaint: Callable[[], str]
    ) -> None:
        self._graph, self._complaint = graph, complaint
        self._context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._context is None or not self._context.set_optimization_profile_async(profile, lane.stream.handle):
            raise BackendError(f"{graph}: no execution context can be made: {complaint()}")
        lane.stream.wait()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._size = 0

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Set the inputs' shapes."""
        changed = {name: shape for name, shape in shapes.items() if self._shapes.get(name) != shape}
        for name, shape in changed.items():
            if not self._context.set_input_shape(name, shape):
                raise BackendError(f"{self._graph}: the engine does not take {name} of {shape}: {self._complaint()}")
        if changed:
            self._shapes |= changed
            self._size = self._context.update_device_memory_size_for_shapes()

    def shape_of(self, output: str) -> tuple[int, ...]:
        """The shape of an output for the shapes set."""
        found = tuple(self._context.get_tensor_shape(output))
        if min(found, default=0) < 0:
            raise BackendError(f"{self._graph}: the engine does not tell the shape of {output} before it runs")
        return found

    def run(self, lane: Lane, tensors: Mapping[str, TrtHandle]) -> None:
        """Enqueue one execution."""
        activations = lane.activations(self._size)
        self._context.set_device_memory(activations.address, activations.size)
        for name, handle in tensors.items():
            if not self._context.set_tensor_address(name, handle.memory.address):
                raise BackendError(f"{self._graph}: the engine does not take memory for {name}: {self._complaint()}")
        if not self._context.execute_async_v3(lane.stream.handle):
            raise BackendError(f"{self._graph}: the engine did not run: {self._complaint()}")
