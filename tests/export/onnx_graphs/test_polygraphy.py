"""NVIDIA's Polygraphy takes every graph that ships: it reads their structure and runs them in ONNX Runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from arlon_export.onnx_graphs.feeds import opt_sizes, shape
from arlon_rt.bundle import Bundle, demo_bundle_path

pytestmark = pytest.mark.slow

BUNDLE = Bundle.open(demo_bundle_path())
GRAPHS = [pytest.param(g, p, id=f"{g}.{p}") for g, sets in BUNDLE.manifest.graphs.items() for p in sets]


def polygraphy(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).with_name("polygraphy")
    return subprocess.run([command, *arguments], capture_output=True, text=True)


@pytest.mark.parametrize(("graph", "precision"), GRAPHS)
def test_polygraphy_runs_the_graph(graph: str, precision: str) -> None:
    spec = BUNDLE.spec(graph)
    sizes = opt_sizes(BUNDLE.model, spec)
    shapes = [f"{t.name}:[{','.join(map(str, shape(t, sizes)))}]" for t in spec.inputs]
    ran = polygraphy("run", str(BUNDLE.graph_file(graph, precision)), "--onnxrt", "--input-shapes", *shapes)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "PASSED" in ran.stdout
    assert all(t.name in ran.stdout for t in spec.outputs)


@pytest.mark.parametrize(("graph", "precision"), GRAPHS)
def test_polygraphy_reads_the_graph(graph: str, precision: str) -> None:
    spec = BUNDLE.spec(graph)
    read = polygraphy("inspect", "model", str(BUNDLE.graph_file(graph, precision)))
    assert read.returncode == 0, read.stdout + read.stderr
    assert f"Name: {graph} | ONNX Opset: 24" in read.stdout
    for tensor in (*spec.inputs, *spec.outputs):
        assert f"{tensor.name} [" in read.stdout
