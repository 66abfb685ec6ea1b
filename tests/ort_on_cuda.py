"""An ONNX Runtime with a CUDA that is not there: it opens graphs on the CPU and notes what a GPU would have been asked.

What is bound from the host, and where tensors are said to be, is kept apart as on a GPU: a tensor of the host that is
bound as one of the device's is an error.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

CUDA = "CUDAExecutionProvider"


class OrtValue:
    """A tensor that says it is on CUDA."""

    def __init__(self, real: Any, device: tuple[str, int]) -> None:
        self.real, self.device = real, device

    @classmethod
    def ortvalue_from_numpy(cls, array: np.ndarray, device_type: str, device_id: int) -> OrtValue:
        assert array.flags.c_contiguous
        return cls(onnxruntime.OrtValue.ortvalue_from_numpy(array.copy()), (device_type, device_id))

    def device_name(self) -> str:
        return self.device[0]

    def numpy(self) -> np.ndarray:
        return np.array(self.real.numpy())

    def shape(self) -> list[int]:
        return self.real.shape()

    def data_type(self) -> str:
        return self.real.data_type()

    def data_ptr(self) -> int:
        return self.real.data_ptr()


class Binding:
    """A binding that notes every call."""

    def __init__(self, real: Any, calls: list[tuple[str, ...]]) -> None:
        self.real, self._calls, self._placed = real, calls, []

    def bind_cpu_input(self, name: str, array: np.ndarray) -> None:
        self._calls.append(("bind_cpu_input", name))
        self.real.bind_cpu_input(name, array)

    def bind_ortvalue_input(self, name: str, value: OrtValue) -> None:
        self._calls.append(("bind_ortvalue_input", name))
        self.real.bind_ortvalue_input(name, value.real)

    def bind_output(self, name: str, device_type: str, device_id: int = 0) -> None:
        self._calls.append(("bind_output", name, device_type))
        self._placed.append((device_type, device_id))
        self.real.bind_output(name)

    def bind_ortvalue_output(self, name: str, value: OrtValue) -> None:
        self._calls.append(("bind_ortvalue_output", name))
        self._placed.append(value.device)
        self.real.bind_ortvalue_output(name, value.real)

    def get_outputs(self) -> list[OrtValue]:
        return [OrtValue(v, device) for v, device in zip(self.real.get_outputs(), self._placed, strict=True)]


class InferenceSession:
    """A session that says it runs on CUDA, or that CUDA did not start."""

    def __init__(self, module: OrtOnCuda, path: str, providers: list[Any], **options: Any) -> None:
        self._module = module
        if module.fails is not None:
            raise RuntimeError(module.fails)
        self._real = onnxruntime.InferenceSession(
            path, options["sess_options"], providers=["CPUExecutionProvider"], enable_fallback=0
        )
        module.opened.append((providers, options))

    def get_providers(self) -> list[str]:
        return [CUDA, "CPUExecutionProvider"] if self._module.starts else ["CPUExecutionProvider"]

    def io_binding(self) -> Binding:
        return Binding(self._real.io_binding(), self._module.calls)

    def run_with_iobinding(self, binding: Binding) -> None:
        self._real.run_with_iobinding(binding.real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class OrtOnCuda:
    """The module; everything that is not here is the real one's."""

    OrtValue = OrtValue

    def __init__(
        self, *, starts: bool = True, fails: str | None = None, says: str = "", plugin: bool = False
    ) -> None:
        """``starts``: whether CUDA does; ``fails``: how opening does. ``says``: what loading its libraries prints.

        ``plugin``: CUDA is one.
        """
        self.starts, self.fails, self._says, self._plugin = starts, fails, says, plugin
        self.opened: list[tuple[list[Any], dict[str, Any]]] = []
        self.calls: list[tuple[str, ...]] = []
        self.loaded = 0

    def preload_dlls(self) -> None:
        self.loaded += 1
        if self._says:
            print(self._says)

    def get_available_providers(self) -> list[str]:
        return ["CPUExecutionProvider", *([CUDA] if self.loaded and not self._plugin else [])]

    def get_ep_devices(self) -> list[Any]:
        return [SimpleNamespace(ep_name=CUDA)] if self.loaded and self._plugin else []

    def InferenceSession(self, path: str, *, providers: list[Any], **options: Any) -> InferenceSession:
        return InferenceSession(self, path, providers, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(onnxruntime, name)
