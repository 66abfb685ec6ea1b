"""Semantic injection (ARLON): coarse latents modulate the gated temporal branch (docs/spec.md 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arlon_rt.config import DiTConfig, InjectionConfig

NORM_EPS = 1e-6


class Adapter(nn.Module):
    """One latent adapter, F + fc2(gelu_tanh(fc1(F)))."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size, hidden)
        self.fc2 = nn.Linear(hidden, size)

    def forward(self, features: Tensor) -> Tensor:
        y: Tensor = features + self.fc2(F.gelu(self.fc1(features), approximate="tanh"))
        return y


class SemanticInjection(nn.Module):
    """Coarse latents -> (gamma, beta, alpha) of every injected layer; depends on neither the timestep nor the noise."""

    def __init__(self, config: DiTConfig, injection: InjectionConfig) -> None:
        super().__init__()
        layers = injection.layers
        if list(layers) != sorted(set(layers)) or not all(0 <= layer < config.depth for layer in layers):
            last = config.depth - 1
            raise ValueError(f"injection.layers is {layers}; it must name block pairs 0..{last}, rising, once each")
        size = config.hidden_size
        hidden = int(size * injection.adapter_ratio)
        self.patch_proj = nn.Conv3d(config.in_channels, size, config.patch_size, stride=config.patch_size)
        self.adapters = nn.ModuleList(Adapter(size, hidden) for _ in injection.layers)
        self.modulations = nn.ModuleList(nn.Linear(size, 3 * size) for _ in injection.layers)

    def reset_modulations(self) -> None:
        """Zero every modulation, so that the network starts as the plain one, bit for bit."""
        for modulation in self.modulations:
            assert isinstance(modulation, nn.Linear)
            nn.init.zeros_(modulation.weight)
            nn.init.zeros_(modulation.bias)

    def forward(self, coarse: Tensor) -> Tensor:
        """(batch, channel, frame, height, width), padded to whole patches -> (layer, batch, frame, patch, 3 * size)."""
        features = self.patch_proj(coarse.to(self.patch_proj.weight.dtype)).flatten(3).permute(0, 2, 3, 1)
        layers = []
        for adapter, modulation in zip(self.adapters, self.modulations, strict=True):
            features = adapter(features)
            layers.append(modulation(features))
        return torch.stack(layers)


def inject(branch: Tensor, features: Tensor) -> Tensor:
    """u + alpha * (LN(u) * (1 + gamma) + beta).

    Args:
        branch: u, the gated temporal branch before its residual sum (batch, frame, patch, size).
        features: gamma, beta, alpha side by side (batch or 1, frame, patch, 3 * size).
    """
    gamma, beta, alpha = features.chunk(3, dim=-1)
    return branch + alpha * (F.layer_norm(branch, branch.shape[-1:], eps=NORM_EPS) * (1 + gamma) + beta)
