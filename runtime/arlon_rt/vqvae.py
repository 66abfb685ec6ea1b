"""The latent VQ-VAE's decoder: a segment's tokens become its coarse latents (spec 2)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from arlon_rt.backends.session import Session
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

        ``tokens`` (1, code_frame, code_height, code_width) are those of `Segment.code_frames`; they decode to a little
        more than the window in time and space, which is cut off.
        """
        coarse: NDArray[np.float32] = np.asarray(self._session.run({"tokens": tokens})["coarse"])
        wanted = segment.latents_of_codes(self.config.stride[0])
        return np.ascontiguousarray(coarse[:, :, wanted, :latent_height, :latent_width])
