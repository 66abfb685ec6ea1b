"""`python -m demo.train_vq_encoder`: a small encoder for the bundle, taught by the VQ-VAE's own.

The token model and the transformer are trained on tokens of the VQ-VAE's encoder, which is too large for the bundle.
This one puts vectors where that one does, so that a clip's tokens mean to the token model what it has learned. Codebook
and decoder stay as they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arlon_export.modules.vq import COMMITMENT_WEIGHT, VQVAE, Encoder
from demo.config import shipped_vq_config, vq_config
from demo.latents import CLIP_LATENTS, LatentPool
from demo.train_vq import HELD_BACK
from demo.training import Losses, Recipe, arguments, load_averaged, rng, train


class EncoderLosses:
    """How far the small encoder's vectors are from the teacher's, and what the codes they choose decode to."""

    def __init__(self, encoder: nn.Module, teacher: VQVAE, pool: LatentPool, recipe: Recipe, device: str) -> None:
        self.encoder, self.teacher, self.pool, self.device = encoder, teacher, pool, device
        self.schedule, self.statistics = recipe.schedule, pool.statistics()

    def __call__(self, step: int) -> Losses:
        draw = rng(self.schedule.seed, step)
        clips = list(draw.integers(HELD_BACK, len(self.pool), self.schedule.batch_size))
        length = CLIP_LATENTS // 2
        start = int(draw.integers(0, CLIP_LATENTS - length + 1))
        latents = self.latents(clips)[:, :, start:start + length]
        with torch.no_grad():
            taught = self.teacher.vectors(latents)
        vectors = self.encoder(latents).float().movedim(1, -1)
        codes = self.teacher.codebook(self.tokens_of(vectors)).detach()
        straight_through = vectors + (codes - vectors).detach()
        mse = (self.teacher.decoder(straight_through.movedim(-1, 1)).float() - latents).square().mean()
        apart = F.mse_loss(vectors, taught) / taught.var()
        loss = apart + mse + COMMITMENT_WEIGHT * F.mse_loss(vectors, codes)
        return {"loss": loss, "apart": apart.detach(), "mse": mse.detach()}

    def latents(self, clips: list[int]) -> Tensor:
        return self.pool.batch(clips, *self.statistics).to(self.device)

    def tokens_of(self, vectors: Tensor) -> Tensor:
        return self.teacher.codebook.nearest(vectors.detach().flatten(0, -2)).reshape(vectors.shape[:-1])

    @torch.no_grad()
    def evaluate(self, averaged: nn.Module) -> dict[str, float]:
        """Of held-back clips: the share of tokens that are the teacher's, and the error of what they decode to."""
        latents = self.latents(list(range(32)))
        tokens = self.tokens_of(averaged(latents).float().movedim(1, -1))
        error = (self.teacher.decode(tokens) - latents).square().mean()
        same = (tokens == self.teacher.encode(latents)).float().mean()
        return {"held_out_mse": float(error), "held_out_same": float(same)}


def main() -> None:
    args = arguments(__doc__.splitlines()[0]).parse_args()
    recipe = Recipe.load("vq_encoder")
    torch.manual_seed(recipe.schedule.seed)
    pool = LatentPool(args.out / "latents")
    pool.refresh()
    teacher = load_averaged(args.out, "vq", VQVAE(vq_config()), args.device)
    assert isinstance(teacher, VQVAE)
    encoder = Encoder(shipped_vq_config())
    losses = EncoderLosses(encoder, teacher, pool, recipe, args.device)
    train(encoder, recipe, args, losses, losses.evaluate)


if __name__ == "__main__":
    main()
