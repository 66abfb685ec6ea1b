"""Steering, `python -m demo.steer`: the prompt of a running generation changes, and later frames are measured.

Each video begins with one scene. After its first segment, `Generation.set_prompt` names a scene with some attributes
changed. The frames of the segment after the new prompt's first one are measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from arlon_rt.options import GenerateOptions
from arlon_rt.pipeline import Pipeline
from demo.captions import canonical
from demo.measure import measure
from demo.model import add_model_options, open_pipeline
from demo.scene import FPS, Scene
from demo.score import ATTRIBUTES, both_kinds, matches
from demo.world import switched

FIRST, LATER = 68, 51
"""New frames of the first segment, and of each later one."""
SEGMENTS = 4


@dataclass(frozen=True, kw_only=True)
class Steered:
    """One video whose prompt changed."""

    changed: frozenset[str]
    """Attributes that differ between the two prompts."""
    right: dict[str, bool]
    """Attribute -> whether it is that of the new scene, one segment after the new prompt's first."""
    delay: int
    """Segments between the last delivered chunk and the first chunk of the new prompt."""


def steer(pipeline: Pipeline, before: Scene, after: Scene, seed: int, *, overlap: bool) -> Steered:
    """Generate a video of ``before``, change its prompt to ``after`` after the first segment, and measure it."""
    options = GenerateOptions(num_frames=FIRST + SEGMENTS * LATER, seed=seed)
    generation = pipeline.stream(canonical(before), options, overlap=overlap)
    frames, start = [], None
    for chunk in generation:
        frames.append(chunk.frames)
        if start is None and chunk.ends_segment:
            start = round(generation.set_prompt(canonical(after)) * FPS)
    assert start is not None
    seen = measure(np.concatenate(frames)[start + LATER : start + 2 * LATER])
    changed = frozenset(a for a in ATTRIBUTES if getattr(before, a) != getattr(after, a))
    return Steered(changed=changed, right=matches(seen, after), delay=(start - FIRST) // LATER)


def table(results: Sequence[Steered]) -> Table:
    out = Table("attribute", "prompts that change it", "changed", "kept by the others")
    for attribute in ATTRIBUTES:
        moved, stayed = ([r.right[attribute] for r in results if (attribute in r.changed) == changes]
                         for changes in (True, False))
        out.add_row(attribute, str(len(moved)), *(f"{np.mean(part):.0%}" if part else "" for part in (moved, stayed)))
    return out


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.steer", description=__doc__.splitlines()[0])
    add_model_options(parser)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overlap", action="store_true", help="run the three lanes on threads of their own")
    parser.add_argument("--json", type=Path, help="write every result to this file")
    args = parser.parse_args(argv)
    results = []
    with open_pipeline(args) as pipeline:
        for i, before in enumerate(track(both_kinds(args.prompts, args.seed), description="videos")):
            after = switched(np.random.default_rng([args.seed + i, 23]), before, 0)
            results.append(steer(pipeline, before, after, args.seed + i, overlap=args.overlap))
    console = Console(width=120)
    console.print(table(results))
    console.print(f"segments until the new prompt's first frames: {max(r.delay for r in results)} at most")
    if args.json:
        report = [{"changed": sorted(r.changed), "right": r.right, "delay": r.delay} for r in results]
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
