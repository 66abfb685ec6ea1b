"""The demo model's configuration: the tables of the recipes, and the sizes that two networks share."""

from __future__ import annotations

from typing import Any

from arlon_rt.bundle import from_json
from arlon_rt.config import (
    ARConfig,
    DiTConfig,
    FlowConfig,
    InjectionConfig,
    ModelConfig,
    TextConfig,
    VAEConfig,
    VideoConfig,
    VQConfig,
)
from demo.training import Recipe

VIDEO = VideoConfig(height=64, width=64, fps=24)


def table(recipe: str, name: str = "model") -> dict[str, Any]:
    return Recipe.load(recipe).tables[name]


def text_config() -> TextConfig:
    return from_json(TextConfig, table("text"), "text")


def vae_config(shift: list[float] | None = None, scale: list[float] | None = None) -> VAEConfig:
    """The autoencoder's configuration. Without ``shift`` and ``scale`` latents stay as they are."""
    measured = {"shift": shift or [0.0] * 4, "scale": scale or [1.0] * 4}
    return from_json(VAEConfig, {**table("autoencoder"), **measured}, "vae")


def vq_config(coarse: bool = False) -> VQConfig:
    return from_json(VQConfig, table("vq_coarse" if coarse else "vq"), "vq")


def shipped_vq_config() -> VQConfig:
    """The VQ-VAE's configuration in the bundle: with the small encoder of `demo.train_vq_encoder`."""
    return from_json(VQConfig, {**table("vq"), **table("vq_encoder")}, "vq")


def ar_config() -> ARConfig:
    joined = {"num_codes": vq_config().num_codes, "text_dim": text_config().d_model}
    return from_json(ARConfig, {**table("ar"), **joined}, "ar")


def dit_config() -> DiTConfig:
    text = text_config()
    joined = {"caption_channels": text.d_model, "model_max_length": text.max_length}
    return from_json(DiTConfig, {**table("dit"), **joined}, "dit")


def injection_config(dit: str = "dit") -> InjectionConfig:
    """The injection's configuration in the transformer recipe ``dit``, in which the variants differ."""
    return from_json(InjectionConfig, table(dit, "injection"), "injection")


def model_config(shift: list[float], scale: list[float], dit: str = "dit") -> ModelConfig:
    return ModelConfig(
        text=text_config(), dit=dit_config(), vae=vae_config(shift, scale), video=VIDEO, flow=FlowConfig(),
        ar=ar_config(), vq=shipped_vq_config(), injection=injection_config(dit),
    )
