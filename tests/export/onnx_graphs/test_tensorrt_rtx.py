"""TensorRT for RTX parses and compiles every bf16 graph, which ONNX Runtime has no kernels for on a CPU.

No GPU is needed to compile, and nothing is executed.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import tensorrt_rtx as trt

from arlon_export.onnx_graphs.feeds import check_sizes, shape
from arlon_rt.bundle import Bundle
from arlon_rt.graphs import graph_specs
from tiny_checkpoint import tiny_model


class Warnings(trt.ILogger):
    """Keeps what the parser and the builder warn of."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        if severity <= trt.ILogger.Severity.WARNING:
            self.lines.append(message)


LOG = Warnings()
"""TensorRT takes one logger a process."""


@pytest.mark.parametrize("graph", graph_specs(tiny_model()))
def test_every_graph_compiles_for_an_ada_gpu(tiny_export: Path, graph: str) -> None:
    bundle = Bundle.open(tiny_export / "bundle")
    file, spec = bundle.graph_file(graph, "bf16"), bundle.spec(graph)
    LOG.lines.clear()
    builder = trt.Builder(LOG)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, LOG)
    assert parser.parse_from_file(str(file)), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    types = [layer.type for layer in layers]
    operators = [node.op_type for node in onnx.load(file, load_external_data=False).graph.node]
    assert types.count(trt.LayerType.ATTENTION_INPUT) == operators.count("Attention")
    assert types.count(trt.LayerType.KV_CACHE_UPDATE) == operators.count("TensorScatter")
    for layer in layers:
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # the bindings hand out the base class
            layer.attention.decomposable = True  # no fused kernel serves heads this narrow
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    smallest, largest = check_sizes(bundle.model, spec)
    profile = builder.create_optimization_profile()
    for tensor in spec.inputs:
        low, high = shape(tensor, smallest), shape(tensor, largest)
        profile.set_shape(tensor.name, low, high, high)
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None, LOG.lines
    assert [line for line in LOG.lines if "nused" in line] == [], "an input that is not read is an output that is wrong"
