"""On a GPU: each graph of the demo bundle, by every backend that is installed, beside ONNX Runtime on the CPU in fp32.

Written without a GPU; not executed on one yet. All of it ran on the stand-in (tests/gpu_files_on_stand_in.py), and at
small sizes with ONNX Runtime on the CPU as the backend (tests/runtime/backends/test_gpu_checks.py).
"""

from __future__ import annotations

import pytest

import gpu_checks
from arlon_rt.bundle import Bundle, demo_bundle_path
from on_gpu import UnderTest, graphs_of, needs_gpu

pytestmark = needs_gpu


@pytest.mark.parametrize("small", [True, False], ids=["small", "full"])
@pytest.mark.parametrize("graph", graphs_of(Bundle.open(demo_bundle_path())))
def test_a_graph_gives_what_it_gives_on_the_cpu(backend: UnderTest, graph: str, small: bool) -> None:
    gpu_checks.check_parity(backend, graph, small=small)


def test_greedy_tokens_and_caches_are_those_of_the_cpu(backend: UnderTest) -> None:
    gpu_checks.check_greedy_tokens(backend)
