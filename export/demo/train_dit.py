"""`python -m demo.train_dit`: STDiT3 with injection by rectified flow, on segments as long video cuts them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from arlon_export.modules.ar import TokenModel
from arlon_export.modules.stdit3 import STDiT3
from arlon_rt.config import FlowConfig
from arlon_rt.networks import timesteps
from arlon_rt.request import IMAGE_FPS
from demo.captions import canonical
from demo.config import VIDEO, ar_config, dit_config, injection_config, vq_config
from demo.latents import CHUNK_LATENTS, CLIP_LATENTS, LatentPool
from demo.train_ar import mixed_with_own
from demo.train_vq import HELD_BACK
from demo.training import Losses, Recipe, arguments, load_averaged, rng, train
from demo.windows import Corpus, flash, replaced

CODECS = ("vq", "vq_coarse")
LENGTHS, LENGTH_SHARES = (20, 15, 10, 5, 1), (0.55, 0.15, 0.1, 0.1, 0.1)
"""Latents of 68, 51, 34 and 17 frames and of a single image, and how often each is drawn."""
KEPT, KEPT_SHARES = ("none", "first_five", "first", "any"), (0.35, 0.5, 0.05, 0.1)

REGION = 4
"""Side of a region whose mean error is looked at by itself; a quarter of the demo's latents."""
JOIN_WEIGHT = 4.0
"""Of a change where chunks meet, beside one inside a chunk, which the autoencoder's decoder evens out."""
UNIFORM_SHARE = 0.4
"""Of timesteps that are drawn uniformly."""
KEPT_NOISE = 0.12
"""Largest deviation of kept latents: decoding to uint8 and encoding again moves them by 0.07 of their spread."""


@dataclass(frozen=True)
class Window:
    """Which latents of which clips a batch is made of."""

    clips: list[int]
    start: int
    length: int


