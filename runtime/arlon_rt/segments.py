"""How a long video is cut into segments, and which latents, code-frames and frames each of them owns."""

from __future__ import annotations

import math
from dataclasses import dataclass

from arlon_rt.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One window of the video."""

    index: int
    latents: range
    """Latents of the window, kept ones included, counted from the start of the lead or else of the video."""
    kept: int
    """How many leading latents repeat the previous segment's end: 0 or one chunk (5)."""
    frames: range
    """Its new frames, counted from the video's first: negative for a lead. The last segment's are cut at the
    requested length."""

    def code_frames(self, stride: int) -> range:
        """The code-frames that cover the window, for ``stride`` latents a code-frame."""
        return range(self.latents.start // stride, math.ceil(self.latents.stop / stride))

    def latents_of_codes(self, stride: int) -> slice:
        """Where the window's latents lie in what these code-frames decode to."""
        offset = self.latents.start % stride
        return slice(offset, offset + len(self.latents))

    def middle(self, fps: float) -> float:
        """Seconds at the middle of its new frames; the prompt that holds then is the segment's prompt."""
        return (self.frames.start + self.frames.stop) / 2 / fps


def plan(
    num_frames: int, model: ModelConfig, first_segment_frames: int | None = None, lead: int = 0
) -> tuple[Segment, ...]:
    """The segments of ``num_frames`` frames. ``first_segment_frames``, whole chunks, may shorten the first window.

    ``lead`` existing frames, whole chunks and at most a window, become a segment before the others.

    With Open-Sora's sizes a chunk is 17 frames or 5 latents, and no latent depends on another chunk. Segment k is the
    window of 68 frames (20 latents) at frame 51 k, latent 15 k: its first 17 frames (5 latents) repeat the end of
    segment k-1 and the other 51 are new, so k + 1 segments make 68 + 51 k frames. The last window ends with the last
    chunk that is needed. A length that is no multiple of 17 is generated in whole chunks and cut; one frame is an
    image, a single latent.

    A code-frame covers ``stride`` latents, so latents 15 k .. 15 k + n - 1 need the code-frames
    floor(15 k / stride) .. ceil((15 k + n) / stride) - 1 and stand at offset 15 k mod stride in their decoding.
    A shorter first window moves all others forward by the chunks it lacks.
    """
    if num_frames == 1 and not lead:
        return (Segment(index=0, latents=range(1), kept=0, frames=range(1)),)
    frames, latents = model.vae.chunk_frames, model.vae.chunk_latents
    window, overlap = (n // frames for n in (model.video.segment_frames, model.video.overlap_frames))
    total = math.ceil((lead + num_frames) / frames)
    first = window if first_segment_frames is None else first_segment_frames // frames
    new = [lead // frames, first] if lead else [first]   # chunks of the first segments
    segments: list[Segment] = []
    done = 0  # chunks
    while done < total:
        index = len(segments)
        kept = overlap if segments else 0
        stop = min(done + min(new[index] if index < len(new) else window, window - kept), total)
        segments.append(Segment(
            index=index, latents=range((done - kept) * latents, stop * latents), kept=kept * latents,
            frames=range(done * frames - lead, min(stop * frames - lead, num_frames)),
        ))
        done = stop
    return tuple(segments)
