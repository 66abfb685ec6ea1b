"""A PyTorch pipeline of training runs' checkpoints, to look at networks before they are exported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from arlon_export.modules.ar import TokenModel
from arlon_export.modules.stdit3 import STDiT3
from arlon_export.modules.vae import VideoVAE
from arlon_export.modules.vq import VQVAE, Encoder
from arlon_export.torch_pipeline import torch_pipeline
from arlon_rt.config import ModelConfig
from arlon_rt.pipeline import Pipeline
from demo.config import (
    VIDEO,
    ar_config,
    dit_config,
    injection_config,
    model_config,
    shipped_vq_config,
    vae_config,
    vq_config,
)
from demo.latents import LatentPool, encode_clip
from demo.train_text import load_text_encoder
from demo.training import load_averaged
from demo.world import render_clip

DEFAULTS: dict[str, Any] = {
    "num_frames": 68, "num_inference_steps": 10, "guidance_scale": 1.0, "ar_guidance_scale": 1.25,
    "temperature": 0.7, "top_k": 50, "top_p": 0.9,
}
"""Default options of the demo bundle."""
SAME_LATENTS = 0.05
"""Largest mean difference that bf16 arithmetic of another machine causes; latents have a deviation of about 1."""


def load_networks(out: Path, dit: str = "dit") -> tuple[ModelConfig, dict[str, nn.Module]]:
    """The configuration, and the networks with the averaged weights of the training runs in ``out``.

    The autoencoder gets the shift and scale of the latents in the pool. ``dit`` names the transformer's recipe and
    checkpoint.

    Raises:
        SystemExit: the pool's latents are not those of this autoencoder.
    """
    pool = LatentPool(out / "latents")
    pool.refresh()
    shift, scale = pool.statistics()
    model = model_config(shift, scale, dit)
    networks = {
        "text": load_text_encoder(out, "cpu")[1],
        "ar": load_averaged(out, "ar", TokenModel(ar_config()), "cpu"),
        "vq": load_vq(out),
        "dit": load_averaged(out, dit, STDiT3(dit_config(), injection_config(dit)), "cpu"),
        "vae": load_averaged(out, "autoencoder", VideoVAE(vae_config()), "cpu"),
    }
    check_latents(pool, networks["vae"])
    measured = VideoVAE(vae_config(shift, scale))  # training has shift 0 and scale 1
    networks["vae"].load_state_dict({"shift": measured.shift, "scale": measured.scale}, strict=False)
    return model, networks


def load_vq(out: Path) -> nn.Module:
    """The VQ-VAE that ships, with the small encoder in place of its own."""
    trained = load_averaged(out, "vq", VQVAE(vq_config()), "cpu").state_dict()
    small = load_averaged(out, "vq_encoder", Encoder(shipped_vq_config()), "cpu").state_dict()
    state = {key: value for key, value in trained.items() if not key.startswith("encoder.")}
    module = VQVAE(shipped_vq_config()).eval().requires_grad_(False)
    module.load_state_dict(state | {f"encoder.{key}": value for key, value in small.items()})
    return module


def check_latents(pool: LatentPool, vae: nn.Module) -> None:
    """Raise `SystemExit` unless ``vae`` encodes the pool's first clip to the latents in the pool.

    Latents of another encoder, or ones that were normalised already, would give a bundle whose shift and scale its
    transformer was not trained with. Such a bundle runs, with pale and wavering colours.
    """
    assert isinstance(vae, VideoVAE)
    encoded = encode_clip(vae, render_clip(pool.clips[0], VIDEO.height), "cpu").astype(np.float32)
    difference = float(np.abs(encoded - pool.latents[0]).mean())
    if difference > SAME_LATENTS:
        raise SystemExit(
            f"the latents in {pool.folder} differ by {difference:.2f} from those of autoencoder.pt for the same clip; "
            "make them again with `python -m demo.latents`, or use the autoencoder that encoded them"
        )


def open_trained(out: Path, dit: str = "dit") -> Pipeline:
    """A pipeline of the checkpoints in ``out``."""
    model, networks = load_networks(out, dit)
    return pipeline_of(model, networks, out / "tokenizer.model", DEFAULTS)


def pipeline_of(
    model: ModelConfig, networks: Mapping[str, nn.Module], tokenizer: Path, defaults: Mapping[str, Any]
) -> Pipeline:
    """A pipeline whose graphs are these PyTorch modules."""
    return torch_pipeline(model, networks.__getitem__, tokenizer, defaults)
