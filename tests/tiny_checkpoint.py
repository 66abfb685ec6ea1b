"""The smallest checkpoint with every network: random weights, widths of 8 to 32; the fixture of the export's tests."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from arlon_export.checkpoints.checkpoint import NETWORKS, build_module, write_checkpoint, write_weights
from arlon_rt.config import (
    ARConfig,
    DiTConfig,
    InjectionConfig,
    ModelConfig,
    TextConfig,
    VAEConfig,
    VideoConfig,
    VQConfig,
)

DEFAULTS = {
    "num_frames": 17, "num_inference_steps": 2, "guidance_scale": 3.0, "ar_guidance_scale": 1.0,
    "temperature": 1.0, "top_k": 8, "top_p": 0.9,
}


def tiny_model() -> ModelConfig:
    """24x32 pixels at most, 16-token prompts, one pair of blocks, two levels of each autoencoder."""
    return ModelConfig(
        text=TextConfig(vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, max_length=16),
        ar=ARConfig(
            num_codes=32, hidden_size=16, num_layers=2, num_heads=2, ffn_size=32, text_dim=16,
            grid=(6, 3, 4), max_length=96, max_top_k=8,
        ),
        vq=VQConfig(
            num_codes=32, code_dim=8, stride=(2, 2, 2), channels=(8, 8), num_res_blocks=1, norm_groups=4,
            has_encoder=True,
        ),
        dit=DiTConfig(hidden_size=16, depth=1, num_heads=2, caption_channels=16, model_max_length=16),
        injection=InjectionConfig(layers=(0,)),
        vae=VAEConfig(
            block_out_channels=(8, 8, 8), layers_per_block=1, norm_num_groups=4, scaling_factor=0.18215,
            filters=8, num_res_blocks=1, channel_multipliers=(1, 1, 2), temporal_downsample=(True, True),
        ),
        video=VideoConfig(height=24, width=32, segment_frames=34),
    )


def write_tiny_checkpoint(folder: Path, *, tokenizer: Path | None = None, half: bool = True) -> Path:
    """Write a random checkpoint; no parameter is zero, so that nothing is hidden by a zero initialisation."""
    torch.manual_seed(0)
    model = tiny_model()
    write_checkpoint(folder, model=model, defaults=DEFAULTS, provenance={"trained_on": "nothing"}, tokenizer=tokenizer)
    for network in NETWORKS:
        module = build_module(model, network)
        fill(module)
        write_weights(folder, network, module.state_dict(), half=half)
    return folder


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Random values in place of zeros and ones."""
    for parameter in module.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
