"""The latent VQ-VAE: normalised video latents <-> a small grid of codes (docs/spec.md 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arlon_rt.config import VQConfig

COMMITMENT_WEIGHT = 0.25
DECAY = 0.99
"""Decay of the running code statistics per training step."""
DEAD_SHARE = 0.05
"""A code that is used less than this share of the average is dead and takes a vector of the current batch."""


@dataclass(frozen=True)
class VQOutput:
    """The result of a training pass."""

    coarse: Tensor
    """(batch, latent, frame, height, width), as large as the latents. Gradients go straight through the codes to the
    encoder."""
    tokens: Tensor
    """(batch, code_frame, code_height, code_width) int64."""
    loss: Tensor
    """The weighted commitment loss; the caller adds the reconstruction loss."""


def stage_strides(config: VQConfig) -> list[tuple[int, int, int]]:
    """Stride of each stage along (frame, height, width): an axis of stride 2^k is halved in the last k stages.

    Raises:
        ValueError: a stride is no power of two, or there are fewer stages than halvings.
    """
    stages = len(config.channels)
    halvings = [int(math.log2(s)) if s > 0 else -1 for s in config.stride]
    for stride, k in zip(config.stride, halvings, strict=True):
        if stride != 2**k:
            raise ValueError(f"vq.stride is {config.stride}; each entry must be a power of two")
        if k > stages:
            raise ValueError(f"vq.channels has {stages} stages; stride {stride} needs {k} or more")
    t, h, w = ([2 if i >= stages - k else 1 for i in range(stages)] for k in halvings)
    return list(zip(t, h, w, strict=True))


class ResBlock(nn.Module):
    """Two 3-D convolutions with group norm and SiLU before each, and a skip; (b, c, t, h, w) -> the same."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return x + h


