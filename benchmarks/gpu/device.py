"""The device of a run: one class for CUDA and one for the CPU, and the ceilings that are measured on it."""

from __future__ import annotations

import contextlib
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch

from arlon_rt.backends.ort import CUDA_OPTIONS, installed_runtimes
from gpu.stand_in import StandInGpu

Call = Callable[[], object]
CALLS = 5


class Device(Protocol):
    """What differs between devices."""

    name: str
    """``"cpu"`` or ``"cuda"``, as in torch and arlon-rt."""
    inductor: str
    """The backend for torch.compile."""

    def describe(self) -> dict[str, str]: ...

    def milliseconds(self, call: Call) -> float:
        """Time of one call, until all that it started on any stream has finished."""

    def used_bytes(self) -> int | None:
        """Bytes of device memory that all processes use; ``None`` for a device without such a figure."""

    def providers(self, cuda_graph: bool) -> list[Any]:
        """The execution providers for an ONNX Runtime session."""

    def exact_float32(self) -> contextlib.AbstractContextManager[None]:
        """A context in which torch computes float32 in float32; outside it uses TF32 on devices that have it."""

    def release(self) -> None:
        """Free cached memory, so that torch and ONNX Runtime both have enough."""


class CpuDevice:
    """The CPU for ``--smoke``, with a stand-in GPU for the engines."""

    name = "cpu"
    inductor = "aot_eager"  # torch.compile's tracing, without running a C++ compiler for each graph

    def __init__(self, stand_in: StandInGpu) -> None:
        self._stand_in = stand_in

    def describe(self) -> dict[str, str]:
        return {"device": platform.processor() or platform.machine(), "threads": str(torch.get_num_threads())}

    def milliseconds(self, call: Call) -> float:
        began = time.perf_counter()
        call()
        self._stand_in.finish()
        return 1e3 * (time.perf_counter() - began)

    def used_bytes(self) -> int | None:
        return self._stand_in.used_bytes()

    def providers(self, cuda_graph: bool) -> list[Any]:
        if cuda_graph:
            raise RuntimeError("a CUDA graph needs CUDA")
        return ["CPUExecutionProvider"]

    @contextlib.contextmanager
    def exact_float32(self) -> Iterator[None]:
        yield

    def release(self) -> None:
        pass


class CudaDevice:
    """A GPU. The clock of the host times a call, from an idle device to an idle device.

    ONNX Runtime, TensorRT and torch have streams of their own, and an event on one stream would miss the others.
    """

    name = "cuda"
    inductor = "inductor"

    def __init__(self) -> None:
        if "onnxruntime-gpu" in installed_runtimes():
            import onnxruntime

            onnxruntime.preload_dlls()  # takes the CUDA and cuDNN libraries that torch has loaded
        torch.cuda.init()  # type: ignore[no-untyped-call]
        _tf32(True)

    def describe(self) -> dict[str, str]:
        properties = torch.cuda.get_device_properties(0)
        return {
            "device": properties.name, "memory_gib": f"{properties.total_memory / 2**30:.0f}",
            "driver": _driver(), "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        }

    def milliseconds(self, call: Call) -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - began)

    def used_bytes(self) -> int | None:
        free, total = torch.cuda.mem_get_info()
        return int(total - free)

    def providers(self, cuda_graph: bool) -> list[Any]:
        options = {"device_id": 0, **CUDA_OPTIONS, **({"enable_cuda_graph": "1"} if cuda_graph else {})}
        return [("CUDAExecutionProvider", options)]

    @contextlib.contextmanager
    def exact_float32(self) -> Iterator[None]:
        _tf32(False)
        try:
            yield
        finally:
            _tf32(True)

    def release(self) -> None:
        torch.cuda.empty_cache()


def ceilings(device: Device, smoke: bool) -> dict[str, float]:
    """The best rates of this device: TFLOP/s of a square matrix product a precision, GB/s of a copy (read + write).

    ``fp32`` is torch with TF32 on devices that have it. ``ieee_fp32`` is without it, as the other backends run.
    """
    size = 256 if smoke else 8192
    found = {
        "fp16": _product(device, size, torch.float16), "fp32": _product(device, size, torch.float32),
    }
    with device.exact_float32():
        found["ieee_fp32"] = _product(device, size, torch.float32)
    found["copy_gb_s"] = _copy(device, 1 << (22 if smoke else 30))
    device.release()
    return found


def _product(device: Device, size: int, dtype: torch.dtype) -> float:
    left, right = (torch.randn(size, size, device=device.name).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * size**3 / 1e9 / _best(device, lambda: torch.mm(left, right, out=out))


def _copy(device: Device, size: int) -> float:
    source = torch.ones(size, dtype=torch.uint8, device=device.name)
    target = torch.empty_like(source)
    return 2 * size / 1e6 / _best(device, lambda: target.copy_(source))


def _best(device: Device, call: Call, repeats: int = 10) -> float:
    """Milliseconds of one call among `CALLS` in a row, which hides the cost of launching."""
    def several() -> None:
        for _ in range(CALLS):
            call()

    several()
    return min(device.milliseconds(several) for _ in range(repeats)) / CALLS


def _tf32(allowed: bool) -> None:
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        return f"unknown ({type(error).__name__} from nvidia-smi)"
