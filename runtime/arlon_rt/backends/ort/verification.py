"""Graphs of a bundle opened in ONNX Runtime and compared with the contract, in place of the manifest's word."""

from __future__ import annotations

from collections.abc import Iterator

from arlon_rt.backends.ort.library import import_runtime, session_options
from arlon_rt.backends.ort.session import differences, open_file
from arlon_rt.bundle import Bundle, Finding
from arlon_rt.errors import ArlonError


def contractdifferences(bundle: Bundle, graph: str, precision: str) -> list[str]:
    """What the inputs and outputs of an .onnx file have otherwise than graphs.py; empty when they agree.

    Raises:
        BundleError: the file is damaged.
        BackendError: ONNX Runtime cannot open it.
    """
    runtime = import_runtime()
    options = session_options(runtime, threads=1)
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    opened = open_file(runtime, bundle, graph, precision, ["CPUExecutionProvider"], options)
    return differences(bundle.spec(graph), precision, opened)


def verify_opened(bundle: Bundle) -> Iterator[Finding]:
    """Open every graph and compare its own inputs and outputs with graphs.py."""
    for graph, precisions in bundle.manifest.graphs.items():
        for precision in precisions:
            if precision == "bf16":
                message = "was not opened: ONNX Runtime has no bf16 kernels on a CPU"
                yield Finding(where=f"{graph}.{precision}", message=message, severity="warning")
                continue
            try:
                for difference in contractdifferences(bundle, graph, precision):
                    yield Finding(where=f"{graph}.{precision}", message=difference)
            except ArlonError as error:
                yield Finding(where=f"{graph}.{precision}", message=str(error))
