"""The paper's claims measured on the demo model, `python -m demo.claims steps|variants`.

``steps`` compares numbers of denoising steps, with and without injection: by the attributes shown right, and by the
PSNR against the 30-step video of the same request. ``variants`` compares transformers whose training differs in one
thing (the recipes ``dit_*.toml``), on tokens of which a share is replaced by random codes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from arlon_rt.options import GenerateOptions
from arlon_rt.pipeline import Pipeline
from demo.captions import canonical
from demo.model import add_model_options, open_pipeline
from demo.scene import Scene
from demo.score import ATTRIBUTES, both_kinds, psnr, score
from demo.world import Pixels

STEPS = (30, 10, 5, 3, 2, 1)
"""Numbers of denoising steps; the others are compared with the first."""
WRONG = (0.0, 0.05, 0.1, 0.2)
"""Shares of tokens that are replaced."""
VARIANTS = ("dit_short", "dit_one_codec", "dit_certain", "dit_neither", "dit_one_layer", "dit_all_layers")
COLUMNS = (*ATTRIBUTES, "colour+direction")

Row = dict[str, Any]


def over_steps(pipeline: Pipeline, scenes: Sequence[Scene], seed: int) -> Iterator[Row]:
    """One row for each setting: ``inject``, ``steps``, a share for each of `COLUMNS`, ``psnr``."""
    for inject in (True, False):
        reference: list[Pixels] = []
        for steps in STEPS:
            options = [GenerateOptions(num_inference_steps=steps, inject=inject, seed=seed + i)
                       for i in range(len(scenes))]
            label = f"{steps} steps{'' if inject else ', no injection'}"
            videos, row = _scored(pipeline, scenes, options, [None] * len(scenes), label)
            reference = reference or videos
            decibels = [psnr(a, b) for a, b in zip(videos, reference, strict=True)]
            likeness = None if videos is reference else float(np.mean(decibels))
            yield {"inject": inject, "steps": steps, **row, "psnr": likeness}


def over_variants(
    out: Path, variants: Sequence[str], scenes: Sequence[Scene], steps: int, seed: int
) -> Iterator[Row]:
    """One row for each variant and share of `WRONG`: ``variant``, ``wrong``, a share for each of `COLUMNS`."""
    from demo.trained import open_trained

    options = [GenerateOptions(num_inference_steps=steps, seed=seed + i) for i in range(len(scenes))]
    tokens: list[NDArray[np.int64]] = []
    for variant in variants:
        with open_trained(out, variant) as pipeline:
            assert pipeline.bundle.model.vq
            codes = pipeline.bundle.model.vq.num_codes
            tokens = tokens or [pipeline.tokens(canonical(s), o) for s, o in zip(scenes, options, strict=True)]
            for wrong in WRONG:
                spoilt = [with_wrong(t, wrong, codes, np.random.default_rng([seed, i])) for i, t in enumerate(tokens)]
                _, row = _scored(pipeline, scenes, options, spoilt, f"{variant}, {wrong:.0%} wrong")
                yield {"variant": variant, "wrong": wrong, **row}


def with_wrong(
    tokens: NDArray[np.int64], share: float, num_codes: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """``tokens`` with this share replaced by random codes. A larger share also replaces the tokens of a smaller one."""
    order, codes = rng.random(tokens.shape), rng.integers(num_codes, size=tokens.shape)
    return np.where(order < share, codes, tokens)


def _scored(
    pipeline: Pipeline, scenes: Sequence[Scene], options: Sequence[GenerateOptions],
    tokens: Sequence[NDArray[np.int64] | None], label: str,
) -> tuple[list[Pixels], Row]:
    """The videos of all scenes, and for each of `COLUMNS` the share that shows it right."""
    requests = list(zip(scenes, options, tokens, strict=True))
    videos = [pipeline.generate(canonical(scene), chosen, tokens=grid).frames
              for scene, chosen, grid in track(requests, description=label)]
    marks = [score(frames, scene) for frames, scene in zip(videos, scenes, strict=True)]
    shares = {a: float(np.mean([m[a] for m in marks])) for a in ATTRIBUTES}
    return videos, {**shares, "colour+direction": float(np.mean([m["colour"] and m["direction"] for m in marks]))}


def table(rows: Sequence[Row]) -> Table:
    names = [name for name in rows[0] if name not in COLUMNS]
    out = Table(*names, *COLUMNS)
    for row in rows:
        settings = (f"{row[n]:.3g}" if isinstance(row[n], float) else str(row[n]) for n in names)
        out.add_row(*settings, *(f"{row[c]:.0%}" for c in COLUMNS))
    return out


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.claims", description=__doc__)
    parser.add_argument("claim", choices=("steps", "variants"))
    add_model_options(parser)
    parser.add_argument("--variant", action="append", help="a transformer's recipe; repeat it")
    parser.add_argument("--steps", type=int, default=5, help="denoising steps of the variants")
    parser.add_argument("--prompts", type=int, default=32, help="number of prompts, half of them held out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args(argv)
    scenes = both_kinds(args.prompts, args.seed)
    if args.claim == "steps":
        with open_pipeline(args) as pipeline:
            rows = list(over_steps(pipeline, scenes, args.seed))
    elif args.checkpoints:
        rows = list(over_variants(args.checkpoints, args.variant or VARIANTS, scenes, args.steps, args.seed))
    else:
        parser.error("variants have no bundle; name their checkpoints with --checkpoints")
    Console(width=140).print(table(rows))
    if args.json:
        args.json.write_text(json.dumps({"prompts": args.prompts, "seed": args.seed, "rows": rows}, indent=1) + "\n",
                             encoding="utf-8")


if __name__ == "__main__":
    main()
