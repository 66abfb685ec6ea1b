"""Stage 2, `python -m demo.train_vq [--codec vq_coarse]`: the latent VQ-VAE on windows of the latent stream."""

from __future__ import annotations

import torch
from torch import nn

from arlon_export.modules.vq import VQVAE
from demo.config import vq_config
from demo.latents import CLIP_LATENTS, LatentPool
from demo.training import Losses, Recipe, arguments, rng, train

LENGTHS = (10, 16, 20, 22)
"""Latents a window: whole segments and the shorter ones long video cuts, all multiples of the code's time stride."""
HELD_BACK = 128
"""First clips of the pool, kept for evaluation by every stage."""


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--codec", choices=("vq", "vq_coarse"), default="vq")
    args = parser.parse_args()
    recipe = Recipe.load(args.codec)
    torch.manual_seed(recipe.schedule.seed)
    model = VQVAE(vq_config(coarse=args.codec == "vq_coarse"))
    pool = LatentPool(args.out / "latents")
    pool.refresh()
    statistics = pool.statistics()

    def losses(step: int) -> Losses:
        draw = rng(recipe.schedule.seed, step)
        if step % 50 == 0:
            pool.refresh()
        clips = draw.integers(HELD_BACK, len(pool), recipe.schedule.batch_size)
        length = int(draw.choice(LENGTHS))
        start = int(draw.integers(0, CLIP_LATENTS - length + 1))
        latents = pool.batch(list(clips), *statistics)[:, :, start:start + length].to(args.device)
        out = model(latents)
        mse = (out.coarse.float() - latents).square().mean()
        return {"loss": mse + out.loss, "mse": mse.detach()}

    def evaluate(averaged: nn.Module) -> dict[str, float]:
        assert isinstance(averaged, VQVAE)
        latents = pool.batch(list(range(32)), *statistics)[:, :, :20].to(args.device)
        tokens = averaged.encode(latents)
        error = averaged.decode(tokens).float() - latents
        used = tokens.flatten().bincount().count_nonzero()
        return {"held_out_mse": float(error.square().mean()), "codes_used": float(used)}

    train(model, recipe, args, losses, evaluate, stage=args.codec)


if __name__ == "__main__":
    main()
