"""The temporal half of the video autoencoder: causal 3-D convolutions over frame latents (docs/spec.md 5.6)."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from arlon_export.modules.vae_spatial import Moments
from arlon_rt.config import VAEConfig


class CausalConv3d(nn.Module):
    """A 3-D convolution that sees no later frame: in time, all padding comes before the first frame."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        space = kernel // 2
        self.conv = nn.Conv3d(
            channels_in, channels_out, kernel, stride=(stride, 1, 1), padding=(0, space, space), bias=bias
        )
        self.front = kernel - stride

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 0, 0, 0, self.front, 0)) if self.front else x)
        return out


class CausalResBlock(nn.Module):
    """Two causal convolutions with group norm and SiLU before each, and a skip."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in)
        self.conv1 = CausalConv3d(channels_in, channels_out, 3, bias=False)
        self.norm2 = nn.GroupNorm(groups, channels_out)
        self.conv2 = CausalConv3d(channels_out, channels_out, 3, bias=False)
        self.conv3 = (
            CausalConv3d(channels_in, channels_out, 1, bias=False) if channels_in != channels_out else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        skip: Tensor = self.conv3(x)
        return skip + h


def _res_blocks(channels_in: int, channels_out: int, config: VAEConfig) -> nn.Sequential:
    widths = [channels_in] + [channels_out] * config.num_res_blocks
    groups = config.norm_num_groups
    return nn.Sequential(*(CausalResBlock(a, b, groups) for a, b in itertools.pairwise(widths)))


def _widths(config: VAEConfig) -> list[int]:
    return [config.filters * m for m in config.channel_multipliers]


class TemporalEncoder(nn.Module):
    """Frame latents (batch, latent, frame, h, w) -> features (batch, 2·embed, frame/stride, h, w)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = _widths(config)
        self.conv_in = CausalConv3d(config.latent_channels, widths[0], 3, bias=False)
        self.block_res_blocks = nn.ModuleList(
            [_res_blocks(widths[max(i - 1, 0)], width, config) for i, width in enumerate(widths)]
        )
        self.conv_blocks = nn.ModuleList([
            CausalConv3d(width, width, 3, stride=2) if halve else nn.Identity()
            for width, halve in zip(widths, config.temporal_downsample, strict=False)
        ])
        self.res_blocks = _res_blocks(widths[-1], widths[-1], config)
        self.norm1 = nn.GroupNorm(config.norm_num_groups, widths[-1])
        self.conv2 = CausalConv3d(widths[-1], 2 * config.embed_dim, 1)

    def forward(self, latents: Tensor) -> Tensor:
        x: Tensor = self.conv_in(latents)
        for i, blocks in enumerate(self.block_res_blocks):
            x = blocks(x)
            if i < len(self.conv_blocks):
                x = self.conv_blocks[i](x)
        x = self.conv2(F.silu(self.norm1(self.res_blocks(x))))
        return x


class TemporalDecoder(nn.Module):
    """Features (batch, embed, chunk, h, w) -> frame latents (batch, latent, stride·chunk, h, w)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = _widths(config)
        self.conv1 = CausalConv3d(config.embed_dim, widths[-1], 3)
        self.res_blocks = _res_blocks(widths[-1], widths[-1], config)
        deeper = [*widths[1:], widths[-1]]
        self.block_res_blocks = nn.ModuleList(
            [_res_blocks(a, b, config) for a, b in zip(deeper, widths, strict=True)]
        )
        self.conv_blocks = nn.ModuleList([
            CausalConv3d(width, 2 * width, 3) if double else nn.Identity()
            for width, double in zip(widths[1:], config.temporal_downsample, strict=True)
        ])
        self.temporal_downsample = config.temporal_downsample
        self.norm1 = nn.GroupNorm(config.norm_num_groups, widths[0])
        self.conv_out = CausalConv3d(widths[0], config.latent_channels, 3)

    def forward(self, features: Tensor) -> Tensor:
        x: Tensor = self.res_blocks(self.conv1(features))
        for i in reversed(range(len(self.block_res_blocks))):
            x = self.block_res_blocks[i](x)
            if i > 0 and self.temporal_downsample[i - 1]:
                x = frames_from_channels(self.conv_blocks[i - 1](x))
        x = self.conv_out(F.silu(self.norm1(x)))
        return x


def frames_from_channels(x: Tensor) -> Tensor:
    """(batch, 2·channel, frame, h, w) -> (batch, channel, 2·frame, h, w); channel index = 2·c + frame parity."""
    batch, channels, frames, height, width = x.shape
    pairs = x.reshape(batch, channels // 2, 2, frames, height, width)
    return pairs.transpose(2, 3).reshape(batch, channels // 2, 2 * frames, height, width)


class TemporalVAE(nn.Module):
    """Frame latents <-> video latents, ``time_stride`` frames each. The caller pads to whole latents."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.encoder = TemporalEncoder(config)
        self.quant_conv = CausalConv3d(2 * config.embed_dim, 2 * config.latent_embed_dim, 1)
        self.post_quant_conv = CausalConv3d(config.latent_embed_dim, config.embed_dim, 1)
        self.decoder = TemporalDecoder(config)

    def encode(self, latents: Tensor) -> Moments:
        """Frame latents (batch, latent, time_stride·chunk, h, w) -> posterior (batch, embed, chunk, h, w)."""
        return Moments.split(self.quant_conv(self.encoder(latents)))

    def decode(self, latents: Tensor) -> Tensor:
        """Video latents (batch, embed, chunk, h, w) -> frame latents (batch, latent, time_stride·chunk, h, w)."""
        frames: Tensor = self.decoder(self.post_quant_conv(latents))
        return frames
