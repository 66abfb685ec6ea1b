"""The video autoencoder: 17 frames <-> 5 latents, chunk by chunk, every chunk by itself (Open-Sora v1.2, spec 5.6)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from arlon_export.modules.vae_spatial import Moments, SpatialVAE
from arlon_export.modules.vae_temporal import TemporalVAE
from arlon_rt.config import VAEConfig


def padding_frames(num_frames: int, stride: int) -> int:
    """Frames in front of a chunk that make ``num_frames`` a multiple of ``stride``."""
    return -num_frames % stride


def decoder_frame_index(num_frames: int, stride: int) -> Tensor:
    """Which decoded frames of a chunk are its ``num_frames`` frames: 3, 4, … for 17 frames, stride 4."""
    padding = padding_frames(num_frames, stride)
    return torch.arange(padding, padding + num_frames)


def encoder_frame_index(num_frames: int, stride: int) -> Tensor:
    """Frame + 1 at each place of the padded chunk, 0 for padding: 0, 0, 0, 1, …, 17 for 17 frames, stride 4."""
    return torch.arange(1 - padding_frames(num_frames, stride), num_frames + 1).clamp(min=0)


def pixels_to_frames(pixels: Tensor) -> Tensor:
    """Pixels (frame, 3, height, width) in -1..1 -> uint8 (frame, height, width, 3); the cast comes last."""
    levels = (pixels.permute(0, 2, 3, 1).float() * 127.5 + 127.5).clamp(0.0, 255.0)
    return levels.round().to(torch.uint8)


def frames_to_pixels(frames: Tensor) -> Tensor:
    """uint8 frames (frame, height, width, 3) -> pixels (frame, 3, height, width) in -1..1; the cast comes first."""
    return frames.float().permute(0, 3, 1, 2) / 127.5 - 1.0


class VideoVAE(nn.Module):
    """Pixels (batch, 3, frame, H, W) in -1..1 <-> normalised latents (batch, 4, latent, h, w)."""

    scale: Tensor
    shift: Tensor

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.spatial_vae = SpatialVAE(config)
        self.temporal_vae = TemporalVAE(config)
        self.register_buffer("scale", torch.tensor(config.scale).reshape(1, -1, 1, 1, 1))
        self.register_buffer("shift", torch.tensor(config.shift).reshape(1, -1, 1, 1, 1))

    @property
    def dtype(self) -> torch.dtype:
        return self.spatial_vae.module.post_quant_conv.weight.dtype

    def normalise(self, latents: Tensor) -> Tensor:
        """Latents as the temporal stage makes them -> latents as the DiT sees them; fp32."""
        return (latents.float() - self.shift.float()) / self.scale.float()

    def denormalise(self, latents: Tensor) -> Tensor:
        """The inverse of `normalise`; fp32."""
        return latents.float() * self.scale.float() + self.shift.float()

    def encode_moments(self, pixels: Tensor, frame_index: Tensor, sample: bool = False) -> Moments:
        """Posterior over the *un-normalised* latents of one chunk; with ``sample`` the frame stage is sampled too.

        ``pixels`` (batch, 3, n, H, W); ``frame_index`` (time_stride·chunk) as `encoder_frame_index` makes it.
        """
        moments = self.spatial_vae.encode(pixels.to(self.dtype))
        frames = moments.sample() if sample else moments.mean
        padded = torch.cat([torch.zeros_like(frames[:, :, :1]), frames], dim=2)
        return self.temporal_vae.encode(padded.index_select(2, frame_index))

    def encode_chunk(self, pixels: Tensor, frame_index: Tensor) -> Tensor:
        """Pixels (batch, 3, n, H, W) -> normalised latents (batch, 4, chunk, h, w), posterior means; fp32."""
        return self.normalise(self.encode_moments(pixels, frame_index).mean)

    def decode_chunk(self, latents: Tensor, frame_index: Tensor) -> Tensor:
        """Normalised latents (batch, 4, chunk, h, w) -> pixels (batch, 3, len(frame_index), H, W)."""
        frames = self.temporal_vae.decode(self.denormalise(latents).to(self.dtype))
        return self.spatial_vae.decode(frames.index_select(2, frame_index))

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (batch, 3, frame, H, W) -> normalised latents (batch, 4, latent, h, w), chunk by chunk."""
        return torch.cat([
            self.encode_chunk(chunk, encoder_frame_index(chunk.shape[2], self.config.time_stride).to(pixels.device))
            for chunk in torch.split(pixels, self.config.chunk_frames, dim=2)
        ], dim=2)

    def decode(self, latents: Tensor, num_frames: int) -> Tensor:
        """Normalised latents (batch, 4, latent, h, w) -> pixels (batch, 3, ``num_frames``, H, W), chunk by chunk.

        Raises:
            ValueError: the latents are not those of ``num_frames`` frames.
        """
        c = self.config
        chunks, rest = divmod(num_frames, c.chunk_frames)
        needed = chunks * c.chunk_latents - (-rest // c.time_stride)
        if latents.shape[2] != needed:
            raise ValueError(f"latents has {latents.shape[2]} frames; num_frames {num_frames} needs {needed}")
        lengths = [c.chunk_frames] * chunks + [rest] * (rest > 0)
        return torch.cat([
            self.decode_chunk(chunk, decoder_frame_index(length, c.time_stride).to(latents.device))
            for chunk, length in zip(torch.split(latents, c.chunk_latents, dim=2), lengths, strict=True)
        ], dim=2)

    def decode_pixels(self, latents: Tensor, frame_index: Tensor) -> Tensor:
        """Normalised latents (1, 4, chunk, h, w) -> ``pixels`` (frame, 3, H, W) of the vae_decoder graph."""
        return self.decode_chunk(latents, frame_index).squeeze(0).transpose(0, 1)

    def encode_pixels(self, pixels: Tensor, frame_index: Tensor) -> Tensor:
        """``pixels`` (frame, 3, H, W) of the vae_encoder graph -> normalised latents (1, 4, chunk, h, w)."""
        return self.encode_chunk(pixels.transpose(0, 1).unsqueeze(0), frame_index)

    def decode_frames(self, latents: Tensor, frame_index: Tensor) -> Tensor:
        """The vae_decoder graph: latents (1, 4, chunk, h, w) -> uint8 frames (frame, H, W, 3)."""
        return pixels_to_frames(self.decode_pixels(latents, frame_index))

    def encode_frames(self, frames: Tensor, frame_index: Tensor) -> Tensor:
        """The vae_encoder graph: uint8 frames (frame, H, W, 3) -> latents (1, 4, chunk, h, w)."""
        return self.encode_pixels(frames_to_pixels(frames), frame_index)
