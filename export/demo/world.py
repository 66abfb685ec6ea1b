"""Renders scenes of the demo world to frames, and draws clips whose prompt may switch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from demo.captions import caption
from demo.scene import HELD_OUT, SIDE, Combination, Scene, Shape, draw_velocity, sample_scene

Pixels = NDArray[np.uint8]
Offsets = NDArray[np.float32]

SWITCH_FRAMES = 17
"""Prompts switch at multiples of this, a chunk of the video autoencoder."""
WINDOW_FRAMES = 68


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A video whose prompt may switch: scenes with their first frames, and a caption for each."""

    num_frames: int
    scenes: tuple[tuple[int, Scene], ...]
    captions: tuple[str, ...]

    def _index_at(self, frame: int) -> int:
        if not 0 <= frame < self.num_frames:
            raise IndexError(f"frame is {frame}; the clip has frames 0 to {self.num_frames - 1}")
        return max(i for i, (start, _) in enumerate(self.scenes) if start <= frame)

    def scene_at(self, frame: int) -> Scene:
        return self.scenes[self._index_at(frame)][1]

    def caption_at(self, frame: int) -> str:
        return self.captions[self._index_at(frame)]


def coverage(shape: Shape, dx: Offsets, dy: Offsets, radius: float | Offsets, scale: float = 1.0) -> Offsets:
    """The share of each pixel that the shape covers, 0..1, from the signed distance to its edge.

    ``dx`` (…, 1, width) and ``dy`` (…, height, 1) are offsets from the centre, ``scale`` is pixels per world unit.
    """
    radius = np.asarray(radius, np.float32)
    inside: Offsets
    if shape == "circle":
        inside = radius - np.sqrt(dx * dx + dy * dy)
    elif shape == "square":
        inside = np.minimum(radius * 0.886 - np.abs(dx), radius * 0.886 - np.abs(dy))
    else:
        inner = radius * (1.35 / 2)
        inside = np.minimum(inner - np.abs(dx) * 0.8660254 + dy * 0.5, inner - dy)
    inside *= scale
    inside += 0.5
    return np.clip(inside, 0.0, 1.0, out=inside)


def wrapped_offset(size: int, centre: NDArray[np.float64]) -> Offsets:
    """Offsets (frame, size) of pixel centres from ``centre`` (frame,), the short way around, in world units."""
    pixels = (np.arange(size) + 0.5) * (SIDE / size)
    offset: Offsets = ((pixels - centre[:, None] + SIDE / 2) % SIDE - SIDE / 2).astype(np.float32)
    return offset


def render(scene: Scene, num_frames: int, size: int = 64) -> Pixels:
    """Frames (frame, size, size, 3), anti-aliased RGB."""
    moving = scene.direction != "still"
    x, y = scene.centre(np.arange(num_frames if moving else 1, dtype=np.float64))
    dx, dy = wrapped_offset(size, x)[:, None, :], wrapped_offset(size, y)[:, :, None]
    cover = coverage(scene.shape, dx, dy, scene.radius, size / SIDE)
    cover *= 255
    blend = np.linspace(scene.background_rgb, scene.rgb, 256).round().astype(np.uint8)
    frames: Pixels = np.take(blend, cover.astype(np.uint8), axis=0)
    return frames if moving else np.repeat(frames, num_frames, axis=0)


def render_clip(clip: Clip, size: int = 64) -> Pixels:
    """Frames (frame, size, size, 3) of all scenes of ``clip``."""
    ends = [start for start, _ in clip.scenes[1:]] + [clip.num_frames]
    parts = [render(scene, end - start, size) for (start, scene), end in zip(clip.scenes, ends, strict=True)]
    return np.concatenate(parts)


def switched(rng: np.random.Generator, scene: Scene, frame: int) -> Scene:
    """``scene`` from ``frame`` on, with some of colour, shape, direction and speed changed."""
    while True:
        drawn = sample_scene(rng)
        new_colour, new_shape, new_direction, new_speed = (bool(p < 0.4) for p in rng.random(4))
        colour = drawn.colour if new_colour else scene.colour
        shape = drawn.shape if new_shape else scene.shape
        direction = drawn.direction if new_direction else scene.direction
        speed = "normal" if direction == "still" else drawn.speed if new_speed else scene.speed
        combination = Combination(colour, shape, direction)
        if combination in HELD_OUT or (combination, speed) == (scene.combination, scene.speed):
            continue
        x, y = scene.centre(frame)
        same_pace = speed == scene.speed and "still" not in (scene.direction, direction)
        return dataclasses.replace(
            scene, colour=colour, shape=shape, direction=direction, speed=speed, x=float(x), y=float(y),
            velocity=scene.velocity if same_pace else draw_velocity(rng, direction, speed),
            rgb=scene.rgb if colour == scene.colour else drawn.rgb,
        )


def sample_clip(rng: np.random.Generator, num_frames: int, switch_probability: float = 0.0) -> Clip:
    """A clip of seen combinations with captions. Its prompt switches with this probability in each 68 frames."""
    scenes = [(0, sample_scene(rng))]
    for window in range(0, num_frames, WINDOW_FRAMES):
        starts = range(max(window, SWITCH_FRAMES), min(window + WINDOW_FRAMES, num_frames), SWITCH_FRAMES)
        if starts and rng.random() < switch_probability:
            start = int(rng.choice(starts))
            last_start, last = scenes[-1]
            scenes.append((start, switched(rng, last, start - last_start)))
    return Clip(num_frames=num_frames, scenes=tuple(scenes),
                captions=tuple(caption(scene, rng) for _, scene in scenes))
