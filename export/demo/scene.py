"""The attributes of the demo world, and a scene of it: a coloured shape that moves over a plain background.

Lengths are in world units, 1/64 of the frame's side (pixels at 64×64). Motion wraps around: a shape that leaves on
one side enters on the other. x grows to the right, y downwards.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

Colour = Literal["red", "green", "blue", "yellow", "purple", "white"]
Shape = Literal["circle", "square", "triangle"]
Direction = Literal["right", "left", "up", "down", "still"]
Speed = Literal["slow", "normal", "fast"]
Background = Literal["black", "gray", "brown"]
RGB = tuple[int, int, int]

COLOURS: tuple[Colour, ...] = get_args(Colour)
SHAPES: tuple[Shape, ...] = get_args(Shape)
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
SPEEDS: tuple[Speed, ...] = get_args(Speed)
BACKGROUNDS: tuple[Background, ...] = get_args(Background)

SIDE = 64.0
FPS = 24

PALETTE: dict[Colour, RGB] = {
    "red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 230),
    "yellow": (240, 220, 50), "purple": (150, 50, 190), "white": (240, 240, 240),
}
BACKDROPS: dict[Background, RGB] = {"black": (12, 12, 12), "gray": (110, 110, 110), "brown": (110, 65, 30)}
BACKGROUND_WEIGHTS: dict[Background, float] = {"black": 0.5, "gray": 0.25, "brown": 0.25}
VELOCITY: dict[Speed, float] = {"slow": 0.45, "normal": 0.9, "fast": 1.6}
"""World units a frame; a scene's speed differs by up to 10 %."""
HEADING: dict[Direction, tuple[int, int]] = {
    "right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0),
}
RADIUS = (9.0, 13.0)
SHADE = 10
"""Largest deviation of a colour channel from the palette."""


class Combination(NamedTuple):
    """The attributes that are held out, or seen in training, together."""

    colour: Colour
    shape: Shape
    direction: Direction


def _is_held_out(colour: int, shape: int, direction: int) -> bool:
    """Whether a combination is one of nine: each shape three times, each colour and each direction up to three times.

    No pair of attributes is held out twice, so training sees each pair.
    """
    return (colour + 2 * shape + 3 * direction) % 8 == 2


_ALL = tuple(itertools.starmap(Combination, itertools.product(COLOURS, SHAPES, DIRECTIONS)))
HELD_OUT: frozenset[Combination] = frozenset(
    c for c in _ALL
    if c.direction != "still"
    and _is_held_out(COLOURS.index(c.colour), SHAPES.index(c.shape), DIRECTIONS.index(c.direction))
)
"""One eighth of the 72 moving combinations; training never sees them."""
SEEN: tuple[Combination, ...] = tuple(c for c in _ALL if c not in HELD_OUT)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One shape and its motion: attributes that captions name, and continuous parameters that they do not."""

    colour: Colour
    shape: Shape
    direction: Direction
    speed: Speed
    """``"normal"`` for a shape that stays still; captions do not name it."""
    background: Background
    x: float
    y: float
    """The centre at the scene's first frame, in world units."""
    radius: float
    """Radius of the circle. A square has the circle's area; a triangle has 1.35 of it as its circumradius."""
    velocity: float
    """World units a frame along the direction; 0 for a shape that stays still."""
    rgb: RGB
    background_rgb: RGB

    @property
    def combination(self) -> Combination:
        return Combination(self.colour, self.shape, self.direction)

    def centre(self, frame: int | NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The wrapped centre (x, y) at ``frame``, counted from the scene's start."""
        dx, dy = HEADING[self.direction]
        travelled = self.velocity * np.asarray(frame, np.float64)
        return (self.x + dx * travelled) % SIDE, (self.y + dy * travelled) % SIDE


def sample_scene(rng: np.random.Generator, combination: Combination | None = None, speed: Speed | None = None,
                 background: Background | None = None) -> Scene:
    """A random scene. Arguments that are ``None`` are drawn, the combination from those seen in training."""
    colour, shape, direction = combination or SEEN[rng.integers(len(SEEN))]
    background = background or rng.choice(BACKGROUNDS, p=[BACKGROUND_WEIGHTS[b] for b in BACKGROUNDS]).item()
    speed = "normal" if direction == "still" else speed or SPEEDS[rng.integers(3)]
    return Scene(
        colour=colour, shape=shape, direction=direction, speed=speed, background=background,
        x=rng.uniform(0, SIDE), y=rng.uniform(0, SIDE), radius=rng.uniform(*RADIUS),
        velocity=draw_velocity(rng, direction, speed),
        rgb=shade(rng, PALETTE[colour]), background_rgb=shade(rng, BACKDROPS[background]),
    )


def draw_velocity(rng: np.random.Generator, direction: Direction, speed: Speed) -> float:
    return 0.0 if direction == "still" else VELOCITY[speed] * rng.uniform(0.9, 1.1)


def shade(rng: np.random.Generator, rgb: RGB) -> RGB:
    red, green, blue = (int(v) for v in np.array(rgb) + rng.integers(-SHADE, SHADE + 1, 3))
    return red, green, blue
