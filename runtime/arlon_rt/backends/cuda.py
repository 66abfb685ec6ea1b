"""The GPU as `arlon_rt.backends.trt` sees it: memory, copies and streams, through cuda-core.

Written against cuda-core 1.2 and not executed yet; the tests run the backend on a stand-in of this module.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from arlon_rt.backends.session import Array
from arlon_rt.errors import BackendError, MissingExtraError


class Memory(Protocol):
    """Device memory; freed, in the order of its stream, when the last reference goes."""

    @property
    def address(self) -> int: ...

    @property
    def size(self) -> int:
        """In bytes."""


class Stream(Protocol):
    """Work on the device in one order. All but `download` and `wait` return before it is done."""

    @property
    def handle(self) -> int:
        """The ``cudaStream_t``."""

    def allocate(self, size: int) -> Memory:
        """``size`` bytes, at an address that 256 divides."""

    def upload(self, memory: Memory, array: Array) -> None:
        """Copy an array, contiguous; it may change as soon as this returns."""

    def download(self, memory: Memory, array: Array) -> None:
        """Wait for the work so far and copy into an array, contiguous."""

    def copy(self, target: Memory, source: Memory, size: int) -> None:
        """Copy ``size`` bytes on the device."""

    def wait(self) -> None:
        """Until the work so far is done."""

    def make_current(self) -> None:
        """Let the calling thread work on the stream's device."""


class CudaStream:
    """A stream of its own on one GPU; implements `Stream`."""

    def __init__(self, device: Any) -> None:
        """``device`` is a ``cuda.core.Device`` that is current."""
        from cuda.core import LegacyPinnedMemoryResource

        self._device, self._stream = device, device.create_stream()
        self._pinned = LegacyPinnedMemoryResource()
        self._staged: Any = None
        self._staged_until: Any = None

    @classmethod
    def on(cls, number: int) -> CudaStream:
        """On the GPU of this number.

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

    @property
    def handle(self) -> int:
        return int(self._stream.handle)

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
        memory.part(array.nbytes).copy_from(_part(staged, array.nbytes), stream=self._stream)
        self._staged_until = self._stream.record()

    def download(self, memory: Memory, array: Array) -> None:
        assert isinstance(memory, CudaMemory)
        if not array.nbytes:
            return
        staged = self._stage(array.nbytes)
        memory.part(array.nbytes).copy_to(_part(staged, array.nbytes), stream=self._stream)
        self.wait()
        np.copyto(array.reshape(-1).view(np.uint8), _bytes(staged)[: array.nbytes])

    def copy(self, target: Memory, source: Memory, size: int) -> None:
        assert isinstance(target, CudaMemory)
        assert isinstance(source, CudaMemory)
        target.part(size).copy_from(source.part(size), stream=self._stream)

    def wait(self) -> None:
        self._stream.sync()

    def make_current(self) -> None:
        self._device.set_current()

    def _stage(self, size: int) -> Any:
        """Pinned memory that no copy reads any more."""
        if self._staged_until is not None:
            self._staged_until.sync()
            self._staged_until = None
        if self._staged is None or self._staged.size < size:
            self._staged = self._pinned.allocate(size)
        return self._staged


class CudaMemory:
    """A ``cuda.core.Buffer``; implements `Memory`."""

    def __init__(self, buffer: Any) -> None:
        self._buffer = buffer

    @property
    def address(self) -> int:
        return int(self._buffer.handle)

    @property
    def size(self) -> int:
        return int(self._buffer.size)

    def part(self, size: int) -> Any:
        """Its first bytes, as a buffer: copies take two of one size."""
        return _part(self._buffer, size)


def _part(buffer: Any, size: int) -> Any:
    from cuda.core import Buffer

    return buffer if buffer.size == size else Buffer.from_handle(int(buffer.handle), size, owner=buffer)


def _bytes(pinned: Any) -> Array:
    return np.from_dlpack(pinned).view(np.uint8)
