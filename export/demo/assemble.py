"""`python -m demo.assemble`: writes the trained networks as the checkpoint folder that `arlon-rt export` reads.

Weights are rounded to fp16, so that a bundle stores each of them once for both precision sets.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from arlon_export.checkpoints.checkpoint import write_checkpoint, write_weights
from demo.trained import DEFAULTS, load_networks
from demo.training import Recipe

RUNS = ("autoencoder", "vq", "vq_encoder", "vq_coarse", "text", "ar", "dit")
CARD = (
    "Trained from scratch on a procedural world: one coloured shape moving over a plain background, 64x64, 24 frames a "
    "second. It knows six colours, three shapes, five motions and three backgrounds, and nothing else."
)


def run_card(out: Path, run: str) -> dict[str, Any]:
    """A training run's schedule, and the figures it reached: the last line of its log."""
    recipe = Recipe.load(run)
    lines = (out / f"{run}.jsonl").read_text().splitlines()
    return {"steps_planned": recipe.schedule.steps, "batch_size": recipe.schedule.batch_size, **json.loads(lines[-1])}


def provenance(out: Path, trained_on: str) -> dict[str, Any]:
    return {
        "what": CARD, "trained_on": trained_on,
        "held_out": "nine of the 72 moving combinations of colour, shape and direction (export/demo/scene.py)",
        "recipes": "export/demo/recipes",
        "stages": {run: run_card(out, run) for run in RUNS},  # the manifest's name for training runs
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("checkpoints"), help="folder of the runs' checkpoints")
    parser.add_argument("--to", type=Path, default=Path("checkpoints/demo"), help="the checkpoint folder to write")
    parser.add_argument("--trained-on", default="2 CPU cores", help="the hardware, for the manifest")
    parser.add_argument("--note", action="append", default=[], help="how a run differed from its recipe; repeat it")
    parser.add_argument("--scores", type=Path, help="what `demo.score --json` wrote for these weights")
    args = parser.parse_args()
    model, networks = load_networks(args.out)
    card = {**provenance(args.out, args.trained_on), "notes": args.note}
    if args.scores:
        runs = json.loads(args.scores.read_text())["runs"]
        card["scores"] = [{k: run[k] for k in ("steps", "inject", "rates")} for run in runs]
    write_checkpoint(args.to, model=model, defaults=DEFAULTS, provenance=card, tokenizer=args.out / "tokenizer.model")
    for name, module in networks.items():
        write_weights(args.to, name, module.state_dict(), half=True)
    print(f"wrote {args.to}; now: arlon-rt export {args.to} -o demo.bundle")


if __name__ == "__main__":
    main()
