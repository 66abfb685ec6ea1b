"""`python -m demo.assemble`: the finished stages become the checkpoint folder that `arlon-rt export` reads.

Weights are rounded to fp16, so that the bundle stores each of them once for both precisions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from torch import nn

from arlon_export.checkpoint import write_checkpoint, write_weights
from arlon_export.modules.ar import TokenModel
from arlon_export.modules.stdit3 import STDiT3
from arlon_export.modules.vae import VideoVAE
from arlon_export.modules.vq import VQVAE
from demo.config import ar_config, dit_config, injection_config, model_config, vae_config, vq_config
from demo.latents import LatentPool
from demo.train_text import load_text_encoder
from demo.training import Recipe, load_averaged

STAGES = ("autoencoder", "vq", "vq_coarse", "text", "ar", "dit")
DEFAULTS: dict[str, Any] = {
    "num_frames": 68, "num_inference_steps": 10, "guidance_scale": 1.0, "ar_guidance_scale": 3.0,
    "temperature": 0.7, "top_k": 50, "top_p": 0.9,
}
CARD = (
    "Trained from scratch on a procedural world: one coloured shape moving over a plain background, 64x64, 24 frames a "
    "second. It knows six colours, three shapes, five motions and three backgrounds, and nothing else."
)


def stage_card(out: Path, stage: str) -> dict[str, Any]:
    """What a stage was trained by and what it reached: its recipe and the last line of its log."""
    recipe = Recipe.load(stage)
    lines = (out / f"{stage}.jsonl").read_text().splitlines()
    return {"steps_planned": recipe.schedule.steps, "batch_size": recipe.schedule.batch_size, **json.loads(lines[-1])}


def provenance(out: Path, clips: int, trained_on: str) -> dict[str, Any]:
    return {
        "what": CARD, "trained_on": trained_on, "clips": clips,
        "held_out": "nine of the 72 moving combinations of colour, shape and direction (export/demo/scene.py)",
        "recipes": "export/demo/recipes", "stages": {stage: stage_card(out, stage) for stage in STAGES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("checkpoints"), help="folder of all stages' checkpoints")
    parser.add_argument("--to", type=Path, default=Path("checkpoints/demo"), help="the checkpoint folder to write")
    parser.add_argument("--trained-on", default="2 CPU cores", help="the hardware, for the card")
    parser.add_argument("--note", action="append", default=[], help="how a run differed from its recipe, for the card")
    parser.add_argument("--scores", type=Path, help="what `demo.score --json` wrote for these weights, for the card")
    args = parser.parse_args()
    pool = LatentPool(args.out / "latents")
    pool.refresh()
    shift, scale = pool.statistics()
    networks: dict[str, nn.Module] = {
        "text": load_text_encoder(args.out, "cpu")[1],
        "ar": load_averaged(args.out, "ar", TokenModel(ar_config()), "cpu"),
        "vq": load_averaged(args.out, "vq", VQVAE(vq_config()), "cpu"),
        "dit": load_averaged(args.out, "dit", STDiT3(dit_config(), injection_config()), "cpu"),
        "vae": load_averaged(args.out, "autoencoder", VideoVAE(vae_config()), "cpu"),
    }
    measured = VideoVAE(vae_config(shift, scale))  # the stage trains with shift 0 and scale 1
    networks["vae"].load_state_dict({"shift": measured.shift, "scale": measured.scale}, strict=False)
    model = model_config(shift, scale)
    card = {**provenance(args.out, len(pool), args.trained_on), "notes": args.note}
    if args.scores:
        runs = json.loads(args.scores.read_text())["runs"]
        card["scores"] = [{k: run[k] for k in ("steps", "inject", "rates")} for run in runs]
    write_checkpoint(args.to, model=model, defaults=DEFAULTS, provenance=card, tokenizer=args.out / "tokenizer.model")
    for name, module in networks.items():
        write_weights(args.to, name, module.state_dict(), half=True)
    print(f"wrote {args.to}; now: arlon-rt export {args.to} -o demo.bundle")


if __name__ == "__main__":
    main()
