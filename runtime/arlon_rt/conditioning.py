"""Frames that come with a request: encoded, placed by Open-Sora's mask strategy, and as tokens.

Source: Open-Sora v1.2, opensora/utils/inference_utils.py: parse_mask_strategy, apply_mask_strategy, find_nearest_point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from arlon_rt.config import ModelConfig
from arlon_rt.errors import OptionsError
from arlon_rt.networks import Networks, View
from arlon_rt.segments import Segment

Encode = Callable[[NDArray[np.float32]], NDArray[np.int64]]
"""From latents (1, channel, frame, height, width) to tokens (1, code_frame, row, column)."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a part of a reference is put in one segment: an entry of a mask strategy.

    Positions count latents and move to the nearest whole chunk of the video autoencoder, as in Open-Sora. Negative ones
    count from the end.
    """

    segment: int = 0
    """Index of the segment; a lead does not count."""
    reference: int = 0
    """Index of the reference."""
    start: int = 0
    """The first latent to take from the reference."""
    at: int = 0
    """The first latent of the segment's window to replace."""
    length: int = 1
    """How many latents, cut at the end of the reference and of the window."""
    edit_ratio: float = 0.0
    """How much is generated anew: 0 keeps the frames, 1 ignores them; between, they are noised so far and denoised."""

    @classmethod
    def parse(cls, strategy: str) -> tuple[Placement, ...]:
        """From Open-Sora's ``segment,reference,start,at,length,edit_ratio;…``; trailing fields may be left out.

        Raises:
            OptionsError: an entry cannot be read.
        """
        return tuple(cls._entry(entry) for entry in strategy.split(";")) if strategy.strip() else ()

    @classmethod
    def _entry(cls, entry: str) -> Placement:
        values = [value.strip() for value in entry.split(",")]
        names = [field.name for field in fields(cls)]
        try:
            numbers = {n: float(v) if n == "edit_ratio" else int(v) for n, v in zip(names, values, strict=False)}
        except ValueError:
            numbers = {}
        if not numbers or len(values) > len(names):
            raise OptionsError(
                f"mask_strategy has the entry {entry!r:.60}; {','.join(names)} are expected, whole numbers but for the "
                "last, as in '0,0,0,0,1,0', with ';' between entries"
            )
        placement = cls(**numbers)  # type: ignore[arg-type]
        if placement.segment < 0 or placement.reference < 0 or placement.length < 1:
            raise OptionsError(
                f"mask_strategy has the entry {entry!r:.60}; segment and reference are 0 or more, length is 1 or more"
            )
        if not 0 <= placement.edit_ratio <= 1:
            raise OptionsError(f"mask_strategy has edit_ratio {placement.edit_ratio:g}; it must be 0 to 1")
        return placement


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """An image or a clip to take frames from."""

    latents: NDArray[np.float32]
    """(1, channel, frame, height, width)."""
    drafted: NDArray[np.float32]
    """Latents to make tokens of: for an image, a chunk in which it stands still."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """References and where they are placed."""

    references: tuple[Reference, ...] = ()
    placements: tuple[Placement, ...] = ()

    def place(
        self, number: int, latents: NDArray[np.float32], mask: NDArray[np.float32], chunk_latents: int
    ) -> None:
        """Write what is placed in segment ``number`` into its ``latents``, and the edit ratios into ``mask``."""
        for placement, taken, put in self._of(number, latents.shape[2], chunk_latents):
            if placement.edit_ratio < 1:   # else it stays noise: frames of pure noise are not noised again
                latents[:, :, put] = self.references[placement.reference].latents[:, :, taken]
                mask[put] = placement.edit_ratio

    def codes(self, segments: Sequence[Segment], chunk_latents: int, stride: int, encode: Encode) -> dict[int, int]:
        """The code of each token that shows a reference, by its index in the video."""
        known: dict[int, int] = {}
        for number, segment in enumerate(segments):
            for placement, taken, put in self._of(number, len(segment.latents), chunk_latents):
                if placement.edit_ratio == 1:
                    continue
                first = segment.latents.start + put.start
                covered = range(first // stride, math.ceil((first + put.stop - put.start) / stride))
                places = np.arange(covered.start * stride, covered.stop * stride) - first
                inside = taken.start + np.clip(places, 0, taken.stop - taken.start - 1)
                tokens = encode(np.ascontiguousarray(self.references[placement.reference].drafted[:, :, inside]))
                known |= enumerate(tokens.flatten().tolist(), covered.start * tokens[0, 0].size)
        return known

    def check(self, segments: Sequence[Segment], size: tuple[int, int, int]) -> None:
        """Raise `OptionsError` unless latents have this ``size`` (channel, height, width) and every place exists."""
        for i, reference in enumerate(self.references):
            for latents in (reference.latents, reference.drafted):
                found = latents.shape[0], latents.shape[1], *latents.shape[3:]
                if found != (1, *size):
                    raise OptionsError(f"reference {i} has latents {found}; {(1, *size)} are needed (frames aside)")
            if len(reference.latents[0, 0]) > len(reference.drafted[0, 0]):
                raise OptionsError(f"reference {i} has fewer latents to draft from than to show")
        for placement in self.placements:
            for name, count in (("reference", len(self.references)), ("segment", len(segments))):
                if (asked := getattr(placement, name)) >= count:
                    raise OptionsError(f"mask_strategy names {name} {asked}; there are {count}, counted from 0")
            frames = self.references[placement.reference].latents.shape[2]
            window = len(segments[placement.segment].latents)
            for name, place, most in (("start", placement.start, frames), ("at", placement.at, window)):
                if not -most <= place < most:
                    raise OptionsError(f"mask_strategy has {name} {place}; it must be {-most} to {most - 1} (latents)")

    def _of(self, number: int, window: int, chunk_latents: int) -> Iterator[tuple[Placement, slice, slice]]:
        """Each placement in segment ``number``, with the latents that it takes of the reference and of the window."""
        for placement in self.placements:
            if placement.segment == number:
                frames = self.references[placement.reference].latents.shape[2]
                start = _whole_chunks(placement.start % frames, frames, chunk_latents)
                at = _whole_chunks(placement.at % window, window, chunk_latents)
                length = min(placement.length, frames - start, window - at)
                yield placement, slice(start, start + length), slice(at, at + length)


NOTHING = Conditions()


def _whole_chunks(place: int, size: int, chunk: int) -> int:
    """The nearest start of a chunk within ``size``."""
    chunks, over = divmod(place, chunk)
    return chunk * (chunks + (over > chunk / 2 and chunks + 1 < size // chunk))


class FrameEncoder:
    """Checks frames from outside and encodes them with the networks of one bundle."""

    def __init__(self, networks: Networks, model: ModelConfig) -> None:
        self._networks, self._model = networks, model

    def lead(self, frames: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
        """The last frames of a clip that a video continues: whole chunks, at most a segment.

        Raises:
            OptionsError: it is shorter than a chunk or not of the video's size.
        """
        chunk = self._model.vae.chunk_frames
        self._check(frames, view, "after")
        if len(frames) < chunk:
            raise OptionsError(f"after has {len(frames)} frames; it takes one, an image, or {chunk} and more, a clip")
        return frames[-min(len(frames) // chunk * chunk, self._model.video.segment_frames) :]

    def reference(self, frames: NDArray[np.uint8], view: View, *, for_image: bool) -> Reference:
        """An image (one frame) or a clip, encoded as a reference for a video, or for an image.

        In a video an image becomes the first latent of a chunk in which it stands still: the decoder and the
        transformer were trained on such latents. Encoded alone, as Open-Sora does, its colours shift.

        Raises:
            OptionsError: it is not of the video's size.
        """
        self._check(frames, view, "a reference")
        encode = self._networks.vae_encoder.encode_clip
        if len(frames) > 1:
            latents = encode(frames)
            return Reference(latents=latents, drafted=latents)
        still = encode(np.repeat(frames, self._model.vae.chunk_frames, axis=0))
        return Reference(latents=encode(frames) if for_image else still[:, :, :1], drafted=still)

    def tokens(self, latents: NDArray[np.float32]) -> NDArray[np.int64]:
        """Tokens (1, code_frame, row, column) of latents (1, channel, frame, height, width).

        Raises:
            OptionsError: the bundle has no network for it.
        """
        if self._networks.vq_encoder is None:
            raise OptionsError(
                "this bundle cannot turn frames into tokens: it has no graph vq_encoder; set inject to False, or "
                "export it with vq.has_encoder"
            )
        return self._networks.vq_encoder.encode(latents)

    def _check(self, frames: NDArray[np.uint8], view: View, name: str) -> None:
        unit = self._model.vae.space_stride
        size = view.latent_height * unit, view.latent_width * unit
        if checked_frames(frames).shape[1:3] != size:
            raise OptionsError(f"{name} has shape {frames.shape}; (frame, {size[0]}, {size[1]}, 3) is needed")


def checked_frames(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames from outside, unchanged; raises `OptionsError` unless they are uint8 (frame, height, width, 3)."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise OptionsError(f"frames are {frames.dtype} {frames.shape}; uint8 (frame, height, width, 3) is expected")
    return frames
