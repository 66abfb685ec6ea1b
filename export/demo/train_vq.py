"""`python -m demo.train_vq [--codec vq_coarse]`: the latent VQ-VAE on windows of the latent stream.

A window's first and last codes tell part of what they show together with codes beyond it, which a decoder does not see
where long video is cut. So the decoder goes on alone, on windows cut out of whole clips' codes, as it is used.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from arlon_export.modules.vq import VQVAE
from demo.config import vq_config
from demo.latents import CLIP_LATENTS, LatentPool
from demo.training import Losses, Recipe, arguments, rng, train

LENGTHS = (10, 16, 20, 22)
"""Latents a window: whole segments and the shorter ones long video cuts, all multiples of the code's time stride."""
CODE_FRAMES, CODE_FRAME_SHARES = (11, 10, 8, 5, 3), (0.25, 0.45, 0.1, 0.1, 0.1)
"""Code-frames of a window of a clip's codes, and how often each is drawn: segments have 10 or, at odd offsets, 11."""
HELD_BACK = 128
"""First clips of the pool, kept for the evaluation of every run."""


class VQLosses:
    """Both halves and the codebook on windows of latents; from ``decoder_from`` on the decoder on windows of codes."""

    def __init__(self, model: VQVAE, pool: LatentPool, recipe: Recipe, device: str) -> None:
        self.model, self.pool, self.schedule, self.device = model, pool, recipe.schedule, device
        self.decoder_from = recipe.tables["training"].get("decoder_from", recipe.schedule.steps)
        self.statistics = pool.statistics()

    def __call__(self, step: int) -> Losses:
        draw = rng(self.schedule.seed, step)
        if step % 50 == 0:
            self.pool.refresh()
        clips = list(draw.integers(HELD_BACK, len(self.pool), self.schedule.batch_size))
        if step >= self.decoder_from:
            return self.of_cut_codes(draw, clips)
        length = int(draw.choice(LENGTHS))
        start = int(draw.integers(0, CLIP_LATENTS - length + 1))
        latents = self.latents(clips)[:, :, start:start + length]
        out = self.model(latents)
        mse = (out.coarse.float() - latents).square().mean()
        return {"loss": mse + out.loss, "mse": mse.detach()}

    def latents(self, clips: list[int]) -> Tensor:
        return self.pool.batch(clips, *self.statistics).to(self.device)

    def of_cut_codes(self, draw: np.random.Generator, clips: list[int]) -> Losses:
        """Encoder and codebook rest: only the decoder gets gradients, and the codes are no longer followed."""
        latents, stride = self.latents(clips), self.model.config.stride[0]
        with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
            codes = self.model.encode(latents)
        length = int(draw.choice(CODE_FRAMES, p=CODE_FRAME_SHARES))
        start = int(draw.integers(0, codes.shape[1] - length + 1))
        coarse = self.model.decode(codes[:, start:start + length])
        mse = (coarse - latents[:, :, start * stride:(start + length) * stride]).square().mean()
        return {"loss": mse, "mse": mse.detach()}

    @torch.no_grad()
    def evaluate(self, averaged: nn.Module) -> dict[str, float]:
        """Error of held-back clips' segments, cut out of whole clips' codes, and of such a segment's last latent."""
        assert averaged is self.model
        stride = self.model.config.stride[0]
        latents = self.latents(list(range(32)))
        tokens, segment = self.model.encode(latents), slice(10 // stride, 30 // stride)
        error = (self.model.decode(tokens[:, segment]).float() - latents[:, :, 10:30]).square().mean((0, 1, 3, 4))
        used = tokens.flatten().bincount().count_nonzero()
        return {"held_out_mse": float(error.mean()), "held_out_end": float(error[-1]), "codes_used": float(used)}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--codec", choices=("vq", "vq_coarse"), default="vq")
    args = parser.parse_args()
    recipe = Recipe.load(args.codec)
    torch.manual_seed(recipe.schedule.seed)
    pool = LatentPool(args.out / "latents")
    pool.refresh()
    model = VQVAE(vq_config(coarse=args.codec == "vq_coarse"))
    losses = VQLosses(model, pool, recipe, args.device)
    train(model, recipe, args, losses, losses.evaluate, network=args.codec)


if __name__ == "__main__":
    main()
