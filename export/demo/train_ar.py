"""`python -m demo.train_ar`: the AR token model on windows of code-frames at random offsets of the stream."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arlon_export.modules.ar import TokenModel
from demo.captions import canonical
from demo.config import ar_config, vq_config
from demo.latents import CHUNK_LATENTS
from demo.train_vq import HELD_BACK
from demo.training import Losses, Recipe, arguments, rng, train
from demo.windows import Corpus, flash, replaced, stain

CONTEXT_FRAMES = 3
"""Code-frames given, not learned, at the start of a window that is not the video's start."""


def grid_positions(frames: int, height: int, width: int) -> Tensor:
    """(frames·height·width, 3): the position of every code of a window, row-major."""
    axes = (torch.arange(frames), torch.arange(height), torch.arange(width))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)


class Batch(NamedTuple):
    """Windows of codes (batch, window) and what the model writes them from."""

    hidden: Tensor
    """Last hidden states of the text (batch, prompt, d)."""
    lengths: Tensor
    """(batch,), of the text."""
    codes: Tensor
    """What is to be written."""
    spoken: Tensor
    """(batch, window) bool, the codes that the text speaks of."""
    before: Tensor
    """`codes` as the model sees them, passing faults among them."""


class Windows:
    """Random windows as long video makes them: any offset, and after a prompt switch the new text before old codes.

    In some the codes so far are those of the clip's recoloured twin, and what follows is to be as the text says again:
    long video goes on from its own mistakes, and in the clips nothing but a switch ever changes. In others the twin's
    codes flash up among those the model goes on from, or stain a part of the picture for a while.
    """

    def __init__(self, corpus: Corpus, recipe: Recipe) -> None:
        self.corpus, self.extra, self.config = corpus, recipe.tables["training"], ar_config()
        self.stride = vq_config().stride[0]

    def clips(self, draw: np.random.Generator, number: int) -> list[int]:
        """Clips to learn from, a share of them such that the prompt switches."""
        def drawn() -> int:
            return int(draw.integers(HELD_BACK, len(self.corpus.pool)))

        found = []
        for _ in range(number):
            clip, switched = drawn(), draw.random() < self.extra["switched"]
            while switched and not self.corpus.switches(clip):
                clip = drawn()
            found.append(clip)
        return found

    def draw(self, draw: np.random.Generator, clips: list[int], varied: bool = True) -> Batch:
        codes = self.corpus.codes("vq", clips)
        frames, per_frame = self.config.grid[0], codes[0, 0].numel()
        captions, windows, spoken, before = [], [], [], []
        for row, clip in enumerate(clips):
            last = codes.shape[1] - frames
            start = int(draw.integers(0, last + 1)) if varied and draw.random() < 0.6 else 0
            bounds = [0, *self.corpus.switches(clip), codes.shape[1] * self.stride]
            scene = int(draw.integers(len(bounds) - 1)) if varied else 0
            first, end = math.ceil(bounds[scene] / self.stride), math.ceil(bounds[scene + 1] / self.stride)
            null = varied and draw.random() < self.extra["null_text"]
            # only a video's own start is written without context; elsewhere the codes before tell the chunks' phase
            known = max(first, start + CONTEXT_FRAMES if start else 0)
            cuts = range(max(known, start + 1), min(end, start + frames))
            faulty = varied and not null and self.corpus.has_twin(clip, recoloured=True)
            if faulty and cuts and draw.random() < self.extra["mended"]:
                known = int(draw.choice(cuts))
                codes[row, :known] = self.corpus.twin_codes("vq", [clip])[0, :known]
                captions.append(canonical(self.corpus.scene(clip, bounds[scene])))  # says the background
            else:
                shown = varied and known > start  # at a switch, too, the background stays
                captions.append("" if null else self.corpus.caption(clip, bounds[scene], draw, shown))
            frame = torch.arange(start, start + frames)
            spoken.append(((frame >= known) & (frame < end)).repeat_interleave(per_frame))
            windows.append(codes[row, start:start + frames].flatten())
            before.append(windows[-1])
            kind = draw.random()
            if faulty and kind < self.extra["flashes"] + self.extra["stains"]:
                where = flash(draw, frames, CHUNK_LATENTS / self.stride)[:, None, None]
                if kind >= self.extra["flashes"]:
                    where = stain(draw, self.config.grid)
                twin = self.corpus.twin_codes("vq", [clip])[0, start:start + frames]
                wrong = torch.from_numpy(where).to(codes.device)
                before[-1] = torch.where(wrong, twin, codes[row, start:start + frames]).flatten()
        hidden, mask = self.corpus.text(captions)
        return Batch(hidden, mask.sum(1), torch.stack(windows), torch.stack(spoken).to(codes.device),
                     torch.stack(before))


def code_logits(model: TokenModel, hidden: Tensor, lengths: Tensor, before: Tensor) -> Tensor:
    """Logits (batch, code, num_codes) of every code of a window, each from the codes ``before`` it."""
    config = model.config
    bos = torch.full_like(before[:, :1], config.bos)
    inputs, grid = torch.cat([bos, before[:, :-1]], 1), grid_positions(*config.grid).to(before.device)
    logits: Tensor = model.logits(hidden, lengths, inputs, grid[None])
    return logits.float()[..., :config.num_codes]


@torch.no_grad()
def mixed_with_own(model: TokenModel, hidden: Tensor, lengths: Tensor, codes: Tensor, share: Tensor) -> Tensor:
    """``codes`` with this share of each row replaced by what the model draws there.

    Scheduled sampling in one pass (Mihaylova and Martins, arXiv 1906.07651): what a model goes on from in use is its
    own draws, and its own likeliest mistakes are what it must not be led astray by.
    """
    shares = code_logits(model, hidden, lengths, codes).softmax(-1)
    drawn = torch.multinomial(shares.flatten(0, 1), 1).view_as(codes)
    return torch.where(torch.rand(codes.shape, device=codes.device) < share.to(codes.device)[:, None], drawn, codes)


def token_loss(
    model: TokenModel, hidden: Tensor, lengths: Tensor, codes: Tensor, spoken: Tensor, before: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy (nats a code) and accuracy of the next code from those ``before``, where the text speaks of it."""
    logits = code_logits(model, hidden, lengths, before)
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
        clips = windows.clips(draw, recipe.schedule.batch_size)
        hidden, lengths, codes, spoken, before = windows.draw(draw, clips)
        own, wrong = (torch.from_numpy(draw.uniform(0, windows.extra[name], len(clips))).float()
                      for name in ("own_tokens", "wrong_tokens"))
        before = replaced(mixed_with_own(model, hidden, lengths, before, own), wrong, model.config.num_codes)
        loss, right = token_loss(model, hidden, lengths, codes, spoken, before)
        return {"loss": loss, "accuracy": right.detach()}

    def evaluate(averaged: nn.Module) -> dict[str, float]:
        assert isinstance(averaged, TokenModel)
        loss, right = token_loss(averaged, *windows.draw(rng(0, 2), list(range(64)), varied=False))
        return {"held_out_loss": float(loss), "held_out_accuracy": float(right), "clips": float(len(corpus.pool))}

    train(model, recipe, args, losses, evaluate)


if __name__ == "__main__":
    main()
