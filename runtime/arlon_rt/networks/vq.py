"""The latent VQ-VAE: from tokens to a segment's coarse latents, from a clip's latents to tokens (docs/spec.md 2)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from arlon_rt.backends import Session
from arlon_rt.config import VQConfig
from arlon_rt.segments import Segment


class VQDecoder:
    """The opened graph ``vq_decoder``."""

    def __init__(self, session: Session, config: VQConfig) -> None:
        self._session, self.config = session, config

    def code_size(self, latent_height: int, latent_width: int) -> tuple[int, int]:
        """Rows and columns of codes that cover latents of this size."""
        _, height, width = self.config.stride
        return math.ceil(latent_height / height), math.ceil(latent_width / width)

    def decode(
        self, tokens: NDArray[np.int64], segment: Segment, latent_height: int, latent_width: int
    ) -> NDArray[np.float32]:
        """Coarse latents (1, channel, frame, height, width) of the segment's window.

        ``tokens`` (1, code_frame, code_height, code_width) are those of `Segment.code_frames`. They decode to a little
        more than the window in time and space; the rest is cut off.
        """
        coarse: NDArray[np.float32] = np.asarray(self._session.run({"tokens": tokens})["coarse"])
        window = segment.latents_of_codes(self.config.stride[0])
        return np.ascontiguousarray(coarse[:, :, window, :latent_height, :latent_width])


class VQEncoder:
    """The opened graph ``vq_encoder``."""

    def __init__(self, session: Session, config: VQConfig, window: int) -> None:
        """``window`` is the number of latents in a segment, the most that are encoded at once."""
        self._session, self.config, self._window = session, config, window

    def encode(self, latents: NDArray[np.float32]) -> NDArray[np.int64]:
        """Tokens (1, code_frame, row, column) of a clip's latents (1, channel, frame, height, width).

        Sizes that the stride does not divide are padded by repeating the last frame, row or column. A longer clip
        is encoded in windows that overlap by half.
        """
        stride = self.config.stride
        padding = [(0, -size % s) for size, s in zip(latents.shape[2:], stride, strict=True)]
        padded = np.pad(latents, ((0, 0), (0, 0), *padding), mode="edge")
        most, total = math.ceil(self._window / stride[0]), padded.shape[2] // stride[0]
        found: list[NDArray[np.int64]] = []
        start = done = 0
        while done < total:
            stop = min(start + most, total)
            window = np.ascontiguousarray(padded[:, :, start * stride[0] : stop * stride[0]])
            tokens = np.asarray(self._session.run({"latents": window})["tokens"])
            found.append(tokens[:, done - start :])
            done, start = stop, max(0, stop - most // 2)
        return np.concatenate(found, axis=1)
