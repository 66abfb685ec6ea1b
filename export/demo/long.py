"""Long video, `python -m demo.long`: the score of every 10 seconds of two-minute videos, and how segments join.

At each join, the object's step and the change of the picture are compared with those between all other frames. With
``--switch`` the prompt changes at intervals. New prompts omit the background, which is expected to stay.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from arlon_rt.options import GenerateOptions
from arlon_rt.segments import plan
from demo.captions import canonical
from demo.measure import measure, positions, wrap
from demo.model import add_model_options, open_pipeline
from demo.scene import FPS, Scene
from demo.score import ATTRIBUTES, both_kinds, windows
from demo.world import Pixels, switched

SWITCH_SECONDS = 20
MIN_STEP = 0.45
"""Step of a slow object, in world units a frame; a smaller median step counts as this."""


@dataclass(frozen=True, kw_only=True)
class Joins:
    """How the two frames at each join differ, relative to other neighbouring frames of the video."""

    steps: NDArray[np.float64]
    """The object's step at each join whose two frames show one object, divided by the median step."""
    changes: NDArray[np.float64]
    """Mean absolute difference of the two frames, divided by its median over the video."""
    lost: int
    """Number of joins where one of the two frames does not show one object."""


def joins(frames: Pixels, starts: Sequence[int], window: int = 204) -> Joins:
    """Compare frame ``start`` with the one before it, for each of ``starts``; medians are of the frames around."""
    x, y = positions(frames)
    step = np.hypot(*(wrap(np.diff(p)) for p in (x, y)))
    change = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean(axis=(1, 2, 3))
    steps, changes, lost = [], [], 0
    for start in starts:
        near = slice(max(0, start - window), start + window)
        changes.append(change[start - 1] / max(float(np.median(change[near])), 0.25))
        if np.isnan(step[start - 1]):
            lost += 1
        else:
            steps.append(step[start - 1] / max(float(np.nanmedian(step[near])), MIN_STEP))
    return Joins(steps=np.array(steps), changes=np.array(changes), lost=lost)


def off_colour(frames: Pixels, seconds: int = 10) -> NDArray[np.float64]:
    """Share of the frames of each window (window,) whose own colour has another name than the window's colour.

    A flash of another colour does not change a window's score, but it changes this share. It is 1 without an object.
    """
    length = seconds * FPS
    seen = [measure(frames[start : start + length]) for start in range(0, len(frames), length)]
    return np.array([1.0 if window is None else 1 - window.steady for window in seen])


@dataclass(frozen=True)
class Story:
    """The scenes that the prompts name, each from its second on."""

    scenes: tuple[tuple[int, Scene], ...]

    @classmethod
    def of(cls, scene: Scene, seconds: int, seed: int, switch: bool) -> Story:
        """A story of ``scene``; with ``switch`` some attributes change every `SWITCH_SECONDS`."""
        scenes, draw = [(0, scene)], np.random.default_rng([seed, 17])
        for start in range(SWITCH_SECONDS, seconds, SWITCH_SECONDS) if switch else ():
            scenes.append((start, switched(draw, scenes[-1][1], 0)))
        return cls(tuple(scenes))

    def prompts(self) -> list[tuple[float, str]]:
        """(second, prompt) of each scene; prompts after the first omit the background."""
        captions = [(float(start), canonical(scene)) for start, scene in self.scenes]
        return [captions[0], *((start, caption.split(" on a ")[0]) for start, caption in captions[1:])]

    def at(self, frame: int) -> Scene:
        return next(scene for start, scene in reversed(self.scenes) if start * FPS <= frame)


def table(shares: NDArray[np.float64], seconds: int) -> Table:
    """A table of the shares (window, attribute) over time."""
    out = Table("seconds", *ATTRIBUTES, title="Share of windows shown right")
    for i, row in enumerate(shares):
        out.add_row(f"{i * 10}-{i * 10 + 10}", *(f"{v:.0%}" for v in row))
    out.add_section()
    out.add_row(f"0-{seconds}", *(f"{v:.0%}" for v in shares.mean(axis=0)))
    out.add_row("worst - first", *(f"{100 * (low - first):+.0f} points" for low, first in zip(
        shares.min(axis=0), shares[0], strict=True)))
    return out


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.long", description=__doc__.splitlines()[0])
    add_model_options(parser)
    parser.add_argument("--prompts", type=int, default=16, help="number of videos, half of them held out")
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--steps", type=int, default=10, help="denoising steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--switch", action="store_true", help=f"change the prompt every {SWITCH_SECONDS} seconds")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args(argv)
    marks, at_joins, flashes = [], [], []
    with open_pipeline(args) as pipeline:
        segments = plan(args.seconds * FPS, pipeline.bundle.model)
        for i, scene in enumerate(track(both_kinds(args.prompts, args.seed), description="videos")):
            story = Story.of(scene, args.seconds, args.seed + i, args.switch)
            options = GenerateOptions(num_frames=args.seconds * FPS, num_inference_steps=args.steps, seed=args.seed + i)
            frames = pipeline.generate(story.prompts(), options).frames
            marks.append([[mark[a] for a in ATTRIBUTES] for mark in windows(frames, story.at)])
            flashes.append(off_colour(frames))
            at_joins.append(joins(frames, [segment.frames.start for segment in segments[1:]]))
    shares = np.array(marks, np.float64).mean(axis=0)
    steps, changes = (np.concatenate([getattr(j, name) for j in at_joins]) for name in ("steps", "changes"))
    figures: dict[str, Any] = {
        "joins": len(changes), "lost": sum(j.lost for j in at_joins),
        "steps_within_1.5_medians": float((steps <= 1.5).mean()), "largest_step": float(steps.max()),
        "changes_within_2_medians": float((changes <= 2).mean()), "largest_change": float(changes.max()),
        "frames_in_another_colour": float(np.mean(flashes)),
    }
    console = Console(width=120)
    console.print(table(shares, args.seconds))
    for name, value in figures.items():
        console.print(f"{name.replace('_', ' ')}: {value if isinstance(value, int) else f'{value:.3g}'}")
    if args.json:
        about = {"prompts": args.prompts, "seconds": args.seconds, "steps": args.steps, "switch": args.switch}
        report = {**about, **figures, "windows": [dict(zip(ATTRIBUTES, row, strict=True)) for row in shares.tolist()]}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
