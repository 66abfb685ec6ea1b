"""Standard TensorRT: compiles for the GPU at hand alone, and remembers what it timed there."""

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
        here = compute_capability()
        if gpu != here:
            raise BuildError(
                f"TensorRT compiles for the GPU at hand, which is {here}, not {gpu}; "
                f"build on a machine that has one, or with --backend tensorrt-rtx, which compiles for others"
            )

    def set_gpu(self, config: Any, gpu: str) -> None:
        """Nothing: there is no choice."""

    def load_timings(self, config: Any, gpu: str) -> None:
        path = self._timings(gpu)
        cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
        if not config.set_timing_cache(cache, ignore_mismatch=False):
            raise BuildError(f"TensorRT refuses the timing cache {path}: delete it")

    def save_timings(self, config: Any, gpu: str) -> None:
        cache = config.get_timing_cache()
        path = self._timings(gpu)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, bytes(cache.serialize()))

    def _timings(self, gpu: str) -> Path:
        """In the user's own cache and not beside the engines: TensorRT reads it without a check."""
        return cache_folder() / "timings" / f"tensorrt-{self.trt.__version__}-{gpu}.cache"
