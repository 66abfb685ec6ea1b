"""Networks as wide as the published ones, two blocks deep: exported, and held to torch within 1e-4."""

from __future__ import annotations

from pathlib import Path

import pytest

from arlon_export.events import GraphDone
from arlon_export.export import export_bundle
from full_width import NETWORKS, cut_checkpoint, graphs_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("network", NETWORKS)
def test_a_cut_of_full_width_agrees_with_torch(network: str, tmp_path: Path) -> None:
    checkpoint, graphs = cut_checkpoint(network, tmp_path), graphs_of(network)
    done: list[GraphDone] = []
    bundle = export_bundle(
        checkpoint, tmp_path / "bundle", precisions=["fp32"], only=graphs, on_graph=done.append, compare_bytes=6 << 30
    )
    assert [f for f in bundle.verify() if f.where in bundle.manifest.files] == []
    for graph in done:
        assert graph.agreement is not None
        assert (graph.agreement.not_compared, graph.agreement.unproven) == ("", ())
        floats = [e for name, e in graph.agreement.errors.items() if name not in ("frames", "next_token")]
        assert max(floats, default=0.0) < 1e-4
