"""Frames that come with a request, encoded for it: what a video goes on from, begins with or takes over."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from arlon_rt.conditioning import Reference
from arlon_rt.config import ModelConfig
from arlon_rt.dit import View
from arlon_rt.errors import OptionsError
from arlon_rt.stages import Stages


class Given:
    """Checks and encodes frames with the graphs of one bundle."""

    def __init__(self, stages: Stages, model: ModelConfig) -> None:
        self._stages, self._model = stages, model

    def lead(self, frames: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
        """The last frames of a clip, whole chunks and at most a segment, for a video to go on from.

        Raises:
            OptionsError: it is shorter than a chunk or not of the video's size.
        """
        chunk = self._model.vae.chunk_frames
        self._check(frames, view, "after")
        if len(frames) < chunk:
            raise OptionsError(f"after has {len(frames)} frames; it takes one, an image, or {chunk} and more, a clip")
        return frames[-min(len(frames) // chunk * chunk, self._model.video.segment_frames) :]

    def reference(self, frames: NDArray[np.uint8], view: View, *, for_image: bool) -> Reference:
        """An image (one frame) or a clip to take frames from, for a video or ``for_image``.

        In a video an image is the first latent of a chunk in which it stands still: that is what is decoded, and what a
        transformer was trained to go on from. Encoded alone, as Open-Sora does, its colours shift.

        Raises:
            OptionsError: it is not of the video's size.
        """
        self._check(frames, view, "a reference")
        encode = self._stages.vae_encoder.encode_clip
        if len(frames) > 1:
            latents = encode(frames)
            return Reference(latents=latents, drafted=latents)
        still = encode(np.repeat(frames, self._model.vae.chunk_frames, axis=0))
        return Reference(latents=encode(frames) if for_image else still[:, :, :1], drafted=still)

    def latents(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Latents (1, channel, frame, height, width) of a clip."""
        return self._stages.vae_encoder.encode_clip(frames)

    def tokens(self, latents: NDArray[np.float32]) -> NDArray[np.int64]:
        """Tokens (1, code_frame, row, column) of latents (1, channel, frame, height, width).

        Raises:
            OptionsError: the bundle cannot make them.
        """
        if self._stages.vq_encoder is None:
            raise OptionsError(
                "this bundle cannot turn frames into tokens: it has no graph vq_encoder; set inject to False, or "
                "export it with vq.has_encoder"
            )
        return self._stages.vq_encoder.encode(latents)

    def _check(self, frames: NDArray[np.uint8], view: View, name: str) -> None:
        unit = self._model.vae.space_stride
        size = view.latent_height * unit, view.latent_width * unit
        if checked_frames(frames).shape[1:3] != size:
            raise OptionsError(f"{name} has shape {frames.shape}; (frame, {size[0]}, {size[1]}, 3) is needed")


def checked_frames(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames from outside.

    Raises:
        OptionsError: they are not uint8 (frame, height, width, 3), or there is none.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise OptionsError(f"frames are {frames.dtype} {frames.shape}; uint8 (frame, height, width, 3) is expected")
    return frames
