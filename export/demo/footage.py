"""Videos that start from frames, `python -m demo.footage`: a clip is continued or repainted, an image is set in motion.

Clips and images are rendered, so the right continuation is known. A continued clip should go on with its scene. A
repainted one should move like its clip and look like the scene of another prompt.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from arlon_rt.options import GenerateOptions
from arlon_rt.pipeline import Pipeline
from demo.captions import canonical
from demo.long import joins
from demo.measure import measure
from demo.model import add_model_options, open_pipeline
from demo.scene import Scene
from demo.score import ATTRIBUTES, both_kinds, matches
from demo.world import Pixels, render

CLIP_FRAMES, NEW_FRAMES = 68, 102
"""Frames of the clip, and frames that are generated after it."""
GUIDANCE = 2.5
"""Guidance scale with which a clip is repainted a second time."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Measurements of one generated video."""

    right: dict[str, bool]
    """Attribute -> whether it is that of the expected scene."""
    step: float
    """The object's step from the last existing frame to the first new one, in median steps; NaN without an object."""
    change: float
    """The change of the picture between these two frames, in median changes."""


def extended(pipeline: Pipeline, scene: Scene, other: Scene, seed: int) -> Seen:
    """Continue a clip of ``scene``."""
    return _continued(pipeline, scene, canonical(scene), render(scene, CLIP_FRAMES), seed)


def extended_unsaid(pipeline: Pipeline, scene: Scene, other: Scene, seed: int) -> Seen:
    """Continue a clip of ``scene`` with a prompt that omits its background."""
    return _continued(pipeline, scene, canonical(scene).split(" on a ")[0], render(scene, CLIP_FRAMES), seed)


def animated(pipeline: Pipeline, scene: Scene, other: Scene, seed: int) -> Seen:
    """Set an image of ``scene`` in motion."""
    return _continued(pipeline, scene, canonical(scene), render(scene, 1), seed)


def repainted(pipeline: Pipeline, scene: Scene, other: Scene, seed: int, guidance_scale: float | None = None) -> Seen:
    """Repaint a clip of ``scene`` as ``other``."""
    tokens = pipeline.tokens_of(render(scene, CLIP_FRAMES))
    options = GenerateOptions(num_frames=CLIP_FRAMES, seed=seed, guidance_scale=guidance_scale)
    seen = measure(pipeline.generate(canonical(other), options, tokens=tokens).frames)
    looks, moves = matches(seen, other), matches(seen, scene)
    return Seen(right={a: (moves if a in ("direction", "speed") else looks)[a] for a in ATTRIBUTES},
                step=float("nan"), change=float("nan"))


def _continued(pipeline: Pipeline, scene: Scene, prompt: str, clip: Pixels, seed: int) -> Seen:
    generation = pipeline.stream(prompt, GenerateOptions(num_frames=NEW_FRAMES, seed=seed), after=clip)
    frames = np.concatenate([chunk.frames for chunk in generation])
    is_image = len(clip) == 1  # the first new frame shows an image again
    join = joins(frames if is_image else np.concatenate([clip, frames]), [len(clip)])
    return Seen(right=matches(measure(frames), scene), step=float(join.steps[0]) if len(join.steps) else float("nan"),
                change=float(join.changes[0]))


KINDS: dict[str, Callable[[Pipeline, Scene, Scene, int], Seen]] = {
    "a clip continued": extended, "a clip continued, background unsaid": extended_unsaid,
    "an image set in motion": animated, "a clip repainted by another prompt": repainted,
    f"the same with guidance scale {GUIDANCE}": partial(repainted, guidance_scale=GUIDANCE),
}


def table(results: dict[str, list[Seen]]) -> Table:
    out = Table("video", *ATTRIBUTES, "step over the join, median (largest)", title="Share shown right")
    for kind, seen in results.items():
        shares = (f"{np.mean([s.right[a] for s in seen]):.0%}" for a in ATTRIBUTES)
        steps = np.array([s.step for s in seen])
        step = "" if np.isnan(steps).all() else f"{np.nanmedian(steps):.2f} ({np.nanmax(steps):.1f})"
        out.add_row(kind, *shares, step)
    return out


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.footage", description=__doc__.splitlines()[0])
    add_model_options(parser)
    parser.add_argument("--clips", type=int, default=32, help="number of clips, half of them held out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every result to this file")
    args = parser.parse_args(argv)
    scenes = both_kinds(args.clips, args.seed)
    results: dict[str, list[Seen]] = {kind: [] for kind in KINDS}
    with open_pipeline(args) as pipeline:
        for i, scene in enumerate(track(scenes, description="clips")):
            for kind, make in KINDS.items():
                results[kind].append(make(pipeline, scene, scenes[i - 1], args.seed + i))
    Console(width=140).print(table(results))
    if args.json:
        report = {kind: [vars(s) for s in seen] for kind, seen in results.items()}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
