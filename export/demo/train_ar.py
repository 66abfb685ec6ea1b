"""Stage 4, `python -m demo.train_ar`: the AR token model on windows of code-frames at random offsets of the stream."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arlon_export.modules.ar import TokenModel
from demo.config import ar_config, vq_config
from demo.train_vq import HELD_BACK
from demo.training import Losses, Recipe, arguments, rng, train
from demo.windows import Corpus, replaced

CONTEXT_FRAMES = 3
"""Code-frames given, not learned, at the start of a window that is not the video's start."""


def grid_positions(frames: int, height: int, width: int) -> Tensor:
    """(frames·height·width, 3): the position of every code of a window, row-major."""
    axes = (torch.arange(frames), torch.arange(height), torch.arange(width))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)


class Windows:
    """Random windows as long video makes them: any offset, and after a prompt switch the new text before old codes."""

    def __init__(self, corpus: Corpus, recipe: Recipe) -> None:
        self.corpus, self.recipe, self.config = corpus, recipe, ar_config()
        self.stride = vq_config().stride[0]

    def draw(
        self, draw: np.random.Generator, clips: list[int], varied: bool = True
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Text states and lengths, codes (batch, window) and the mask of codes that the text speaks of."""
        codes = self.corpus.codes("vq", clips)
        frames, per_frame = self.config.grid[0], codes[0, 0].numel()
        captions, windows, spoken = [], [], []
        for row, clip in enumerate(clips):
            last = codes.shape[1] - frames
            start = int(draw.integers(0, last + 1)) if varied and draw.random() < 0.6 else 0
            bounds = [0, *self.corpus.switches(clip), codes.shape[1] * self.stride]
            scene = int(draw.integers(len(bounds) - 1)) if varied else 0
            first, end = math.ceil(bounds[scene] / self.stride), math.ceil(bounds[scene + 1] / self.stride)
            null = varied and draw.random() < self.recipe.tables["training"]["null_text"]
            captions.append("" if null else self.corpus.caption(clip, bounds[scene], draw))
            frame = torch.arange(start, start + frames)
            # only a video's own start is written without context; elsewhere the codes before tell the chunks' phase
            known = start + CONTEXT_FRAMES if start else 0
            spoken.append(((frame >= max(first, known)) & (frame < end)).repeat_interleave(per_frame))
            windows.append(codes[row, start:start + frames].flatten())
        hidden, mask = self.corpus.text(captions)
        return hidden, mask.sum(1), torch.stack(windows), torch.stack(spoken).to(codes.device)


def token_loss(
    model: TokenModel, hidden: Tensor, lengths: Tensor, codes: Tensor, spoken: Tensor, wrong: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Cross-entropy (nats a code) and accuracy of the next code, over the codes the text speaks of."""
    config = model.config
    bos = torch.full_like(codes[:, :1], config.bos)
    inputs = torch.cat([bos, replaced(codes[:, :-1], wrong, config.num_codes)], 1)
    logits = model.logits(hidden, lengths, inputs, grid_positions(*config.grid).to(codes.device)[None]).float()
    logits = logits[..., :config.num_codes]
    each = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").view_as(codes)
    right = (logits.argmax(-1) == codes).float()
    weight = spoken.float() / spoken.sum().clamp(min=1)
    return (each * weight).sum(), (right * weight).sum()


def main() -> None:
    args = arguments(__doc__.splitlines()[0]).parse_args()
    recipe = Recipe.load("ar")
    torch.manual_seed(recipe.schedule.seed)
    corpus = Corpus.open(args, ("vq",))
    windows, model = Windows(corpus, recipe), TokenModel(ar_config())

    def losses(step: int) -> Losses:
        draw = rng(recipe.schedule.seed, step)
        if step % 50 == 0:
            corpus.refresh()
        clips = list(draw.integers(HELD_BACK, len(corpus.pool), recipe.schedule.batch_size))
        share = torch.from_numpy(draw.uniform(0, recipe.tables["training"]["wrong_tokens"], len(clips))).float()
        loss, right = token_loss(model, *windows.draw(draw, clips), share)
        return {"loss": loss, "accuracy": right.detach()}

    def evaluate(averaged: nn.Module) -> dict[str, float]:
        assert isinstance(averaged, TokenModel)
        loss, right = token_loss(averaged, *windows.draw(rng(0, 2), list(range(64)), varied=False), 0.0)
        return {"held_out_loss": float(loss), "held_out_accuracy": float(right), "clips": float(len(corpus.pool))}

    train(model, recipe, args, losses, evaluate)


if __name__ == "__main__":
    main()
