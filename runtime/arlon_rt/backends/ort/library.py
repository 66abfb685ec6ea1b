"""ONNX Runtime as a module: what is installed, the devices it serves, and how it opens a graph."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
from importlib import import_module
from types import ModuleType
from typing import Any

from arlon_rt.backends.device import device_parts
from arlon_rt.bundle import Bundle
from arlon_rt.errors import BackendError, BundleError, MissingExtraError
from arlon_rt.graphs import GraphSpec, StatedTensor, differences

RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn")
"""Distributions that all own the folder ``onnxruntime``: two of them installed overwrite each other."""

TYPES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(bfloat16)": "bfloat16",
    "tensor(int64)": "int64", "tensor(bool)": "bool", "tensor(uint8)": "uint8",
}
"""ONNX Runtime's element types -> the dtypes of graphs.py."""

CUDA = "CUDAExecutionProvider"
CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
"""Options of CUDA that differ from its defaults.

TF32 would narrow what the graphs keep in float32. EXHAUSTIVE times the algorithms of each convolution in its first run;
another process may then choose another algorithm, and its video differs in the last bits. An arena that grows by powers
of two takes up to twice the memory.
"""

_ERRORS_ONLY = 3
_DAMAGED = ("InvalidProtobuf", "NoSuchFile", "InvalidGraph", "NoModel")
"""ONNX Runtime's exceptions about a file that is not whole."""

logger = logging.getLogger(__name__)


def installed_runtimes() -> dict[str, str]:
    """The version of each installed distribution of ONNX Runtime; more than one means a broken installation."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in RUNTIMES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def import_runtime() -> ModuleType:
    """The module ``onnxruntime``.

    Raises:
        MissingExtraError: it is not installed; the message names the pip command.
    """
    try:
        return import_module("onnxruntime")
    except ImportError as error:
        raise MissingExtraError(
            f'ONNX Runtime cannot be imported ({error}); run: pip install "arlon-rt[cpu]", or "arlon-rt[gpu]", not both'
        ) from error


def available_providers() -> list[str]:
    """The execution providers of the installed ONNX Runtime, e.g. ``CPUExecutionProvider``."""
    runtime = import_runtime()
    # In some builds CUDA is a plugin.
    plugins = (device.ep_name for device in runtime.get_ep_devices())
    return list(dict.fromkeys([*runtime.get_available_providers(), *plugins]))


@functools.cache
def _load_cuda(runtime: ModuleType) -> None:
    """Load CUDA and cuDNN from pip's packages, where the system does not look for libraries.

    ONNX Runtime prints failures on stdout, which may carry a video; they are logged instead.
    """
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runtime.preload_dlls()
    if printed.getvalue():
        logger.warning("CUDA: %s", " ".join(printed.getvalue().split()))


def session_options(threads: int | None) -> Any:
    """The options of a session; ``threads`` run one operator, ``None`` lets ONNX Runtime choose."""
    options = import_runtime().SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = _ERRORS_ONLY
    # Threads that spin after a run would take the processor from the session that runs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def providers_of(device: str) -> list[Any]:
    """The execution providers of ``device``; CUDA never falls back to the CPU quietly.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        BackendError: it was built without CUDA, or there is no such device.
    """
    runtime = import_runtime()
    kind, number = device_parts(device)
    if kind == "cpu":
        return ["CPUExecutionProvider"]
    _load_cuda(runtime)
    available = available_providers()
    if CUDA not in available:
        raise BackendError(
            f"device is {device!r}, but this ONNX Runtime has {', '.join(available)}; "
            'run: pip uninstall onnxruntime, then pip install "arlon-rt[gpu]", or use device cpu'
        )
    return [(CUDA, {"device_id": number, **CUDA_OPTIONS})]


def open_graph(bundle: Bundle, graph: str, precision: str, providers: list[Any], options: Any) -> Any:
    """The ``onnxruntime.InferenceSession`` of a graph.

    Raises:
        BundleError: the file is damaged.
        BackendError: ONNX Runtime cannot open it.
    """
    runtime, path = import_runtime(), bundle.graph_file(graph, precision)
    try:
        # With its fallback ONNX Runtime prints an error on stdout and opens the graph on the CPU.
        return runtime.InferenceSession(str(path), sess_options=options, providers=providers, enable_fallback=0)
    except Exception as error:
        if type(error).__name__ in _DAMAGED:
            raise BundleError(f"{path} is damaged ({one_line(error)}); run `arlon-rt verify {bundle.path}`") from error
        raise BackendError(f"{path} cannot be opened: {one_line(error)}") from error


def contract_differences(opened: Any, spec: GraphSpec, precision: str) -> list[str]:
    """How the inputs and outputs of an opened graph differ from its contract; empty when they agree."""
    def stated(nodes: Any) -> list[StatedTensor]:
        return [(node.name, TYPES.get(node.type, node.type), tuple(node.shape)) for node in nodes]

    return differences(spec, precision, stated(opened.get_inputs()), stated(opened.get_outputs()), stated_by="graph")


def one_line(error: Exception) -> str:
    """An error of ONNX Runtime, whose messages have several lines, in one line."""
    return " ".join(str(error).split())[:400]