class Upsample(nn.Module):
    """Nearest neighbour by ``stride``, then a convolution."""

    def __init__(self, channels_in: int, channels_out: int, stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.scale = tuple(float(s) for s in stride)
        self.conv = nn.Conv3d(channels_in, channels_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if max(self.scale) > 1.0:
            x = F.interpolate(x, scale_factor=self.scale, mode="nearest")
        x = self.conv(x)
        return x


class Encoder(nn.Module):
    """Latents (b, latent, t, h, w), sizes divisible by the stride -> vectors (b, code_dim, t', h', w')."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = config.encoder_channels or config.channels
        self.conv_in = nn.Conv3d(config.latent_channels, widths[0], 3, padding=1)
        self.stages = nn.ModuleList([
            nn.Sequential(
                nn.Conv3d(widths[max(i - 1, 0)], width, 3, stride=stride, padding=1),
                *(ResBlock(width, config.norm_groups) for _ in range(config.num_res_blocks)),
            )
            for i, (width, stride) in enumerate(zip(widths, stage_strides(config), strict=True))
        ])
        self.norm_out = nn.GroupNorm(config.norm_groups, widths[-1])
        self.conv_out = nn.Conv3d(widths[-1], config.code_dim, 1)

    def forward(self, latents: Tensor) -> Tensor:
        x: Tensor = self.conv_in(latents)
        for stage in self.stages:
            x = stage(x)
        x = self.conv_out(F.silu(self.norm_out(x)))
        return x


class Decoder(nn.Module):
    """Vectors (b, code_dim, t', h', w') -> coarse latents (b, latent, t, h, w)."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths, strides = config.channels[::-1], stage_strides(config)[::-1]
        self.conv_in = nn.Conv3d(config.code_dim, widths[0], 3, padding=1)
        self.stages = nn.ModuleList([
            nn.Sequential(
                *(ResBlock(width, config.norm_groups) for _ in range(config.num_res_blocks)),
                Upsample(width, widths[min(i + 1, len(widths) - 1)], stride),
            )
            for i, (width, stride) in enumerate(zip(widths, strides, strict=True))
        ])
        self.norm_out = nn.GroupNorm(config.norm_groups, widths[-1])
        self.conv_out = nn.Conv3d(widths[-1], config.latent_channels, 3, padding=1)

    def forward(self, vectors: Tensor) -> Tensor:
        x: Tensor = self.conv_in(vectors)
        for stage in self.stages:
            x = stage(x)
        x = self.conv_out(F.silu(self.norm_out(x)))
        return x


class Codebook(nn.Module):
    """Codes that follow the running mean of the vectors that choose them; training seeds dead codes from the batch.

    All codes of a new codebook are dead, so the first training batch seeds them.
    """

    weight: Tensor
    usage: Tensor
    total: Tensor

    def __init__(self, num_codes: int, code_dim: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(num_codes, code_dim))
        self.register_buffer("usage", torch.zeros(num_codes))
        self.register_buffer("total", torch.zeros(num_codes, code_dim))

    def nearest(self, vectors: Tensor) -> Tensor:
        """Index (n,) of the code closest to each of the vectors (n, code_dim); Euclidean, fp32."""
        with torch.autocast(vectors.device.type, enabled=False):
            return self.nearest_in_fp32(vectors)

    def nearest_in_fp32(self, vectors: Tensor) -> Tensor:
        """`nearest` without its autocast context, for graphs."""
        codes = self.weight.float()
        distances = codes.square().sum(1) - 2.0 * vectors.float() @ codes.T
        return distances.argmin(dim=1)

    @torch.no_grad()
    def seed_dead(self, vectors: Tensor) -> None:
        """Give dead codes random vectors (n, code_dim) of this batch and an average usage."""
        average = vectors.shape[0] / self.usage.shape[0]
        dead = (self.usage < DEAD_SHARE * average).nonzero().squeeze(1)
        chosen = torch.randint(vectors.shape[0], dead.shape, device=vectors.device)
        self.weight[dead] = vectors[chosen]
        self.usage[dead] = average
        self.total[dead] = vectors[chosen] * average

    @torch.no_grad()
    def follow(self, vectors: Tensor, index: Tensor) -> None:
        """Move each used code towards the mean of the vectors (n, code_dim) that chose it; index (n,)."""
        counts = torch.bincount(index, minlength=self.usage.shape[0]).to(self.usage.dtype)
        self.usage.lerp_(counts, 1.0 - DECAY)
        self.total.lerp_(torch.zeros_like(self.total).index_add_(0, index, vectors), 1.0 - DECAY)
        self.weight.copy_(self.total / self.usage.clamp(min=1e-6).unsqueeze(1))

    def forward(self, index: Tensor) -> Tensor:
        """Codes (…, code_dim) of the indices (…)."""
        return F.embedding(index, self.weight)


class VQVAE(nn.Module):
    """Normalised latents <-> tokens; the decoded tokens are the coarse latents that guide the DiT."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.codebook = Codebook(config.num_codes, config.code_dim)
        self.decoder = Decoder(config)

    def vectors(self, latents: Tensor) -> Tensor:
        """Latents (b, latent, t, h, w) -> unquantised vectors (b, t', h', w', code_dim), fp32.

        Sizes that the stride does not divide are padded at the end by repeating the last row, column or frame.
        """
        pt, ph, pw = (-size % stride for size, stride in zip(latents.shape[2:], self.config.stride, strict=True))
        padded = F.pad(latents, (0, pw, 0, ph, 0, pt), mode="replicate")
        vectors: Tensor = self.encoder(padded)
        return vectors.float().movedim(1, -1)

    def encode(self, latents: Tensor) -> Tensor:
        """Latents (b, latent, t, h, w) -> tokens (b, ceil(t/st), ceil(h/sh), ceil(w/sw)) int64."""
        vectors = self.vectors(latents)
        return self.codebook.nearest(vectors.flatten(0, -2)).reshape(vectors.shape[:-1])

    def encode_whole(self, latents: Tensor) -> Tensor:
        """`encode` of latents whose sizes the stride divides; the vq_encoder graph."""
        vectors = self.encoder(latents.to(self.encoder.conv_in.weight.dtype)).float().movedim(1, -1)
        return self.codebook.nearest_in_fp32(vectors.flatten(0, -2)).reshape(vectors.shape[:-1])

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (b, t', h', w') -> coarse latents (b, latent, st·t', sh·h', sw·w'), fp32; the caller crops."""
        coarse: Tensor = self.decoder(self.codebook(tokens).movedim(-1, 1))
        return coarse.float()

    def forward(self, latents: Tensor) -> VQOutput:
        """Latents (b, latent, t, h, w) through the codes and back; in training mode the codebook learns too."""
        vectors = self.vectors(latents)
        flat = vectors.flatten(0, -2)
        if self.training:
            self.codebook.seed_dead(flat.detach())
        index = self.codebook.nearest(flat)
        codes = self.codebook(index).reshape(vectors.shape).detach()
        if self.training:
            self.codebook.follow(flat.detach(), index)
        straight_through = vectors + (codes - vectors).detach()
        coarse: Tensor = self.decoder(straight_through.movedim(-1, 1))
        t, h, w = latents.shape[2:]
        return VQOutput(
            coarse=coarse[:, :, :t, :h, :w].float(),
            tokens=index.reshape(vectors.shape[:-1]),
            loss=COMMITMENT_WEIGHT * F.mse_loss(vectors, codes),
        )
