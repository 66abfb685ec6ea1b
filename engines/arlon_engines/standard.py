"""Standard TensorRT: it compiles only for this machine's GPU, and keeps the kernel timings that it measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arlon_engines.errors import BuildError
from arlon_rt.backends import compute_capability
from arlon_rt.files import cache_folder, write_atomically


class Standard:
    """See `arlon_engines.flavour.Flavour`."""

    def __init__(self, trt: Any) -> None:
        self.trt = trt

    def check_gpu(self, gpu: str) -> None:
        own = compute_capability()
        if gpu != own:
            raise BuildError(
                f"TensorRT compiles only for this machine's GPU, which is {own}, not {gpu}; "
                f"build on a machine with that GPU, or use --backend tensorrt-rtx, which compiles for other GPUs"
            )

    def set_gpu(self, config: Any, gpu: str) -> None:
        """Do nothing: TensorRT always compiles for this machine's GPU."""

    def load_timings(self, config: Any, gpu: str) -> None:
        path = self._timings(gpu)
        cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
        if not config.set_timing_cache(cache, ignore_mismatch=False):
            raise BuildError(f"TensorRT rejects the timing cache {path}; delete it")

    def save_timings(self, config: Any, gpu: str) -> None:
        cache = config.get_timing_cache()
        path = self._timings(gpu)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, bytes(cache.serialize()))

    def _timings(self, gpu: str) -> Path:
        """The timing cache, in the user's folder and not beside the engines, because TensorRT does not check it."""
        return cache_folder() / "timings" / f"tensorrt-{self.trt.__version__}-{gpu}.cache"
