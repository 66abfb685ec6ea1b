"""NVIDIA's Polygraphy takes every graph that ships: it reads their structure and runs them in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from polygraphy.tools import main

from arlon_export.onnx_graphs.feeds import opt_sizes, shape
from arlon_rt.bundle import Bundle, demo_bundle_path

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]   # its own: 0.50

BUNDLE = Bundle.open(demo_bundle_path())
GRAPHS = [pytest.param(g, p, id=f"{g}.{p}") for g, sets in BUNDLE.manifest.graphs.items() for p in sets]


Polygraphy = Callable[..., str]


@pytest.fixture
def polygraphy(capfd: pytest.CaptureFixture[str]) -> Polygraphy:
    """Runs the command in this process, which must succeed, and returns what it printed."""
    def run(*arguments: str) -> str:
        code = main(arguments)
        printed = "".join(capfd.readouterr())
        assert code == 0, printed
        return printed

    return run


@pytest.mark.parametrize(("graph", "precision"), GRAPHS)
def test_polygraphy_runs_the_graph(polygraphy: Polygraphy, graph: str, precision: str) -> None:
    spec = BUNDLE.spec(graph)
    sizes = opt_sizes(BUNDLE.model, spec)
    shapes = [f"{t.name}:[{','.join(map(str, shape(t, sizes)))}]" for t in spec.inputs]
    ran = polygraphy("run", str(BUNDLE.graph_file(graph, precision)), "--onnxrt", "--input-shapes", *shapes)
    assert "PASSED" in ran
    assert all(t.name in ran for t in spec.outputs)


@pytest.mark.parametrize(("graph", "precision"), GRAPHS)
def test_polygraphy_reads_the_graph(polygraphy: Polygraphy, graph: str, precision: str) -> None:
    spec = BUNDLE.spec(graph)
    read = polygraphy("inspect", "model", str(BUNDLE.graph_file(graph, precision)))
    assert f"Name: {graph} | ONNX Opset: 24" in read
    for tensor in (*spec.inputs, *spec.outputs):
        assert f"{tensor.name} [" in read
