"""Measures colour, shape and motion in frames, without anything learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from demo.scene import BACKDROPS, PALETTE, RGB, SHAPES, SIDE, Background, Colour, Direction, Shape, Speed
from demo.world import Offsets, Pixels, coverage

Name = TypeVar("Name", bound=str)

MIN_CONTRAST = 30.0
"""Least RGB distance between object and background; with less, a frame is blank."""
AREA = (0.02, 0.3)
"""Smallest and largest share of the frame that an object covers; in training it is 0.05 to 0.15."""
MAX_SPREAD = 0.26
"""Mean squared distance from the centroid over area: disc 0.16, square 0.17, triangle 0.19, scattered noise > 0.3."""
MIN_FRAMES = 0.6
"""Least share of the frames that must show one compact object."""
FAINT = 0.15
"""Share of the contrast below which a pixel counts as background, for centres with parts of a pixel."""
MAX_COLOUR_DISTANCE = 90.0
MIN_OVERLAP = 0.6
"""Least intersection over union with the ideal shape of equal area."""
LAG = 8
"""Frames between two compared positions. The fastest object moves 14 of 64 units, so its direction is certain."""
STILL_BELOW, NORMAL_FROM, FAST_FROM = 0.2, 0.675, 1.25
"""Limits of the speed classes in world units a frame, halfway between the speeds of the world."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the frames show; an attribute that cannot be measured is ``None``."""

    colour: Colour | None
    shape: Shape | None
    direction: Direction | None
    speed: Speed | None
    background: Background | None
    confidence: float
    """Share of frames with one compact object, times its mean overlap with the ideal shape; 0..1."""
    steady: float
    """Share of those frames whose own colour has the name of the clip's colour; it is below 1 if colours waver."""


@dataclass(frozen=True)
class _Object:
    """The object in the frames that show it: masks (frame, height, width), centres and offsets in world units."""

    frames: NDArray[np.intp]
    mask: NDArray[np.bool_]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    dx: Offsets
    dy: Offsets


def measure(frames: Pixels) -> Measured | None:
    """The attributes in RGB frames (frame, height, width, 3) of one scene; ``None`` unless they show one object."""
    colours, background, distance = _against_background(frames)
    contrast = float(np.median(_contrast(distance)))
    if contrast < MIN_CONTRAST:
        return None
    seen = _locate(distance > contrast / 2)
    if len(seen.frames) < MIN_FRAMES * len(frames):
        return None
    core = distance[seen.frames] > 0.8 * contrast
    colour = np.median(colours[seen.frames][core], axis=0) if core.any() else np.full(3, np.nan)
    name = _nearest(PALETTE, colour)
    each = zip(colours[seen.frames], core, strict=True)
    own = [_nearest(PALETTE, np.median(pixels[inner], axis=0)) for pixels, inner in each if inner.any()]
    shape, overlap = _shape(seen)
    direction, speed = _motion(seen)
    return Measured(
        colour=name, shape=shape, direction=direction, speed=speed,
        background=_nearest(BACKDROPS, np.median(background, axis=0)),
        confidence=overlap * len(seen.frames) / len(frames), steady=float(np.mean([n == name for n in own] or [False])),
    )


def positions(frames: Pixels) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The object's centre (x, y) in each frame, in world units; NaN without one object."""
    *_, distance = _against_background(frames)
    contrast = np.maximum(_contrast(distance), MIN_CONTRAST)[:, None, None]
    seen = _locate(distance > contrast / 2)
    cover = np.clip(distance / contrast, 0.0, 1.0)[seen.frames]
    weight = np.where(cover > FAINT, cover, 0.0)
    x, y = (np.full(len(frames), np.nan) for _ in range(2))
    x[seen.frames], _ = _centre(weight.sum(axis=1), frames.shape[2])
    y[seen.frames], _ = _centre(weight.sum(axis=2), frames.shape[1])
    return x, y


def _against_background(frames: Pixels) -> tuple[Offsets, Offsets, Offsets]:
    """Colours (frame, height, width, 3), backgrounds (frame, 3), RGB distances of pixels from the background."""
    colours = frames.astype(np.float32)
    background = np.median(colours[:, ::4, ::4].reshape(len(frames), -1, 3), axis=1)
    difference = colours - background[:, None, None]
    return colours, background, np.sqrt(np.einsum("fhwc,fhwc->fhw", difference, difference))