def draw_window(
    draw: np.random.Generator, pool: LatentPool, corpus: Corpus, batch: int, first: int, last: int
) -> Window:
    """One window for all rows; a prompt may switch only where long video switches it: behind the kept five latents."""
    length = int(draw.choice(LENGTHS, p=LENGTH_SHARES))
    start = CHUNK_LATENTS * int(draw.integers(0, (CLIP_LATENTS - max(length, CHUNK_LATENTS)) // CHUNK_LATENTS + 1))
    clips: list[int] = []
    while len(clips) < batch:
        clip = int(draw.integers(first, last))
        if not any(start < s < start + length and s != start + CHUNK_LATENTS for s in corpus.switches(clip)):
            clips.append(clip)
    return Window(clips, start, length)


class Drawn:
    """Tokens as the token model draws them, each from the true ones before it; made once a clip.

    They waver as tokens do in use: an object's place by a pixel or two from one code-frame to the next.
    """

    def __init__(self, corpus: Corpus, model: TokenModel) -> None:
        self.corpus, self.model = corpus, model
        self._codes: dict[int, Tensor] = {}

    def __call__(self, clip: int) -> Tensor:
        """(code_frame, row, column) of a clip whose prompt does not switch."""
        if clip not in self._codes:
            codes, window = self.corpus.codes("vq", [clip]), self.model.config.grid[0]
            text, mask = self.corpus.text([canonical(self.corpus.scene(clip, 0))])
            drawn = torch.zeros_like(codes)
            for start in (codes.shape[1] - window, 0):  # the first window has its say where they overlap
                shown = codes[:, start:start + window]
                made = mixed_with_own(self.model, text, mask.sum(1), shown.flatten(1), torch.ones(1))
                drawn[:, start:start + window] = made.view_as(shown)
            self._codes[clip] = drawn[0].cpu()
        return self._codes[clip]


def coarse_window(
    corpus: Corpus, codec: str, window: Window, wrong: Tensor | float, drawn: Mapping[int, Tensor] = {}
) -> Tensor:
    """Coarse latents of a window, decoded from exactly the code-frames that cover it.

    ``drawn`` holds the codes of rows that do not take their clip's own.
    """
    stride = vq_config(coarse=codec == "vq_coarse").stride[0]
    first, end = window.start // stride, math.ceil((window.start + window.length) / stride)
    model, codes = corpus.codecs[codec], corpus.codes(codec, window.clips)
    for row, other in drawn.items():
        codes[row] = other
    tokens = replaced(codes[:, first:end], wrong, model.config.num_codes)
    with torch.no_grad():
        coarse = model.decode(tokens).float()
    offset = window.start - first * stride
    return coarse[:, :, offset:offset + window.length]


def uncertain(coarse: Tensor) -> Tensor:
    """Uncertainty sampling (docs/spec.md 4): each row's channel statistics, redrawn with the batch's spread of them."""
    axes = (2, 3, 4)
    mean, std = coarse.mean(axes, keepdim=True), coarse.std(axes, keepdim=True) + 1e-5
    drawn_mean = mean + mean.std(0, keepdim=True) * torch.randn_like(mean) * 0.5
    drawn_std = std + std.std(0, keepdim=True) * torch.randn_like(std) * 0.5
    return drawn_std * (coarse - mean) / std + drawn_mean


def kept_frames(draw: np.random.Generator, window: Window, corpus: Corpus) -> Tensor:
    """(batch, frame) bool, True where generated: none kept, the first, the first five, or any."""
    mask = torch.ones(len(window.clips), window.length, dtype=torch.bool)
    for row, clip in enumerate(window.clips):
        kind = draw.choice(KEPT, p=KEPT_SHARES)
        if window.start + CHUNK_LATENTS in corpus.switches(clip):
            kind = "first_five"  # the old prompt's latents are context, never something to make
        if window.length > CHUNK_LATENTS and kind == "first_five":
            mask[row, :CHUNK_LATENTS] = False
        elif window.length > 1 and kind == "first":
            mask[row, 0] = False
        elif window.length > 1 and kind == "any":
            mask[row] = torch.from_numpy(draw.random(window.length) < draw.uniform(0.3, 1.0))
    return mask


def faulty(
    draw: np.random.Generator, window: Window, corpus: Corpus, mask: Tensor, shares: Mapping[str, float]
) -> tuple[Tensor, Tensor]:
    """What generated and what kept frames show (batch, channel, latent, row, column), of some rows their twins.

    Tokens are always the clips' own. Where all frames are the shifted twin's, the generated ones go on from where the
    kept ones are, not from where the tokens are; where only the kept ones are the recoloured twin's, the generated ones
    have the colours of tokens and text. In half of those rows the recoloured twin shows only in passing.
    """
    made = corpus.latents(window.clips)
    kept = made.clone()
    for row, clip in enumerate(window.clips):
        if mask[row].all():
            continue
        if corpus.has_twin(clip, recoloured=False) and draw.random() < shares["shifted"]:
            made[row] = kept[row] = corpus.twin_latents([clip])[0]
        elif corpus.has_twin(clip, recoloured=True) and draw.random() < shares["recoloured"]:
            where = flash(draw, CHUNK_LATENTS, CHUNK_LATENTS) if draw.random() < 0.5 else np.ones(CHUNK_LATENTS, bool)
            latents = torch.from_numpy(np.tile(where, kept.shape[2] // CHUNK_LATENTS)).to(kept.device)
            kept[row, :, latents] = corpus.twin_latents([clip])[0, :, latents]
    shown = slice(window.start, window.start + window.length)
    return made[:, :, shown], kept[:, :, shown]


def draw_times(draw: np.random.Generator, batch: int, length: int) -> Tensor:
    """Timesteps in 0..1000: logit-normal with Open-Sora's transform for this size and length, or uniform.

    At this size the transform pulls times down, and strong noise, where sampling begins, would hardly ever be drawn.
    """
    frames = 1 if length == 1 else length // CHUNK_LATENTS * 17
    ratio_step = float(timesteps(2, VIDEO.height, VIDEO.width, frames, FlowConfig())[1]) / 1000  # r / (1 + r)
    ratio = ratio_step / (1 - ratio_step)
    tau = 1 / (1 + np.exp(-draw.normal(0.0, 1.2, batch)))
    transformed = 1000 * ratio * tau / (1 + (ratio - 1) * tau)
    uniform = draw.random(batch) < UNIFORM_SHARE
    return torch.from_numpy(np.where(uniform, 1000 * draw.random(batch), transformed)).float()


def with_flashes(
    draw: np.random.Generator, window: Window, corpus: Corpus, codes: Mapping[int, Tensor], share: float
) -> dict[int, Tensor]:
    """``codes`` of rows, and of this share of rows with a recoloured twin, its codes in passing among their own."""
    found = dict(codes)
    for row, clip in enumerate(window.clips):
        if corpus.has_twin(clip, recoloured=True) and draw.random() < share:
            own = codes.get(row, corpus.codes("vq", [clip])[0])
            where = torch.from_numpy(flash(draw, len(own), CHUNK_LATENTS / vq_config().stride[0])).to(own.device)
            found[row] = torch.where(where[:, None, None], corpus.twin_codes("vq", [clip])[0].to(own.device), own)
    return found


def wavering(error: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """How far whole regions of the picture are off, and how much that changes from one latent to the next.

    A background a little too bright is nothing in the squared error of single values, but it is what an eye sees when
    the next chunk has another one.

    Args:
        error: (batch, channel, frame, height, width), of the velocity; 0 on kept frames.
        mask: (batch, frame) bool, True where generated.
    """
    regions = F.avg_pool2d(error.flatten(0, 1), REGION).view(*error.shape[:3], -1)
    tint = regions.square().mean((1, 3))
    change = regions.diff(dim=2).square().mean((1, 3))
    changes = (mask[:, 1:] | mask[:, :-1]).float()
    changes[:, CHUNK_LATENTS - 1::CHUNK_LATENTS] *= JOIN_WEIGHT
    return (tint * mask).sum() / mask.sum().clamp(min=1), (change * changes).sum() / changes.sum().clamp(min=1)


class DiTLoss:
    """Velocity loss on the generated frames: data - noise at (1 - t) data + t noise."""

    def __init__(self, model: STDiT3, corpus: Corpus, drawn: Drawn, recipe: Recipe, device: str) -> None:
        self.model, self.corpus, self.drawn, self.device = model, corpus, drawn, device
        self.schedule, self.extra = recipe.schedule, recipe.tables["training"]

    def __call__(self, step: int) -> Losses:
        if step % 50 == 0:
            self.corpus.refresh()
        draw = rng(self.schedule.seed, step)
        pool = self.corpus.pool
        window = draw_window(draw, pool, self.corpus, self.schedule.batch_size, HELD_BACK, len(pool))
        coarse = None
        if draw.random() >= self.extra["no_injection"]:
            codec = CODECS[int(draw.random() < self.extra["coarser_codec"])]
            wrong = torch.from_numpy(draw.uniform(0, self.extra["wrong_tokens"], len(window.clips))).float()
            drawn = {row: self.drawn(clip) for row, clip in enumerate(window.clips)
                     if codec == "vq" and draw.random() < self.extra["drawn_tokens"] and not self.corpus.switches(clip)}
            if codec == "vq":
                drawn = with_flashes(draw, window, self.corpus, drawn, self.extra["flashes"])
            coarse = coarse_window(self.corpus, codec, window, wrong, drawn)
            if draw.random() < self.extra["uncertainty"]:
                coarse = uncertain(coarse)
        mask = kept_frames(draw, window, self.corpus)
        null = torch.from_numpy(draw.random(len(window.clips)) < self.extra["null_text"])
        times = draw_times(draw, len(window.clips), window.length)
        return self.loss(draw, window, coarse, mask, null, times)

    def loss(
        self, draw: np.random.Generator, window: Window, coarse: Tensor | None, mask: Tensor, null: Tensor,
        times: Tensor,
    ) -> Losses:
        data, before = faulty(draw, window, self.corpus, mask, self.extra)
        shown = window.start + window.length - 1
        context = (~mask.all(1)).tolist()
        captions = [self.corpus.caption(c, shown, draw, k) for c, k in zip(window.clips, context, strict=True)]
        text, text_mask = self.corpus.text(captions)
        mask, null, times = mask.to(self.device), null.to(self.device), times.to(self.device)
        noise = torch.from_numpy(draw.standard_normal(data.shape, np.float32)).to(self.device)
        t = times.view(-1, 1, 1, 1, 1) / 1000
        made = mask[:, None, :, None, None]
        level = torch.from_numpy(draw.uniform(0, KEPT_NOISE, (len(times), 1, 1, 1, 1))).float().to(self.device)
        kept = before + level * torch.from_numpy(draw.standard_normal(data.shape, np.float32)).to(self.device)
        latents = torch.where(made, (1 - t) * data + t * noise, kept)
        rows = torch.ones(len(times), device=self.device)
        features = None if coarse is None else self.model.semantic(coarse)
        fps = rows * (IMAGE_FPS if window.length == 1 else VIDEO.fps)
        with sdpa_kernel(SDPBackend.MATH):  # for this many short sequences on a CPU, 0.6 of the fused kernel's time
            out = self.model.velocity(
                latents, times, text, text_mask, mask, fps, rows * VIDEO.height, rows * VIDEO.width, features, null,
            )[:, :data.shape[1]]
        error = (out - (data - noise)) * made
        tint, flicker = wavering(error, mask)
        whole = error.square().sum() / (made.sum() * data[0, :, 0].numel()).clamp(min=1)
        return {"loss": whole + self.extra["tint"] * tint + self.extra["flicker"] * flicker,
                "velocity": whole.detach(), "tint": tint.detach(), "flicker": flicker.detach()}

    def evaluate(self, averaged: nn.Module) -> dict[str, float]:
        """Loss on held-back clips, whole segments, with and without injection."""
        assert averaged is self.model
        clips = [c for c in range(HELD_BACK) if not any(s < 20 for s in self.corpus.switches(c))][:32]
        window = Window(clips, 0, 20)
        n = len(clips)
        times = torch.linspace(50, 1000, n)
        everything, nobody = torch.ones(n, 20, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
        coarse = coarse_window(self.corpus, "vq", window, 0.0)
        with_tokens = self.loss(rng(0, 3), window, coarse, everything, nobody, times)
        text_only = self.loss(rng(0, 3), window, None, everything, nobody, times)
        return {
            "held_out": float(with_tokens["velocity"]), "held_out_text_only": float(text_only["velocity"]),
            "held_out_tint": float(with_tokens["tint"]), "held_out_flicker": float(with_tokens["flicker"]),
            "clips": float(len(self.corpus.pool)),
        }


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="dit", help="the recipe, e.g. that of a variant to compare with")
    args = parser.parse_args()
    recipe = Recipe.load(args.recipe)
    torch.manual_seed(recipe.schedule.seed)
    model = STDiT3(dit_config(), injection_config(args.recipe))
    corpus = Corpus.open(args, CODECS)
    tokens = load_averaged(args.out, "ar", TokenModel(ar_config()), args.device)
    assert isinstance(tokens, TokenModel)
    loss = DiTLoss(model, corpus, Drawn(corpus, tokens), recipe, args.device)
    train(model, recipe, args, loss, loss.evaluate)


if __name__ == "__main__":
    main()
