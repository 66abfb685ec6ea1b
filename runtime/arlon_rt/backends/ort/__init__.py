"""ONNX Runtime, on the CPU and on CUDA."""

from arlon_rt.backends.ort.library import (
    CUDA_OPTIONS,
    available_providers,
    import_runtime,
    installed_runtimes,
    providers_of,
)
from arlon_rt.backends.ort.placement import NodeRun, Placement, place_graph
from arlon_rt.backends.ort.verification import verify_opened
