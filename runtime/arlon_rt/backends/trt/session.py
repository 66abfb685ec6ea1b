"""TensorRT and TensorRT for RTX as a backend: one code path, with held and aliased buffers and CUDA graphs.

Memory and streams come from `arlon_rt.backends.trt.cuda`, contexts from `arlon_rt.backends.trt.context`. None of this
has been executed on a GPU yet: the tests run these files on a stand-in whose engines are ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from arlon_rt.backends.session import Array, Front, Handle
from arlon_rt.backends.trt.context import Context, Lane, Profile
from arlon_rt.backends.trt.cuda import ALIGNED, CudaStream, Memory, Stream
from arlon_rt.backends.trt.library import check_contract, import_tensorrt, new_log, stream_weights
from arlon_rt.bundle import Flavour
from arlon_rt.errors import BackendError
from arlon_rt.graphs import ALL_LANES, LANE_OF, GraphSpec, TensorSpec


class TrtHandle:
    """A tensor on the GPU, written by work on ``lane``; implements `arlon_rt.backends.session.Handle`."""

    def __init__(self, memory: Memory, shape: tuple[int, ...], dtype: np.dtype[Any], lane: Lane) -> None:
        self.memory, self.shape, self.dtype, self.lane, self.device = memory, shape, dtype, lane, lane.device

    def numpy(self) -> Array:
        array = np.empty(self.shape, self.dtype)
        with self.lane.turn():
            self.lane.stream.download(self.memory, array)
        return array


class Gpu:
    """One GPU with a TensorRT, for the sessions of one pipeline."""

    def __init__(
        self, trt: ModuleType, new_stream: Callable[[], Stream], *, graphs: bool = True, device: str = "cuda"
    ) -> None:
        """``graphs``: whether runs that recur are captured as CUDA graphs."""
        self._trt, self._new_stream, self._graphs, self._device = trt, new_stream, graphs, device
        self._lanes: dict[str, Lane] = {}
        self.one_lane = False
        """Whether all lanes share a stream and activations, and so take turns; set before the first session."""
        self._log = new_log(trt)
        self._runtime = trt.Runtime(self._log)

    @classmethod
    def open(cls, flavour: Flavour, number: int) -> Gpu:
        """GPU ``number`` with the TensorRT of this flavour."""
        return cls(import_tensorrt(flavour), lambda: CudaStream.on(number), device=f"cuda:{number}")

    def session(
        self, plan: bytes, spec: GraphSpec, precision: str, *, weights_on_device: int | None = None
    ) -> TrtSession:
        """The session of an engine that TensorRT serialised to ``plan``.

        Args:
            weights_on_device: bytes of its weights that stay on the GPU, the others are streamed; ``None``: all.

        Raises:
            BackendError: TensorRT refuses the engine.
            BundleError: the engine does not fit the contract of this graph.
        """
        name = ALL_LANES if self.one_lane else LANE_OF[spec.network]
        if name not in self._lanes:
            self._lanes[name] = Lane(self._new_stream(), self._graphs, self._device)
        lane = self._lanes[name]
        self._log.errors.clear()
        with lane.turn():   # whichever thread opens it
            engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError(f"{spec.name}: the engine does not load: {self.complaint()}")
        stream_weights(engine, spec.name, len(plan), weights_on_device)
        check_contract(self._trt, engine, spec, precision)
        return TrtSession(self._trt, engine, lane, spec, precision, self.complaint)

    def trim(self) -> None:
        """Return freed memory to the GPU, for engines that are loaded next."""
        for lane in self._lanes.values():
            with lane.turn():
                lane.stream.trim()

    def complaint(self) -> str:
        """The errors that TensorRT logged since the last call."""
        said, self._log.errors[:] = "; ".join(self._log.errors), []
        return " ".join(said.split())[:400] or "it gives no reason"


class TrtSession:
    """One graph's engine; implements `Session` and `Looping` of `arlon_rt.backends.session`."""

    def __init__(
        self, trt: ModuleType, engine: Any, lane: Lane, spec: GraphSpec, precision: str, complaint: Callable[[], str]
    ) -> None:
        self._trt, self._engine, self._lane, self._complaint = trt, engine, lane, complaint
        self._front = Front(spec, precision, TrtHandle, lane.device)
        self.spec, self.float_dtype = spec, self._front.float_dtype
        self._profiles = sorted(Profile.of(engine, index, spec) for index in range(engine.num_optimization_profiles))
        self._contexts: dict[int, Context] = {}
        lane.enter()
        self._kept: dict[str, Memory] = {}
        """Memory of inputs that come from the host, and of outputs that go to the host."""

    @property
    def activations(self) -> tuple[int, ...]:
        """The most bytes of activations that each profile asks for."""
        profiles = range(self._engine.num_optimization_profiles)
        return tuple(self._engine.get_device_memory_size_for_profile_v2(i) for i in profiles)

    def run(self, feed: Mapping[str, Array | Handle], hold: Collection[str] = ()) -> dict[str, Array | Handle]:
        self._front.opened(self._engine)
        handles = self._front.handles(feed, hold)
        with self._lane.turn():
            context, inputs, outputs = self._placed(feed, handles, hold)
            self._run(context, inputs, outputs)
            return {name: handle if name in hold else handle.numpy() for name, handle in outputs.items()}

    def loop(
        self, feed: Mapping[str, Array | Handle], each: Mapping[str, Array], carry: Mapping[str, str],
        hold: Collection[str] = (),
    ) -> dict[str, Array | Handle]:
        # The inputs of all runs go to the device at once. Before each run a copy on the device brings its inputs to the
        # addresses that every run reads, so that all runs are one CUDA graph.
        self._front.opened(self._engine)
        if held := [name for name in carry if not isinstance(feed[name], np.ndarray)]:
            raise BackendError(f"{self.spec.name}: {', '.join(held)} would be overwritten; an array is expected")
        runs = len(next(iter(each.values())))
        handles = self._front.handles({**feed, **{name: array[0] for name, array in each.items()}}, hold)
        with self._lane.turn():
            parts, now, records = self._records(each, runs)
            context, inputs, outputs = self._placed(feed, {**handles, **parts}, hold)
            collected = {
                name: self._keep(f"{name} of all runs", runs * _bytes(handle))
                for name, handle in outputs.items() if name not in hold
            }
            for run in range(runs):
                self._lane.stream.copy(now, records, now.size, source_at=run * now.size)
                self._run(context, inputs, outputs)
                for name, memory in collected.items():
                    size = _bytes(outputs[name])
                    self._lane.stream.copy(memory, outputs[name].memory, size, target_at=run * size)
                for name, output in carry.items():
                    self._lane.stream.copy(inputs[name].memory, outputs[output].memory, _bytes(inputs[name]))
            return {
                name: handle if name in hold
                else TrtHandle(collected[name], (runs, *handle.shape), handle.dtype, self._lane).numpy()
                for name, handle in outputs.items()
            }

    def upload(self, name: str, array: Array) -> TrtHandle:
        self._front.opened(self._engine)
        converted = self._front.uploaded(name, array)
        with self._lane.turn():
            return self._copied(converted, self._lane.stream.allocate)

    def close(self) -> None:
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

    def _placed(
        self, feed: Mapping[str, Array | Handle], handles: Mapping[str, TrtHandle], hold: Collection[str]
    ) -> tuple[Context, dict[str, TrtHandle], dict[str, TrtHandle]]:
        """The context of a run, its inputs and its outputs. Arrays of the feed are copied to the device."""
        allocate = self._lane.stream.allocate

        def copied(name: str) -> TrtHandle:
            array = self._front.converted(name, feed[name])  # type: ignore[arg-type]  # it is no handle
            return self._copied(array, allocate if name in self._front.aliased else partial(self._keep, name))

        def output(tensor: TensorSpec) -> TrtHandle:
            name, shape, dtype = tensor.name, context.shape_of(tensor.name), self._front.dtypes[tensor.name]
            size = math.prod(shape) * dtype.itemsize
            return TrtHandle(allocate(size) if name in hold else self._keep(name, size), shape, dtype, self._lane)

        inputs = {t.name: handles.get(t.name) or copied(t.name) for t in self.spec.inputs}
        context = self._context({name: handle.shape for name, handle in inputs.items()})
        return context, inputs, {t.name: inputs[t.alias] if t.alias else output(t) for t in self.spec.outputs}

    def _run(self, context: Context, inputs: Mapping[str, TrtHandle], outputs: Mapping[str, TrtHandle]) -> None:
        """Enqueue one run, in order with the streams of other lanes whose handles it reads."""
        others = {id(h.lane): h.lane.stream for h in inputs.values() if h.lane is not self._lane}.values()
        for stream in others:
            self._lane.stream.after(stream)   # which may still have to write the handles
        context.run({name: handle.memory for name, handle in {**inputs, **outputs}.items()})
        for stream in others:
            stream.after(self._lane.stream)   # which frees the handles in its own order

    def _records(self, each: Mapping[str, Array], runs: int) -> tuple[dict[str, TrtHandle], Memory, Memory]:
        """The inputs that differ from run to run: of the current run, their memory, and the memory of all runs."""
        arrays = {n: self._front.converted(n, array).reshape(runs, -1).view(np.uint8) for n, array in each.items()}
        sizes = {name: -(-array.shape[1] // ALIGNED) * ALIGNED for name, array in arrays.items()}
        starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist(), strict=False))
        host = np.zeros((runs, sum(sizes.values())), np.uint8)
        for name, array in arrays.items():
            host[:, starts[name] : starts[name] + array.shape[1]] = array
        now, records = self._keep("this run", host.shape[1]), self._keep("all runs", host.nbytes)
        self._lane.stream.upload(records, host)
        parts = {
            name: TrtHandle(
                _Part(now, starts[name], sizes[name]), each[name].shape[1:], self._front.dtypes[name], self._lane
            )
            for name in each
        }
        return parts, now, records

    def _copied(self, array: Array, allocate: Callable[[int], Memory]) -> TrtHandle:
        memory = allocate(array.nbytes)
        self._lane.stream.upload(memory, array)
        return TrtHandle(memory, array.shape, array.dtype, self._lane)

    def _keep(self, name: str, size: int) -> Memory:
        memory = self._kept.get(name)
        if memory is None or memory.size < size:
            memory = self._kept[name] = self._lane.stream.allocate(size)
        return memory

    def _context(self, shapes: Mapping[str, tuple[int, ...]]) -> Context:
        """The execution context of the profile for these shapes, set to them."""
        profile = next((p for p in self._profiles if p.fits(shapes)), None)
        if profile is None:
            fed = ", ".join(f"{name} {shape}" for name, shape in shapes.items() if name in self._profiles[0].ranges)
            raise BackendError(
                f"{self.spec.name}: no profile of the engine takes {fed}; build one with `arlon-rt build --profile`"
            )
        if profile.index not in self._contexts:
            self._contexts[profile.index] = Context(
                self._trt, self._engine, profile.index, self._lane, self.spec.name, self._complaint
            )
        context = self._contexts[profile.index]
        context.shape({name: shapes[name] for name in profile.ranges})
        return context


class _Part:
    """A part of another `Memory`; implements `Memory`."""

    def __init__(self, whole: Memory, start: int, size: int) -> None:
        self._whole, self.address, self.size = whole, whole.address + start, size


def _bytes(handle: TrtHandle) -> int:
    return math.prod(handle.shape) * handle.dtype.itemsize
