"""ONNX Runtime, on the CPU and on CUDA."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arlon_rt.backends.ort.library import (
    CUDA_OPTIONS,
    available_providers,
    import_runtime,
    installed_runtimes,
    providers_of,
)
from arlon_rt.lazy import lazily

if TYPE_CHECKING:
    from arlon_rt.backends.ort.placement import NodeRun, Placement, place_graph
    from arlon_rt.backends.ort.verification import verify_opened
else:   # what few commands use, loaded by them alone
    __all__, __getattr__, __dir__ = lazily(__name__, {
        "arlon_rt.backends.ort.placement": ("NodeRun", "Placement", "place_graph"),
        "arlon_rt.backends.ort.verification": ("verify_opened",),
    })
