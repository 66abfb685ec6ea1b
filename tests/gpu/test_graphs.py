"""On a GPU: runs that recur are CUDA graphs, and tokens are written in a loop that the host does not wait for.

Written without a GPU; not executed on one yet. All of it ran on the stand-in (tests/gpu_files_on_stand_in.py).
"""

from __future__ import annotations

import pytest

import gpu_checks
from arlon_rt.bundle import FLAVOURS, Bundle, demo_bundle_path
from on_gpu import UnderTest, graphs_of, needs_gpu

pytestmark = needs_gpu


@pytest.fixture
def tensorrt(backend: UnderTest) -> UnderTest:
    """A backend that captures runs."""
    if backend.name not in FLAVOURS:
        pytest.skip(f"{backend.name} captures nothing")
    return backend


@pytest.mark.parametrize("graph", graphs_of(Bundle.open(demo_bundle_path())))
def test_runs_that_recur_are_captured(tensorrt: UnderTest, graph: str) -> None:
    gpu_checks.check_runs_are_captured(tensorrt, graph)


def test_a_loop_gives_the_tokens_of_single_steps(tensorrt: UnderTest) -> None:
    gpu_checks.check_loop(tensorrt)