def _contrast(distance: Offsets) -> NDArray[np.float32]:
    """RGB distance between object and background (frame,); it is small in a blank frame."""
    brightest: NDArray[np.float32] = np.quantile(distance[:, ::2, ::2].reshape(len(distance), -1), 0.98, axis=1)
    return brightest


def _locate(mask: NDArray[np.bool_]) -> _Object:
    """The object in the frames whose mask is compact, with centroids on the torus."""
    _, height, width = mask.shape
    area = mask.mean(axis=(1, 2))
    kept = np.flatnonzero((area > AREA[0]) & (area < AREA[1]))
    mask = mask[kept]
    x, dx = _centre(mask.sum(axis=1), width)
    y, dy = _centre(mask.sum(axis=2), height)
    spread = (mask.sum(axis=1) * dx**2).sum(axis=1) + (mask.sum(axis=2) * dy**2).sum(axis=1)
    pixels = mask.sum(axis=(1, 2))
    compact = spread / pixels < MAX_SPREAD * pixels * (SIDE / height) * (SIDE / width)
    return _Object(kept[compact], mask[compact], x[compact], y[compact], dx[compact], dy[compact])


def _centre(profile: NDArray[np.intp] | Offsets, size: int) -> tuple[NDArray[np.float64], Offsets]:
    """Centroid (frame,) of the profiles (frame, size) on a circle, and every pixel's offset (frame, size) from it.

    The angle of the circular mean is close to the centroid; the mean of the offsets from it gives the rest.
    """
    position = (np.arange(size) + 0.5) * (SIDE / size)
    mean = profile @ np.exp(2j * np.pi * position / SIDE)
    rough = np.angle(mean) * SIDE / (2 * np.pi)
    offset = wrap(position - rough[:, None])
    shift = (profile * offset).sum(axis=1) / profile.sum(axis=1)
    centre = rough + shift
    return centre % SIDE, wrap(position - centre[:, None]).astype(np.float32)


def wrap(length: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same length the short way around the torus, in -32..32."""
    return (length + SIDE / 2) % SIDE - SIDE / 2


def _shape(seen: _Object) -> tuple[Shape | None, float]:
    """The shape whose ideal mask of equal area overlaps best (or ``None``), and its mean intersection over union."""
    height = seen.mask.shape[1]
    area = seen.mask.mean(axis=(1, 2)) * SIDE * SIDE
    overlaps = {}
    for shape in SHAPES:
        unit_area = {"circle": np.pi, "square": 4 * 0.886**2, "triangle": 0.75 * np.sqrt(3) * 1.35**2}[shape]
        radius = np.sqrt(area / unit_area).astype(np.float32)[:, None, None]
        ideal = coverage(shape, seen.dx[:, None, :], seen.dy[:, :, None], radius, height / SIDE) > 0.5
        union = (ideal | seen.mask).sum(axis=(1, 2))
        overlaps[shape] = float(((ideal & seen.mask).sum(axis=(1, 2)) / union).mean())
    best = max(SHAPES, key=overlaps.__getitem__)
    return (best if overlaps[best] >= MIN_OVERLAP else None), overlaps[best]


def _motion(seen: _Object) -> tuple[Direction | None, Speed | None]:
    """Direction and speed of the median displacement; ``None`` for a single frame or a diagonal."""
    lag = min(LAG, len(seen.frames) - 1)
    if lag < 1:
        return None, None
    elapsed = seen.frames[lag:] - seen.frames[:-lag]
    dx, dy = (float(np.median(wrap(p[lag:] - p[:-lag]) / elapsed)) for p in (seen.x, seen.y))
    if max(abs(dx), abs(dy)) < STILL_BELOW:
        return "still", "normal"
    if max(abs(dx), abs(dy)) < 2 * min(abs(dx), abs(dy)):
        return None, None
    speed = max(abs(dx), abs(dy))
    pace: Speed = "slow" if speed < NORMAL_FROM else "normal" if speed < FAST_FROM else "fast"
    if abs(dx) > abs(dy):
        return ("right" if dx > 0 else "left"), pace
    return ("down" if dy > 0 else "up"), pace


def _nearest(palette: Mapping[Name, RGB], colour: NDArray[np.floating]) -> Name | None:
    """The name of the nearest palette colour; ``None`` if it is further than `MAX_COLOUR_DISTANCE`."""
    distances = {name: float(np.linalg.norm(colour - np.array(rgb))) for name, rgb in palette.items()}
    best = min(distances, key=distances.__getitem__)
    return best if distances[best] <= MAX_COLOUR_DISTANCE else None
