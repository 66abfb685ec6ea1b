"""On a GPU: no node of the demo model's graphs keeps more than 4 KB on the CPU.

Written without a GPU and not executed yet.
"""

from __future__ import annotations

import pytest

from arlon_rt.backends.ort import place_graph
from arlon_rt.bundle import Bundle, demo_bundle_path
from arlon_rt.graphs import graph_specs
from on_gpu import backend_missing, needs_gpu

WHY = backend_missing("onnxruntime")
pytestmark = [*needs_gpu, pytest.mark.skipif(WHY is not None, reason=str(WHY))]
BUNDLE = Bundle.open(demo_bundle_path())


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("graph", graph_specs(BUNDLE.model))
def test_no_node_keeps_more_than_4_kb_on_the_cpu(graph: str, precision: str) -> None:
    found = place_graph(BUNDLE, graph, device="cuda", precision=precision)
    assert any(node.on_gpu for node in found.nodes)
    assert [(node.name, node.op, node.bytes) for node in found.large_on_cpu] == []
