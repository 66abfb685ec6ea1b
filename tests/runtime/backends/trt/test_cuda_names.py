"""`backends/trt/cuda.py` against the real cuda-core: every name and argument that it uses exists."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock, create_autospec

import numpy as np
import pytest
from cuda import core
from cuda.bindings import driver
from cuda.core import graph

from arlon_rt.backends.trt import cuda
from arlon_rt.backends.trt.cuda import CudaMemory, CudaStream
from arlon_rt.errors import BackendError

BUFFER = core.Buffer


def like(kind: type, **returns: Any) -> Any:
    """An object with the attributes of a class, whose methods take what the class's take."""
    found = create_autospec(kind, instance=True)

    def bound(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            inspect.signature(getattr(kind, name)).bind(found, *args, **kwargs)
            return returns.get(name)

        return call

    for name in dir(kind):
        if not name.startswith("_") and callable(getattr(kind, name)):
            getattr(found, name).side_effect = bound(name)
        elif name in returns:
            setattr(found, name, returns[name])
    return found


class Pinned:
    """What the pinned resource would hand out."""

    def __init__(self, size: int) -> None:
        self.array, self.size, self.handle = np.zeros(size, np.uint8), size, 4096

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.array.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A device whose objects are mocks of cuda-core's classes."""
    event = like(core.Event, is_done=True)
    stream = like(core.Stream, record=event, handle=7)
    builder = like(graph.GraphBuilder, complete=like(graph.Graph), stream=stream)
    resource = like(core.LegacyPinnedMemoryResource)
    resource.allocate.side_effect = lambda size, stream=None: Pinned(size)
    monkeypatch.setattr(core, "LegacyPinnedMemoryResource", lambda: resource)

    def part(*args: Any, **kwargs: Any) -> Any:
        inspect.signature(BUFFER.from_handle).bind(*args, **kwargs)
        return like_buffer(args[1])

    monkeypatch.setattr(core, "Buffer", MagicMock(from_handle=part))
    return like(core.Device, create_stream=stream, create_graph_builder=builder, allocate=like_buffer(1024))


def like_buffer(size: int) -> Any:
    return like(BUFFER, size=size, handle=256)


def test_all_that_a_stream_does_is_there(device: Any) -> None:
    stream, array = CudaStream(device), np.arange(16, dtype=np.int64)
    stream.make_current()
    memory, other = stream.allocate(1024), CudaMemory(like_buffer(2048))
    assert (memory.size, memory.address, stream.handle) == (1024, 256, 7)
    stream.upload(memory, array)
    stream.download(memory, np.zeros_like(array))
    stream.copy(memory, other, 8, target_at=16, source_at=64)
    stream.after(CudaStream(device))
    stream.wait()
    handles = []
    stream.capture(lambda handle: not handles.append(handle))()
    assert handles == [7]


def test_what_is_not_captured_is_an_error(device: Any) -> None:
    with pytest.raises(BackendError, match="a run cannot be captured"):
        CudaStream(device).capture(lambda handle: False)


def test_pinned_memory_is_reused_and_bounded(device: Any) -> None:
    stream = CudaStream(device)
    memory = stream.allocate(1024)
    for value in range(3):
        stream.upload(memory, np.full(16, value, np.uint8))
    allocated = stream._pinned.allocate
    assert allocated.call_count == 1, "the event says that no copy reads it any more"
    device.create_stream().record().is_done = False
    for value in range(3 * cuda.STAGED):
        stream.upload(memory, np.full(16, value, np.uint8))
    assert allocated.call_count == cuda.STAGED
    assert len(stream._staged) == cuda.STAGED


def test_freed_memory_is_given_back_from_the_pool_that_keeps_it(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed = []

    def trim(pool: Any, kept: int) -> tuple[driver.CUresult]:
        trimmed.append((pool, kept))
        return (driver.CUresult.CUDA_SUCCESS if len(trimmed) == 1 else driver.CUresult.CUDA_ERROR_INVALID_VALUE,)

    assert callable(driver.cuMemPoolTrimTo)
    monkeypatch.setattr(driver, "cuMemPoolTrimTo", trim)
    device.memory_resource = like(core.DeviceMemoryResource, handle=5)
    CudaStream(device).trim()
    assert trimmed == [(5, 0)]
    with pytest.raises(BackendError, match=r"cannot be given back: .*INVALID_VALUE"):
        CudaStream(device).trim()
    device.memory_resource = object()   # where the device has no pools
    CudaStream(device).trim()
    assert len(trimmed) == 2


def test_a_stand_in_refuses_what_cuda_core_does_not_take(device: Any) -> None:
    with pytest.raises(TypeError, match="stream"):
        device.allocate(8, streams=None)
    with pytest.raises(AttributeError):
        device.create_graph()
