"""Sessions: one file a backend."""

from __future__ import annotations

from arlon_rt.engine_file import FLAVOURS

BACKENDS = ("onnxruntime", *FLAVOURS)


def usual_device(backend: str) -> str:
    """Where a backend runs that is told nothing else."""
    return "cpu" if backend == "onnxruntime" else "cuda"
