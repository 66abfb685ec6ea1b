"""Training data of the AR model and the DiT: text, tokens and latents of windows of the pool's clips, and faults."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from arlon_export.modules.t5 import T5Encoder
from arlon_export.modules.vq import VQVAE
from arlon_rt.networks import Tokenizer
from demo.captions import caption
from demo.config import vq_config
from demo.latents import CHUNK_LATENTS, LatentPool, is_recoloured, twin_of
from demo.scene import Scene
from demo.train_text import load_text_encoder, token_batch
from demo.training import load_averaged

FRAMES_PER_CHUNK = 17


@dataclass
class Corpus:
    """The pool with the trained text encoder and codecs; each clip's tokens are encoded once."""

    pool: LatentPool
    twins: LatentPool
    tokenizer: Tokenizer
    encoder: T5Encoder
    codecs: dict[str, VQVAE]
    device: str
    statistics: tuple[list[float], list[float]]
    tokens: dict[str, list[Tensor]] = field(default_factory=dict)

    @classmethod
    def open(cls, args: argparse.Namespace, codecs: tuple[str, ...]) -> Corpus:
        pool, twins = LatentPool(args.out / "latents"), LatentPool(args.out / "twins", twin_of)
        pool.refresh()
        tokenizer, encoder = load_text_encoder(args.out, args.device)
        loaded: dict[str, VQVAE] = {}
        for name in codecs:
            codec = load_averaged(args.out, name, VQVAE(vq_config(coarse=name == "vq_coarse")), args.device)
            assert isinstance(codec, VQVAE)
            loaded[name] = codec
        corpus = cls(pool, twins, tokenizer, encoder, loaded, args.device, pool.statistics(), {n: [] for n in loaded})
        corpus.refresh()
        return corpus

    @torch.no_grad()
    def refresh(self) -> None:
        """Read new shards and encode their tokens."""
        self.pool.refresh()
        self.twins.refresh()
        for name in self.codecs:
            have = self.tokens[name]
            while len(have) < len(self.pool):
                clips = list(range(len(have), min(len(have) + 32, len(self.pool))))
                have += list(self._encoded(name, self.latents(clips)).cpu())

    @torch.no_grad()
    def _encoded(self, codec: str, latents: Tensor) -> Tensor:
        with torch.autocast(latents.device.type, enabled=False):
            return self.codecs[codec].encode(latents)

    def latents(self, clips: list[int]) -> Tensor:
        """Normalised latents (batch, channel, latent, row, column) of whole clips."""
        return self.pool.batch(clips, *self.statistics).to(self.device)

    def twin_latents(self, clips: list[int]) -> Tensor:
        """`latents` of the clips' twins."""
        return self.twins.batch(clips, *self.statistics).to(self.device)

    def has_twin(self, clip: int, recoloured: bool) -> bool:
        """Whether this clip has a twin that is recoloured, or shifted if ``recoloured`` is False."""
        return clip < len(self.twins) and is_recoloured(clip) == recoloured

    def codes(self, codec: str, clips: list[int]) -> Tensor:
        """Tokens (batch, code_frame, row, column) of whole clips."""
        return torch.stack([self.tokens[codec][i] for i in clips]).to(self.device)

    def twin_codes(self, codec: str, clips: list[int]) -> Tensor:
        """`codes` of the clips' twins; these are encoded at each call."""
        return self._encoded(codec, self.twin_latents(clips))

    @torch.no_grad()
    def text(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Last hidden states (batch, prompt, d), zero where padded, and the mask (batch, prompt)."""
        ids, mask = token_batch(self.tokenizer, captions, self.device)
        return self.encoder(ids, mask) * mask[..., None], mask

    def scene(self, clip: int, latent: int) -> Scene:
        """The scene that latent ``latent`` of a clip shows."""
        return self.pool.clips[clip].scene_at(latent // CHUNK_LATENTS * FRAMES_PER_CHUNK)

    def caption(self, clip: int, latent: int, draw: np.random.Generator, shown: bool = False) -> str:
        """A new caption of the scene at ``latent``; ``shown`` says that earlier frames show its background."""
        return caption(self.scene(clip, latent), draw, shown)

    def switches(self, clip: int) -> list[int]:
        """Latents at which a clip's prompt switches."""
        return [start // FRAMES_PER_CHUNK * CHUNK_LATENTS for start, _ in self.pool.clips[clip].scenes[1:]]


def flash(draw: np.random.Generator, frames: int, period: float) -> npt.NDArray[np.bool_]:
    """(frame,): True where a short fault shows: one or two frames, in half of the cases repeated every ``period``.

    Long video repeats its own past at the same place of each chunk of the autoencoder: a wrong colour in the last
    frames of one chunk came back in the last frames of every later chunk.
    """
    first, length = draw.uniform(0, frames), int(draw.integers(1, 3))
    starts = np.arange(first % period, frames, period) if draw.random() < 0.5 else np.array([first])
    frame = np.arange(frames)
    begun = frame - starts[:, None].astype(int)
    shown: npt.NDArray[np.bool_] = ((begun >= 0) & (begun < length)).any(axis=0)
    return shown


def stain(draw: np.random.Generator, grid: tuple[int, int, int]) -> npt.NDArray[np.bool_]:
    """(frame, row, column): True where a fault stays for up to five frames, on all or a part of the picture.

    As many frames before it are right, so that they tell what no caption names. Long video lost a background that its
    prompts did not name, because patches of another one stayed.
    """
    frames, *sides = grid
    length = int(draw.integers(1, 6))
    first = int(draw.integers(length, frames - length + 1))
    where = np.zeros(grid, np.bool_)
    if draw.random() < 0.3:
        where[first : first + length] = True
        return where
    sizes = [int(draw.integers(1, side + 1)) for side in sides]
    top, left = (int(draw.integers(side - size + 1)) for side, size in zip(sides, sizes, strict=True))
    where[first : first + length, top : top + sizes[0], left : left + sizes[1]] = True
    return where


def replaced(tokens: Tensor, share: Tensor | float, num_codes: int) -> Tensor:
    """``tokens`` with this share (a number, or one a row) replaced by random codes."""
    if isinstance(share, Tensor):
        share = share.view(-1, *[1] * (tokens.dim() - 1)).to(tokens.device)
    wrong = torch.rand(tokens.shape, device=tokens.device) < share
    return torch.where(wrong, torch.randint_like(tokens, num_codes), tokens)
