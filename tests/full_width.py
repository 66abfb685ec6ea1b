"""Networks as wide as the published ones, two blocks deep, with random weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from full_size_weights import FULL_SIZE, Published, write_folder

from arlon_export.checkpoints.checkpoint import Checkpoint, expected_shapes
from arlon_export.checkpoints.published_config import with_statistics
from arlon_export.checkpoints.state_dict import open_state_dict
from arlon_rt.config import InjectionConfig, ModelConfig, VideoConfig
from arlon_rt.graphs import graph_specs

NETWORKS = ("text", "ar", "vq", "dit", "vae")


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


def cut_checkpoint(network: str, folder: Path) -> Checkpoint:
    """Random weights of one network of `CUT`, written below ``folder``."""
    shapes = expected_shapes(CUT, network)
    if network == "vae":
        del shapes["scale"], shapes["shift"]
    dtype = torch.bfloat16 if network == "text" else torch.float32
    published = Published(option="", network=network, shapes=shapes, dtype=dtype)
    write_folder(published, folder / network, theta=CUT.dit.rope_theta)
    weights = open_state_dict(folder / network)
    tokenizer = folder / "spiece.model"
    tokenizer.write_bytes(b"pieces")
    return Checkpoint(
        model=CUT, weights={network: with_statistics(weights, CUT.vae) if network == "vae" else weights},
        tokenizer=tokenizer, defaults={"num_frames": 17}, provenance={},
    )


def graphs_of(network: str) -> list[str]:
    """The graphs that a network of `CUT` becomes."""
    return [name for name, spec in graph_specs(CUT).items() if spec.network == network]
