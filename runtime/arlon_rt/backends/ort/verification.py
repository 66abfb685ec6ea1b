"""Every graph of a bundle opened in ONNX Runtime, and what it states compared with the contract.

`Bundle.verify` checks files and manifest without opening a graph; this is the deeper check beside it.
"""

from __future__ import annotations

from collections.abc import Iterator

from arlon_rt.backends.ort.library import contract_differences, import_runtime, open_graph, session_options
from arlon_rt.bundle import Bundle, Finding
from arlon_rt.errors import ArlonError


def verify_opened(bundle: Bundle) -> Iterator[Finding]:
    """Yield how the graphs' own inputs and outputs differ from graphs.py, and which graphs cannot be opened."""
    for graph, precisions in bundle.manifest.graphs.items():
        for precision in precisions:
            where = f"{graph}.{precision}"
            if precision == "bf16":
                message = "was not opened: ONNX Runtime has no bf16 kernels on a CPU"
                yield Finding(where=where, message=message, severity="warning")
                continue
            try:
                options = session_options(threads=1)
                options.graph_optimization_level = import_runtime().GraphOptimizationLevel.ORT_DISABLE_ALL
                opened = open_graph(bundle, graph, precision, ["CPUExecutionProvider"], options)
                messages = contract_differences(opened, bundle.spec(graph), precision)
            except ArlonError as error:
                messages = [str(error)]
            yield from (Finding(where=where, message=message) for message in messages)
