"""Networks as wide as the published ones, two blocks deep: exported, and held to torch within 1e-4."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from full_size_weights import FULL_SIZE, Published, write_folder

from arlon_export.checkpoint import Checkpoint, expected_shapes
from arlon_export.export import export_bundle
from arlon_export.published_config import with_statistics
from arlon_export.state_dict import open_state_dict
from arlon_export.watch import GraphDone
from arlon_rt.config import InjectionConfig, ModelConfig, VideoConfig
from arlon_rt.graphs import graph_specs


def cut(model: ModelConfig) -> ModelConfig:
    """The same widths with two blocks, a short vocabulary, and pictures of a few patches."""
    assert model.ar
    assert model.vq
    return dataclasses.replace(
        model,
        text=dataclasses.replace(model.text, num_layers=2, vocab_size=256),
        ar=dataclasses.replace(model.ar, num_layers=2),
        vq=dataclasses.replace(model.vq, num_res_blocks=1),
        dit=dataclasses.replace(model.dit, depth=1), injection=InjectionConfig(layers=(0,)),
        vae=dataclasses.replace(model.vae, layers_per_block=1, num_res_blocks=1),
        video=VideoConfig(height=16, width=24, segment_frames=34),
    )


CUT = cut(FULL_SIZE)


@pytest.mark.parametrize("network", ["text", "ar", "vq", "dit", "vae"])
def test_a_cut_of_full_width_agrees_with_torch(network: str, tmp_path: Path) -> None:
    shapes = expected_shapes(CUT, network)
    if network == "vae":
        del shapes["scale"], shapes["shift"]
    dtype = torch.bfloat16 if network == "text" else torch.float32
    write_folder(
        Published(option="", network=network, shapes=shapes, dtype=dtype), tmp_path / network, theta=CUT.dit.rope_theta
    )
    weights = open_state_dict(tmp_path / network)
    tokenizer = tmp_path / "spiece.model"
    tokenizer.write_bytes(b"pieces")
    checkpoint = Checkpoint(
        model=CUT, weights={network: with_statistics(weights, CUT.vae) if network == "vae" else weights},
        tokenizer=tokenizer, defaults={"num_frames": 17}, provenance={},
    )
    graphs = [name for name, spec in graph_specs(CUT).items() if spec.network == network]
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
