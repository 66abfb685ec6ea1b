"""ONNX Runtime as a module: what is installed, which devices it serves, and the options of its sessions."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
from types import ModuleType
from typing import Any

from arlon_rt.backends.device import device_parts
from arlon_rt.errors import BackendError, MissingExtraError

RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn")
"""Distributions that all own the folder ``onnxruntime``: two of them installed overwrite each other."""

CUDA = "CUDAExecutionProvider"
CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
"""What is asked of CUDA otherwise than by default.

TF32 would narrow what the graphs keep in float32. EXHAUSTIVE times each convolution's algorithms when it first runs,
so that another process may take another one and no longer repeat a video to the last bit. An arena that grows by powers
of two takes up to twice the memory.
"""

_ERRORS_ONLY = 3

logger = logging.getLogger(__name__)


def installed_runtimes() -> dict[str, str]:
    """Version of each installed distribution of ONNX Runtime; more than one means a broken installation."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in RUNTIMES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def available_providers() -> list[str]:
    """Execution providers of the installed ONNX Runtime, e.g. ``CPUExecutionProvider``."""
    return _available(import_runtime())


def require_device(device: str) -> None:
    """Find out whether the installed ONNX Runtime was built for ``device``, without opening a graph.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        BackendError: it has no CUDA, or there is no such device.
    """
    providers_of(import_runtime(), device)


def import_runtime() -> ModuleType:
    """The module ``onnxruntime``.

    Raises:
        MissingExtraError: it is not installed; the message names the pip command.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            f'ONNX Runtime cannot be imported ({error}); run: pip install "arlon-rt[cpu]", or "arlon-rt[gpu]", not both'
        ) from error
    module: ModuleType = onnxruntime
    return module


def _available(runtime: ModuleType) -> list[str]:
    """Providers that are compiled in and those of plugins, which CUDA is in some builds."""
    plugins = (device.ep_name for device in runtime.get_ep_devices())
    return list(dict.fromkeys([*runtime.get_available_providers(), *plugins]))


@functools.cache
def _load_cuda(runtime: ModuleType) -> None:
    """Load CUDA and cuDNN out of pip's packages, where the system does not look for libraries, and then their plugin.

    ONNX Runtime prints what it cannot load, on the stdout that may carry a video.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        runtime.preload_dlls()
    if said.getvalue():
        logger.warning("CUDA: %s", " ".join(said.getvalue().split()))


def session_options(runtime: ModuleType, threads: int | None) -> Any:
    """The options of every session; ``threads`` inside one operator, ``None`` for what ONNX Runtime thinks best."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = _ERRORS_ONLY
    # Threads that spin after a run would take the processor from the next stage's session.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def providers_of(runtime: ModuleType, device: str) -> list[Any]:
    """The execution providers of ``device``; never a quiet fallback from CUDA to the CPU."""
    kind, number = device_parts(device)
    if kind == "cpu":
        return ["CPUExecutionProvider"]
    _load_cuda(runtime)
    available = _available(runtime)
    if CUDA not in available:
        raise BackendError(
            f"device is {device!r}, but this ONNX Runtime has {', '.join(available)}; "
            'run: pip uninstall onnxruntime, then pip install "arlon-rt[gpu]", or use device cpu'
        )
    return [(CUDA, {"device_id": number, **CUDA_OPTIONS})]


