"""The GPU as `arlon_rt.backends.trt.session` sees it: memory, copies and streams, through cuda-core.

This was written against cuda-core 1.2 and has not been executed yet; tests run the backend on a stand-in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np

from arlon_rt.backends.session import Array
from arlon_rt.errors import BackendError, MissingExtraError

ALIGNED = 256
"""Every address of an engine's tensors is a multiple of this many bytes."""
STAGED = 16
"""The most pinned buffers of a stream; each upload in progress has one."""
SMALLEST = 64 << 10
"""Least bytes of a pinned buffer, so that one serves most uploads."""


class Memory(Protocol):
    """Device memory. It is freed in the order of its stream, when the last reference is dropped."""

    @property
    def address(self) -> int: ...

    @property
    def size(self) -> int:
        """In bytes."""


class Stream(Protocol):
    """Work on the device, in one order. Only `download` and `wait` return after it is done."""

    @property
    def handle(self) -> int:
        """The ``cudaStream_t``."""

    def allocate(self, size: int) -> Memory:
        """Memory of ``size`` bytes, at a multiple of `ALIGNED`."""

    def upload(self, memory: Memory, array: Array) -> None:
        """Copy a contiguous array to the device; the array may change as soon as this returns."""

    def download(self, memory: Memory, array: Array) -> None:
        """Wait for the work so far, and copy memory into a contiguous array."""

    def copy(self, target: Memory, source: Memory, size: int, *, target_at: int = 0, source_at: int = 0) -> None:
        """Copy ``size`` bytes on the device; ``source_at`` and ``target_at`` are the first bytes."""

    def after(self, other: Stream) -> None:
        """Let later work of this stream begin after the work of ``other`` so far; the host does not wait."""

    def capture(self, enqueue: Callable[[int], bool]) -> Callable[[], None]:
        """A CUDA graph of the work that ``enqueue`` puts on a ``cudaStream_t``; nothing runs.

        Each call of the result enqueues the work on this stream, with the addresses of its capture.

        Raises:
            BackendError: ``enqueue`` returned False, or its work cannot be captured.
        """

    def wait(self) -> None:
        """Wait until the work so far is done."""

    def trim(self) -> None:
        """Wait, and return freed memory to the device, which is otherwise kept for later `allocate`."""

    def make_current(self) -> None:
        """Make the stream's device the calling thread's."""


class CudaStream:
    """A CUDA stream of one GPU; implements `Stream`."""

    def __init__(self, device: Any) -> None:
        """``device`` is the current ``cuda.core.Device``."""
        from cuda.core import LegacyPinnedMemoryResource

        self._device, self._stream = device, device.create_stream()
        self.handle = int(self._stream.handle)
        self._pinned = LegacyPinnedMemoryResource()
        self._staged: deque[tuple[Any, Any]] = deque()
        """Pinned memory with the event that ends its last copy, the oldest first."""

    @classmethod
    def on(cls, number: int) -> CudaStream:
        """A stream of the GPU with this number.

        Raises:
            MissingExtraError: cuda-core is not installed.
            BackendError: there is no such GPU.
        """
        try:
            from cuda.core import Device
        except ImportError as error:
            raise MissingExtraError(
                f'cuda-core cannot be imported ({error}); run: pip install "arlon-rt[tensorrt]" (or [tensorrt-rtx])'
            ) from error
        try:
            device = Device(number)
            device.set_current()
            return cls(device)
        except Exception as error:   # CUDA's own, of several kinds
            raise BackendError(f"GPU {number} cannot be used: {error}; run `arlon-rt doctor`") from error

    def allocate(self, size: int) -> CudaMemory:
        try:
            return CudaMemory(self._device.allocate(max(size, 1), stream=self._stream))
        except Exception as error:
            raise BackendError(f"{size / 1e6:.0f} MB of GPU memory cannot be had: {error}") from error

    def upload(self, memory: Memory, array: Array) -> None:
        assert isinstance(memory, CudaMemory)
        if not array.nbytes:
            return
        staged = self._stage(array.nbytes)
        np.copyto(_bytes(staged)[: array.nbytes], array.reshape(-1).view(np.uint8))
        _part(memory.buffer, array.nbytes).copy_from(_part(staged, array.nbytes), stream=self._stream)
        self._staged.append((staged, self._stream.record()))

    def download(self, memory: Memory, array: Array) -> None:
        assert isinstance(memory, CudaMemory)
        if not array.nbytes:
            return
        staged = self._stage(array.nbytes)
        _part(memory.buffer, array.nbytes).copy_to(_part(staged, array.nbytes), stream=self._stream)
        self.wait()
        np.copyto(array.reshape(-1).view(np.uint8), _bytes(staged)[: array.nbytes])
        self._staged.appendleft((staged, self._stream.record()))

    def copy(self, target: Memory, source: Memory, size: int, *, target_at: int = 0, source_at: int = 0) -> None:
        assert isinstance(target, CudaMemory)
        assert isinstance(source, CudaMemory)
        _part(target.buffer, size, target_at).copy_from(_part(source.buffer, size, source_at), stream=self._stream)

    def after(self, other: Stream) -> None:
        assert isinstance(other, CudaStream)
        self._stream.wait(other._stream)

    def capture(self, enqueue: Callable[[int], bool]) -> Callable[[], None]:
        # The capture has a stream of its own. Other threads may use this one meanwhile, mostly to free a handle, and
        # their work does not belong in the graph.
        builder = self._device.create_graph_builder()
        try:
            builder.begin_building("thread_local")
            try:
                enqueued = enqueue(int(builder.stream.handle))
            finally:
                builder.end_building()
            graph = builder.complete() if enqueued else None
        except Exception as error:   # CUDA's own, of several kinds
            raise BackendError(f"a run cannot be captured: {error}") from error
        finally:
            builder.close()
        if graph is None:
            raise BackendError("a run cannot be captured")
        return partial(graph.launch, self._stream)

    def wait(self) -> None:
        self._stream.sync()

    def trim(self) -> None:
        from cuda.bindings import driver
        from cuda.core import DeviceMemoryResource

        self.wait()
        pool = self._device.memory_resource
        if isinstance(pool, DeviceMemoryResource):   # cuda-core lets it keep all that is freed
            error, = driver.cuMemPoolTrimTo(pool.handle, 0)
            if error != driver.CUresult.CUDA_SUCCESS:
                raise BackendError(f"GPU memory that was freed cannot be given back: {error}")

    def make_current(self) -> None:
        self._device.set_current()

    def _stage(self, size: int) -> Any:
        """Pinned memory that no copy uses any more; if all is in use, wait for the oldest."""
        if self._staged and (len(self._staged) == STAGED or self._staged[0][1].is_done):
            staged, until = self._staged.popleft()
            until.sync()
            if staged.size >= size:
                return staged
        return self._pinned.allocate(max(size, SMALLEST))


class CudaMemory:
    """A ``cuda.core.Buffer``; implements `Memory`."""

    def __init__(self, buffer: Any) -> None:
        self.buffer, self.address, self.size = buffer, int(buffer.handle), int(buffer.size)


def _part(buffer: Any, size: int, start: int = 0) -> Any:
    """Some bytes of a buffer as another, because copies take two buffers of one size."""
    from cuda.core import Buffer

    return buffer if buffer.size == size else Buffer.from_handle(int(buffer.handle) + start, size, owner=buffer)


def _bytes(pinned: Any) -> Array:
    return np.from_dlpack(pinned).view(np.uint8)
