"""Videos made from frames that are there, `python -m demo.footage`: clips continued, images set in motion, repainted.

Clips and images are rendered, so that what goes on can be told from what does not. A continued clip keeps its object
where the prompt names it as it is; a repainted one is to move as its clip and to look as the prompt of another scene.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from arlon_rt.options import GenerateOptions
from demo.captions import canonical
from demo.long import joins
from demo.measure import measure
from demo.model import add_model_options, open_pipeline
from demo.scene import Scene
from demo.score import ATTRIBUTES, both_kinds, matches
from demo.world import Pixels, render

if TYPE_CHECKING:
    from arlon_rt.pipeline import Pipeline

CLIP, MADE = 68, 102
"""Frames that are there, and that are made."""
GUIDANCE = 2.5
"""Of text over tokens, where a clip is painted as another prompt says."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One video made from frames."""

    right: dict[str, bool]
    """Each attribute, against the scene it is to be of."""
    step: float
    """Of the object from the last given frame to the first made one, in median steps; NaN where none is seen."""
    change: float
    """Of the picture there, in median changes."""


def extended(pipeline: Pipeline, scene: Scene, other: Scene, seed: int) -> Seen:
    """A clip of ``scene`` goes on."""
    return _gone_on(pipeline, scene, canonical(scene), render(scene, CLIP), seed)


def extended_unsaid(pipeline: Pipeline, scene: Scene, other: Scene, seed: int) -> Seen:
    """Likewise, with a prompt that leaves its background out."""
    return _gone_on(pipeline, scene, canonical(scene).split(" on a ")[0], render(scene, CLIP), seed)


def animated(pipeline: Pipeline, scene: Scene, other: Scene, seed: int) -> Seen:
    """An image of ``scene`` is set in motion."""
    return _gone_on(pipeline, scene, canonical(scene), render(scene, 1), seed)


def repainted(pipeline: Pipeline, scene: Scene, other: Scene, seed: int, guidance_scale: float | None = None) -> Seen:
    """A clip of ``scene`` is painted as ``other``."""
    tokens = pipeline.tokens_of(render(scene, CLIP))
    options = GenerateOptions(num_frames=CLIP, seed=seed, guidance_scale=guidance_scale)
    seen = measure(pipeline.generate(canonical(other), options, tokens=tokens).frames)
    looks, moves = matches(seen, other), matches(seen, scene)
    return Seen(right={a: (moves if a in ("direction", "speed") else looks)[a] for a in ATTRIBUTES},
                step=float("nan"), change=float("nan"))


def _gone_on(pipeline: Pipeline, scene: Scene, prompt: str, given: Pixels, seed: int) -> Seen:
    generation = pipeline.stream(prompt, GenerateOptions(num_frames=MADE, seed=seed), after=given)
    made = np.concatenate([chunk.frames for chunk in generation])
    whole = made if len(given) == 1 else np.concatenate([given, made])   # an image is the first frame that is made
    first = 1 if len(given) == 1 else CLIP
    at = joins(whole, [first])
    return Seen(right=matches(measure(made), scene), step=float(at.steps[0]) if len(at.steps) else float("nan"),
                change=float(at.changes[0]))


KINDS: dict[str, Callable[[Pipeline, Scene, Scene, int], Seen]] = {
    "a clip continued": extended, "a clip continued, background unsaid": extended_unsaid,
    "an image set in motion": animated, "a clip repainted by another prompt": repainted,
    f"likewise, guidance scale {GUIDANCE}": partial(repainted, guidance_scale=GUIDANCE),
}


def table(results: dict[str, list[Seen]]) -> Table:
    out = Table("made from", *ATTRIBUTES, "step over the join, median (largest)", title="Share shown right")
    for kind, seen in results.items():
        shares = (f"{np.mean([s.right[a] for s in seen]):.0%}" for a in ATTRIBUTES)
        steps = np.array([s.step for s in seen])
        told = "" if np.isnan(steps).all() else f"{np.nanmedian(steps):.2f} ({np.nanmax(steps):.1f})"
        out.add_row(kind, *shares, told)
    return out


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.footage", description=__doc__.splitlines()[0])
    add_model_options(parser)
    parser.add_argument("--clips", type=int, default=32, help="how many, half of them of held-out combinations")
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
