"""From an ONNX file to a checked TensorRT network.

In this file and in engine.py a variable named ``builder``, ``network``, ``parser``, ``config``, … is TensorRT's object
of that kind: tests/engines/test_tensorrt_names.py reads the names by this rule.
"""

from __future__ import annotations

from typing import Any

from arlon_engines.errors import BuildError
from arlon_engines.gate import NetworkCounts, attention_layers, check_network, expected_layers
from arlon_engines.onnx_nodes import read_nodes
from arlon_rt.bundle import Bundle

LINES_SHOWN = 3
"""Lines of the log in an error message: the first names the cause, the others its consequences."""


class Lines:
    """The warnings and errors that TensorRT logged."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.errors: list[str] = []

    def why(self) -> str:
        """The first errors, or the last warnings, in one line."""
        lines = self.errors[:LINES_SHOWN] or self.warnings[-LINES_SHOWN:] or ["TensorRT gives no reason"]
        return "; ".join(" ".join(line.split()) for line in lines)


def open_log(trt: Any, lines: Lines) -> Any:
    """An ILogger that writes to ``lines``. TensorRT uses the first one of a process, so a process builds one graph."""
    class Log(trt.ILogger):  # type: ignore[misc]  # the bindings are not typed
        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                lines.errors.append(message)
            elif severity == trt.ILogger.Severity.WARNING:
                lines.warnings.append(message)

    return Log()


def parse(trt: Any, builder: Any, log: Any, lines: Lines, bundle: Bundle, graph: str, precision: str) -> tuple[
    Any, NetworkCounts
]:
    """The checked network of the ONNX of ``graph``; every attention layer may be decomposed.

    Raises:
        BuildError: TensorRT refuses a node (the message names it), or the network lacks something.
    """
    entry = bundle.graph(graph, precision)
    spec = bundle.spec(graph)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    file = bundle.graph_file(graph, precision)
    if not parser.parse_from_file(str(file)):
        raise BuildError(f"{graph}.{precision}: TensorRT refuses {_refusals(parser) or lines.why()}")
    expected = expected_layers(bundle.model, spec)
    counts = check_network(trt, network, spec, precision, entry, expected, read_nodes(file))
    for layer in attention_layers(trt, [network.get_layer(i) for i in range(network.num_layers)]):
        layer.attention.decomposable = True  # else fp32, and heads as wide as the autoencoder's, have no kernel
    return network, counts


def _refusals(parser: Any) -> str:
    """Each node that the parser refuses, with the reason."""
    refusals = [parser.get_error(i) for i in range(parser.num_errors)]
    return "; ".join(
        f"node {refusal.node_name() or refusal.node()} ({refusal.node_operator()}): {' '.join(refusal.desc().split())}"
        for refusal in refusals
    )
