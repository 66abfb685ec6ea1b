"""TensorRT and TensorRT for RTX as a backend: one code path, held and aliased buffers, runs that recur as CUDA graphs.

Memory and streams come from `arlon_rt.backends.trt.cuda`, contexts from `arlon_rt.backends.trt.context`. None of it has
been executed on a GPU yet: the tests run these files on a stand-in whose engines are ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from arlon_rt.backends.session import Array, FeedCheck, Handle, numpy_dtype
from arlon_rt.backends.trt.context import Context, Lane, Profile
from arlon_rt.backends.trt.cuda import ALIGNED, CudaStream, Memory, Stream
from arlon_rt.backends.trt.library import check_contract, import_tensorrt, new_log, stream_weights
from arlon_rt.bundle import Flavour
from arlon_rt.errors import BackendError
from arlon_rt.graphs import ALL_LANES, FLOAT_DTYPE, LANE_OF, GraphSpec, TensorSpec, signature


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


class Gpu:
    """One GPU with a TensorRT, for the sessions of one pipeline."""

    def __init__(self, trt: ModuleType, new_stream: Callable[[], Stream], *, graphs: bool = True) -> None:
        """``graphs``: whether runs that recur are captured as CUDA graphs."""
        self._trt, self._new_stream, self._graphs = trt, new_stream, graphs
        self._lanes: dict[str, Lane] = {}
        self.one_lane = False
        """Set before the first session: whether all lanes share a stream and activations, and so take turns."""
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
        lane = self._lane(LANE_OF[spec.network])
        self._log.errors.clear()
        with lane.turn():   # whichever thread opens it
            engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError(f"{spec.name}: the engine does not load: {self.complaint()}")
        stream_weights(engine, spec.name, len(plan), weights_on_device)
        check_contract(self._trt, engine, spec, precision)
        return TrtSession(self._trt, engine, lane, spec, precision, self.complaint)

    def trim(self) -> None:
        """Give memory that was freed back to the GPU, for engines that are loaded next."""
        for lane in self._lanes.values():
            with lane.turn():
                lane.stream.trim()

    def _lane(self, name: str) -> Lane:
        name = ALL_LANES if self.one_lane else name
        if name not in self._lanes:
            self._lanes[name] = Lane(self._new_stream(), self._graphs)
        return self._lanes[name]

    def complaint(self) -> str:
        """What TensorRT logged as errors since it was last asked."""
        said, self._log.errors[:] = "; ".join(self._log.errors), []
        return " ".join(said.split())[:400] or "it gives no reason"


class TrtSession:
    """One graph's engine; implements `Session` and `Looping` of `arlon_rt.backends.session`."""

    def __init__(
        self, trt: ModuleType, engine: Any, lane: Lane, spec: GraphSpec, precision: str, complaint: Callable[[], str]
    ) -> None:
        self._trt, self._engine, self._lane, self._spec = trt, engine, lane, spec
        self._complaint = complaint
        self._check = FeedCheck(spec, precision)
        told = signature((*spec.inputs, *spec.outputs), precision)
        self._dtypes = {name: numpy_dtype(dtype) for name, dtype, _ in told}
        self._float_dtype = numpy_dtype(FLOAT_DTYPE[precision])
        self._profiles = [Profile.of(engine, index, spec) for index in range(engine.num_optimization_profiles)]
        self._contexts: dict[int, Context] = {}
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
            self._run(context, inputs, outputs)
            return {name: handle if name in hold else handle.numpy() for name, handle in outputs.items()}

    def loop(
        self, feed: Mapping[str, Array | Handle], each: Mapping[str, Array], carry: Mapping[str, str],
        hold: Collection[str] = (),
    ) -> dict[str, Array | Handle]:
        """Run the engine many times; see `arlon_rt.backends.session.Looping.loop`.

        What differs from run to run goes to the device at once. Before each run a copy there brings its part to where
        the run reads it, so that all runs have the same addresses, and are one CUDA graph.
        """
        if self._engine is None:
            raise BackendError(f"{self._spec.name}: the session is closed")
        if held := [name for name in carry if not isinstance(feed[name], np.ndarray)]:
            raise BackendError(f"{self._spec.name}: {', '.join(held)} would be overwritten; an array is expected")
        runs = len(next(iter(each.values())))
        self._check({**feed, **{name: array[0] for name, array in each.items()}}, hold)
        with self._lane.turn():
            parts, now, records = self._records(each, runs)
            inputs = {t.name: parts.get(t.name) or self._input(t, feed[t.name]) for t in self._spec.inputs}
            context = self._context({name: handle.shape for name, handle in inputs.items()})
            outputs = {t.name: self._output(t, context, inputs, t.name in hold) for t in self._spec.outputs}
            made = {
                name: self._keep(f"{name} of all runs", runs * _bytes(handle))
                for name, handle in outputs.items() if name not in hold
            }
            for run in range(runs):
                self._lane.stream.copy(now, records, now.size, source_at=run * now.size)
                self._run(context, inputs, outputs)
                for name, memory in made.items():
                    size = _bytes(outputs[name])
                    self._lane.stream.copy(memory, outputs[name].memory, size, target_at=run * size)
                for name, output in carry.items():
                    self._lane.stream.copy(inputs[name].memory, outputs[output].memory, _bytes(inputs[name]))
            return {
                name: handle if name in hold
                else TrtHandle(made[name], (runs, *handle.shape), handle.dtype, self._lane).numpy()
                for name, handle in outputs.items()
            }

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
            for context in self._contexts.values():
                context.forget()
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
        return value

    def _run(self, context: Context, inputs: Mapping[str, TrtHandle], outputs: Mapping[str, TrtHandle]) -> None:
        """Enqueue one run, in order with the streams of other lanes whose handles it reads."""
        others = {id(h.lane): h.lane.stream for h in inputs.values() if h.lane is not self._lane}.values()
        for stream in others:
            self._lane.stream.after(stream)   # what is still to be written there
        context.run({name: handle.memory for name, handle in {**inputs, **outputs}.items()})
        for stream in others:
            stream.after(self._lane.stream)   # their memory is freed in the order of their own stream

    def _records(self, each: Mapping[str, Array], runs: int) -> tuple[dict[str, TrtHandle], Memory, Memory]:
        """What differs from run to run: the inputs of the run under way, their memory, and all runs' one by one."""
        arrays = {name: self._converted(name, array).reshape(runs, -1).view(np.uint8) for name, array in each.items()}
        sizes = {name: -(-array.shape[1] // ALIGNED) * ALIGNED for name, array in arrays.items()}
        starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist(), strict=False))
        host = np.zeros((runs, sum(sizes.values())), np.uint8)
        for name, array in arrays.items():
            host[:, starts[name] : starts[name] + array.shape[1]] = array
        now, records = self._keep("this run", host.shape[1]), self._keep("all runs", host.nbytes)
        self._lane.stream.upload(records, host)
        parts = {
            name: TrtHandle(
                _Part(now, starts[name], sizes[name]), each[name].shape[1:], self._dtypes[name], self._lane
            )
            for name in each
        }
        return parts, now, records

    def _converted(self, name: str, array: Array) -> Array:
        """An array as the engine takes it."""
        with np.errstate(over="raise"):
            try:
                return np.ascontiguousarray(array, self._dtypes[name])
            except FloatingPointError:
                raise BackendError(
                    f"{self._spec.name}: {name} has values too large for {self._dtypes[name]}; use fp32"
                ) from None

    def _uploaded(self, name: str, array: Array, allocate: Callable[[int], Memory]) -> TrtHandle:
        converted = self._converted(name, array)
        memory = allocate(converted.nbytes)
        self._lane.stream.upload(memory, converted)
        return TrtHandle(memory, converted.shape, converted.dtype, self._lane)

    def _output(
        self, tensor: TensorSpec, context: Context, inputs: Mapping[str, TrtHandle], held: bool
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

    def _context(self, shapes: Mapping[str, tuple[int, ...]]) -> Context:
        """The execution context of the profile for these shapes, set to them."""
        profile = next((p for p in sorted(self._profiles) if p.fits(shapes)), None)
        if profile is None:
            told = ", ".join(f"{name} {shape}" for name, shape in shapes.items() if name in self._profiles[0].ranges)
            raise BackendError(
                f"{self._spec.name}: no profile of the engine takes {told}; build one with `arlon-rt build --profile`"
            )
        if profile.index not in self._contexts:
            self._contexts[profile.index] = Context(
                self._trt, self._engine, profile.index, self._lane, self._spec.name, self._complaint
            )
        context = self._contexts[profile.index]
        context.shape({name: shapes[name] for name in profile.ranges})
        return context


class _Part:
    """A part of other memory; implements `Memory`."""

    def __init__(self, whole: Memory, start: int, size: int) -> None:
        self._whole, self.address, self.size = whole, whole.address + start, size


def _bytes(handle: TrtHandle) -> int:
    return math.prod(handle.shape) * handle.dtype.itemsize
