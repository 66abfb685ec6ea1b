"""TensorRT for RTX: it compiles for any GPU without having one, and measures no timings."""

from __future__ import annotations

from typing import Any

from arlon_engines.errors import BuildError


class RTX:
    """See `arlon_engines.flavour.Flavour`."""

    def __init__(self, trt: Any) -> None:
        self.trt = trt

    def check_gpu(self, gpu: str) -> None:
        names = self.trt.ComputeCapability.__members__
        known = [name.lower() for name in names if name.startswith("SM")]
        if gpu not in known:
            raise BuildError(
                f"TensorRT for RTX {self.trt.__version__} does not compile for {gpu}; it knows {', '.join(known)} "
                f"(for datacenter GPUs: --backend tensorrt, on a machine that has one)"
            )

    def set_gpu(self, config: Any, gpu: str) -> None:
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(self.trt.ComputeCapability.__members__[gpu.upper()], 0):
            raise BuildError(f"TensorRT for RTX refused {gpu}")

    def load_timings(self, config: Any, gpu: str) -> None:
        """Do nothing: TensorRT for RTX 1.7 accepts a timing cache and does not use it."""

    def save_timings(self, config: Any, gpu: str) -> None:
        """Do nothing, for the same reason."""
