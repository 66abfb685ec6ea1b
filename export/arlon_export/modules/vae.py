"""The video autoencoder: 17 frames <-> 5 latents, each chunk by itself (Open-Sora v1.2, docs/spec.md 5.6)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from arlon_export.modules.vae_spatial import Moments, SpatialVAE
from arlon_export.modules.vae_temporal import TemporalVAE
from arlon_rt.config import VAEConfig
from arlon_rt.networks import decoder_frame_index, encoder_frame_index


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
        """Latents of the temporal autoencoder -> latents of the DiT; fp32."""
        return (latents.float() - self.shift.float()) / self.scale.float()

    def denormalise(self, latents: Tensor) -> Tensor:
        """The inverse of `normalise`; fp32."""
        return latents.float() * self.scale.float() + self.shift.float()

    def encode_moments(self, pixels: Tensor, frame_index: Tensor, sample: bool = False) -> Moments:
        """Posterior over the *un-normalised* latents of one chunk; ``sample`` also samples the frame autoencoder.

        ``pixels`` (batch, 3, n, H, W); ``frame_index`` (time_stride·chunk) is that of `encoder_frame_index`.
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
        c = self.config
        return torch.cat([
            self.encode_chunk(chunk, torch.from_numpy(encoder_frame_index(chunk.shape[2], c)).to(pixels.device))
            for chunk in torch.split(pixels, c.chunk_frames, dim=2)
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
            self.decode_chunk(chunk, torch.from_numpy(decoder_frame_index(length, c)).to(latents.device))
            for chunk, length in zip(torch.split(latents, c.chunk_latents, dim=2), lengths, strict=True)
        ], dim=2)

    def decode_pixels(self, latents: Tensor, frame_index: Tensor) -> Tensor:
        """Normalised latents (1, 4, chunk, h, w) -> ``pixels`` (frame, 3, H, W) of the vae_decoder graph."""
        return self.decode_chunk(latents, frame_index).squeeze(0).transpose(0, 1)

    def encode_pixels(self, pixels: Tensor, frame_index: Tensor) -> Tensor:
        """``pixels`` (frame, 3, H, W) of the vae_encoder graph -> normalised latents (1, 4, chunk, h, w)."""
        return self.encode_chunk(pixels.transpose(0, 1).unsqueeze(0), frame_index)
