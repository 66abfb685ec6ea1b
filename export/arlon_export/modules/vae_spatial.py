"""The 2-D half of the video autoencoder: diffusers' AutoencoderKL, one frame at a time, with its key names."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arlon_rt.config import VAEConfig

EPSILON = 1e-6


@dataclass(frozen=True)
class Moments:
    """A diagonal Gaussian posterior over latents."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def split(cls, parameters: Tensor) -> Moments:
        """Mean and log-variance from their concatenation along the channel axis (1)."""
        mean, logvar = parameters.chunk(2, dim=1)
        return cls(mean, logvar.clamp(-30.0, 20.0))

    def sample(self) -> Tensor:
        return self.mean + torch.exp(0.5 * self.logvar) * torch.randn_like(self.mean)

    def kl(self) -> Tensor:
        """Mean over all elements of the divergence from a standard normal distribution, in nats; fp32."""
        mean, logvar = self.mean.float(), self.logvar.float()
        return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()


class ResBlock(nn.Module):
    """Two 3x3 convolutions with group norm and SiLU before each, and a skip; (n, c_in, h, w) -> (n, c_out, h, w)."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in, eps=EPSILON)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels_out, eps=EPSILON)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        skip: Tensor = self.conv_shortcut(x)
        return skip + h


class PixelAttention(nn.Module):
    """Self-attention with one head over all pixels of a frame, as wide as its channels (512 in the published one)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=EPSILON)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.group_norm(x).flatten(2).transpose(1, 2).unsqueeze(1)
        mixed = F.scaled_dot_product_attention(self.to_q(pixels), self.to_k(pixels), self.to_v(pixels))
        out: Tensor = self.to_out[0](mixed).squeeze(1).transpose(1, 2)
        return x + out.reshape(x.shape)


class MiddleBlock(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResBlock(channels, channels, groups) for _ in range(2)])
        self.attentions = nn.ModuleList([PixelAttention(channels, groups)])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.resnets[1](self.attentions[0](self.resnets[0](x)))
        return out


class Downsample(nn.Module):
    """Halve height and width: one row and column of zeros below and right, then a strided 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class DownBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, layers: int, groups: int, halve: bool) -> None:
        super().__init__()
        widths = [channels_in] + [channels_out] * layers
        self.resnets = nn.ModuleList([ResBlock(a, b, groups) for a, b in itertools.pairwise(widths)])
        self.downsamplers = nn.ModuleList([Downsample(channels_out)] if halve else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, layers: int, groups: int, double: bool) -> None:
        super().__init__()
        widths = [channels_in] + [channels_out] * layers
        self.resnets = nn.ModuleList([ResBlock(a, b, groups) for a, b in itertools.pairwise(widths)])
        self.upsamplers = nn.ModuleList([Upsample(channels_out)] if double else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Frames (n, 3, H, W) -> posterior parameters (n, 2·latent, h, w)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList([
            DownBlock(widths[max(i - 1, 0)], width, config.layers_per_block, groups, halve=i < len(widths) - 1)
            for i, width in enumerate(widths)
        ])
        self.mid_block = MiddleBlock(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, frames: Tensor) -> Tensor:
        x: Tensor = self.conv_in(frames)
        for block in self.down_blocks:
            x = block(x)
        x = self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))
        return x


class Decoder(nn.Module):
    """Latents (n, latent, h, w) -> frames (n, 3, H, W)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MiddleBlock(widths[0], groups)
        self.up_blocks = nn.ModuleList([
            UpBlock(widths[max(i - 1, 0)], width, config.layers_per_block + 1, groups, double=i < len(widths) - 1)
            for i, width in enumerate(widths)
        ])
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x: Tensor = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            x = block(x)
        x = self.conv_out(F.silu(self.conv_norm_out(x)))
        return x


class FrameAutoencoder(nn.Module):
    """AutoencoderKL with diffusers' key names; its latents are unscaled."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    def encode(self, frames: Tensor) -> Moments:
        """Frames (n, 3, H, W) in -1..1 -> posterior over latents (n, latent, h, w)."""
        return Moments.split(self.quant_conv(self.encoder(frames)))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (n, latent, h, w) -> frames (n, 3, H, W), about -1..1."""
        frames: Tensor = self.decoder(self.post_quant_conv(latents))
        return frames


class SpatialVAE(nn.Module):
    """The frame autoencoder over videos, with Open-Sora's latent scaling factor (docs/spec.md 5.6)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.module = FrameAutoencoder(config)
        self.scaling_factor = config.scaling_factor

    def encode(self, pixels: Tensor) -> Moments:
        """Pixels (batch, 3, frame, H, W) -> posterior over scaled latents (batch, latent, frame, h, w)."""
        batch = pixels.shape[0]
        moments = self.module.encode(pixels.transpose(1, 2).flatten(0, 1))
        mean, logvar = (_video(m, batch) for m in (moments.mean, moments.logvar))
        return Moments(mean * self.scaling_factor, logvar + 2.0 * math.log(self.scaling_factor))

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (batch, latent, frame, h, w) -> pixels (batch, 3, frame, H, W)."""
        batch = latents.shape[0]
        frames = self.module.decode(latents.transpose(1, 2).flatten(0, 1) / self.scaling_factor)
        return _video(frames, batch)


def _video(frames: Tensor, batch: int) -> Tensor:
    """(batch·frame, channel, height, width) -> (batch, channel, frame, height, width)."""
    return frames.reshape(batch, -1, *frames.shape[1:]).transpose(1, 2)
