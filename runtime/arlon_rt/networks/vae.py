"""The video autoencoder, chunk by chunk: from latents to frames, from frames to latents (docs/spec.md 5.6)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from arlon_rt.backends import Session
from arlon_rt.config import VAEConfig


def decoder_frame_index(num_frames: int, config: VAEConfig) -> NDArray[np.int64]:
    """Indices of a chunk's real frames among its decoded ones: the last ``num_frames``, after the padding.

    17 frames are 5 latents, which decode to 20 frames: 3 .. 19.
    """
    return np.arange(-num_frames % config.time_stride, _padded(num_frames, config), dtype=np.int64)


def encoder_frame_index(num_frames: int, config: VAEConfig) -> NDArray[np.int64]:
    """The frame at each place of a padded chunk: 0 is the zero frame, i + 1 is frame i; padding comes first."""
    return np.maximum(np.arange(_padded(num_frames, config), dtype=np.int64) + 1 - -num_frames % config.time_stride, 0)


def _padded(num_frames: int, config: VAEConfig) -> int:
    return math.ceil(num_frames / config.time_stride) * config.time_stride


class VAEDecoder:
    """The opened graph ``vae_decoder``."""

    def __init__(self, session: Session, config: VAEConfig) -> None:
        self._session, self._config = session, config

    def chunks(self, latents: NDArray[np.float32]) -> int:
        """How many chunks the latents (1, channel, frame, height, width) have."""
        return math.ceil(int(latents.shape[2]) / self._config.chunk_latents)

    def decode_chunk(self, latents: NDArray[np.float32], chunk: int, num_frames: int) -> NDArray[np.uint8]:
        """The frames (frame, height, width, 3), RGB, of one chunk; no chunk depends on another.

        ``latents`` (1, channel, frame, height, width) begin with a chunk and stand for ``num_frames`` frames.
        """
        size, chunk_frames = self._config.chunk_latents, self._config.chunk_frames
        frames = min(num_frames - chunk * chunk_frames, chunk_frames)
        outputs = self._session.run({
            "latents": np.ascontiguousarray(latents[:, :, chunk * size : (chunk + 1) * size]),
            "frame_index": decoder_frame_index(frames, self._config),
        })
        return np.asarray(outputs["frames"])


class VAEEncoder:
    """The opened graph ``vae_encoder``."""

    def __init__(self, session: Session, config: VAEConfig) -> None:
        self._session, self._config = session, config

    def encode_clip(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Latents (1, channel, frame, height, width) of a clip of any length, chunk by chunk."""
        size = self._config.chunk_frames
        chunks = [self.encode(frames[start : start + size]) for start in range(0, len(frames), size)]
        return np.concatenate(chunks, axis=2)

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Latents (1, channel, frame, height, width) of one chunk (frame, height, width, 3): the posterior means."""
        index = encoder_frame_index(len(frames), self._config)
        return np.asarray(self._session.run({"frames": np.ascontiguousarray(frames), "frame_index": index})["latents"])
