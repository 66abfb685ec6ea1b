"""Networks as wide as the published ones, two blocks deep, become fp16 and bf16 engines: compiled, never executed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from arlon_export.export import export_bundle
from engine_builds import GPUS, build_engines
from full_width import NETWORKS, cut_checkpoint, graphs_of

pytestmark = pytest.mark.slow

LAYERS = {   # graph: (attention, cache updates)
    "text_encoder": (2, 0), "ar_prefix": (1, 4), "ar_step": (2, 4), "dit": (4, 0), "vae_decoder": (1, 0),
    "vae_encoder": (1, 0),
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Emptied at once: weights and engines are a gigabyte."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_cut_of_full_width_compiles(network: str, folder: Path) -> None:
    precisions = ("fp16", "bf16") if network == "ar" else ("fp16",)   # bf16 graphs have the same nodes
    checkpoint = cut_checkpoint(network, folder)
    export_bundle(checkpoint, folder / "bundle", precisions=precisions, only=graphs_of(network), compare_bytes=0)
    for precision in precisions:
        engines = build_engines(folder / "bundle", gpus=GPUS, precision=precision)
        assert engines.failed == {}
        assert {*engines.built} == {(graph, gpu) for graph in graphs_of(network) for gpu in GPUS}
        for (graph, _), built in engines.built.items():
            layers = built.entry.layers
            assert (layers.get("ATTENTION_INPUT", 0), layers.get("KV_CACHE_UPDATE", 0)) == LAYERS.get(graph, (0, 0))
