"""On a GPU: no node of the demo model's graphs keeps more than 4 KB on the CPU.

Written without a GPU and not executed yet.
"""

from __future__ import annotations

import pytest

from arlon_rt.backends.ort import available_providers
from arlon_rt.backends.ort_placement import place_graph
from arlon_rt.bundle import Bundle, demo_bundle_path
from arlon_rt.errors import ArlonError
from arlon_rt.gpu import compute_capability
from arlon_rt.graphs import graph_specs


def missing() -> str | None:
    """Why there is nothing to run here."""
    try:
        compute_capability(0)
        return None if "CUDAExecutionProvider" in available_providers() else "this ONNX Runtime has no CUDA"
    except ArlonError as error:
        return str(error)


WHY = missing()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(WHY is not None, reason=f"no GPU to run on: {WHY}")]
BUNDLE = Bundle.open(demo_bundle_path())


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("graph", graph_specs(BUNDLE.model))
def test_no_node_keeps_more_than_4_kb_on_the_cpu(graph: str, precision: str) -> None:
    found = place_graph(BUNDLE, graph, device="cuda", precision=precision)
    assert any(node.on_gpu for node in found.nodes)
    assert [(node.name, node.op, node.bytes) for node in found.large_on_cpu] == []
