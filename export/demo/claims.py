"""The paper's claims at this scale, `python -m demo.claims steps|variants`: what injection and its training buy.

``steps``: attributes shown right, and PSNR against the same request's 30-step video, over denoising steps, with and
without injection. ``variants``: transformers trained alike but for one thing (the recipes ``dit_*.toml``), given tokens
of which a share is replaced by random codes.
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
"""The first is what the others are compared with."""
WRONG = (0.0, 0.05, 0.1, 0.2)
VARIANTS = ("dit_short", "dit_one_codec", "dit_certain", "dit_neither", "dit_one_layer", "dit_all_layers")
COLUMNS = (*ATTRIBUTES, "colour+direction")

Row = dict[str, Any]


def over_steps(pipeline: Pipeline, scenes: Sequence[Scene], seed: int) -> Iterator[Row]:
    """One row a setting: ``inject``, ``steps``, shares of `COLUMNS`, ``psnr`` against the first of `STEPS`."""
    for inject in (True, False):
        reference: list[Pixels] = []
        for steps in STEPS:
            options = [GenerateOptions(num_inference_steps=steps, inject=inject, seed=seed + i)
                       for i in range(len(scenes))]
            label = f"{steps} steps{'' if inject else ', no injection'}"
            made, row = _marked(pipeline, scenes, options, [None] * len(scenes), label)
            reference = reference or made
            alike = [psnr(a, b) for a, b in zip(made, reference, strict=True)]
            likeness = None if made is reference else float(np.mean(alike))
            yield {"inject": inject, "steps": steps, **row, "psnr": likeness}


def over_variants(
    out: Path, variants: Sequence[str], scenes: Sequence[Scene], steps: int, seed: int
) -> Iterator[Row]:
    """One row a variant and share of `WRONG`: ``variant``, ``wrong``, a share for each of `COLUMNS`."""
    from demo.trained import open_trained

    options = [GenerateOptions(num_inference_steps=steps, seed=seed + i) for i in range(len(scenes))]
    tokens: list[NDArray[np.int64]] = []
    for variant in variants:
        with open_trained(out, variant) as pipeline:
            assert pipeline.bundle.model.vq
            codes = pipeline.bundle.model.vq.num_codes
            tokens = tokens or [pipeline.tokens(canonical(s), o) for s, o in zip(scenes, options, strict=True)]
            for wrong in WRONG:
                given = [with_wrong(t, wrong, codes, np.random.default_rng([seed, i])) for i, t in enumerate(tokens)]
                _, row = _marked(pipeline, scenes, options, given, f"{variant}, {wrong:.0%} wrong")
                yield {"variant": variant, "wrong": wrong, **row}


def with_wrong(
    tokens: NDArray[np.int64], share: float, num_codes: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """``tokens`` with this share of them replaced by random codes; a larger share replaces those of a smaller too."""
    order, codes = rng.random(tokens.shape), rng.integers(num_codes, size=tokens.shape)
    return np.where(order < share, codes, tokens)


def _marked(
    pipeline: Pipeline, scenes: Sequence[Scene], options: Sequence[GenerateOptions],
    tokens: Sequence[NDArray[np.int64] | None], label: str,
) -> tuple[list[Pixels], Row]:
    """The videos of all scenes and the share of them with each attribute right."""
    requests = list(zip(scenes, options, tokens, strict=True))
    made = [pipeline.generate(canonical(scene), chosen, tokens=given).frames
            for scene, chosen, given in track(requests, description=label)]
    marks = [score(frames, scene) for frames, scene in zip(made, scenes, strict=True)]
    shares = {a: float(np.mean([m[a] for m in marks])) for a in ATTRIBUTES}
    return made, {**shares, "colour+direction": float(np.mean([m["colour"] and m["direction"] for m in marks]))}


def table(rows: Sequence[Row]) -> Table:
    names = [name for name in rows[0] if name not in COLUMNS]
    out = Table(*names, *COLUMNS)
    for row in rows:
        told = (f"{row[n]:.3g}" if isinstance(row[n], float) else str(row[n]) for n in names)
        out.add_row(*told, *(f"{row[c]:.0%}" for c in COLUMNS))
    return out


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.claims", description=__doc__)
    parser.add_argument("claim", choices=("steps", "variants"))
    add_model_options(parser)
    parser.add_argument("--variant", action="append", help="a transformer's recipe; may be given more than once")
    parser.add_argument("--steps", type=int, default=5, help="denoising steps of the variants")
    parser.add_argument("--prompts", type=int, default=32, help="how many, half of them of held-out combinations")
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
        parser.error("variants are not exported: give --checkpoints")
    Console(width=140).print(table(rows))
    if args.json:
        args.json.write_text(json.dumps({"prompts": args.prompts, "seed": args.seed, "rows": rows}, indent=1) + "\n",
                             encoding="utf-8")


if __name__ == "__main__":
    main()
