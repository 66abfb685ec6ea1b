"""`python -m demo.train_text`: a sentencepiece vocabulary, then the T5 encoder by telling attributes apart."""

from __future__ import annotations

import argparse
import functools
import io
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arlon_export.modules.t5 import T5Encoder
from arlon_rt.networks import Tokenizer, clean_caption
from demo.captions import caption, corpus
from demo.config import text_config
from demo.scene import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, SPEEDS, Scene, sample_scene
from demo.training import Losses, Recipe, arguments, rng, train

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "colour": COLOURS, "shape": SHAPES, "direction": DIRECTIONS, "speed": SPEEDS, "background": BACKGROUNDS,
}


def train_vocabulary(path: Path, size: int, captions: int) -> None:
    """A T5-like sentencepiece model (pad 0, </s> 1, unk 2) over the demo world's captions."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus(captions, rng(0))), model_writer=model, vocab_size=size, hard_vocab_limit=False,
        model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, character_coverage=1.0,
        normalization_rule_name="identity",  # captions are cleaned before; the default rules are 236 KB of the bundle
        required_chars="abcdefghijklmnopqrstuvwxyz0123456789.,'-!?", num_threads=1, minloglevel=2,
    )
    path.write_bytes(model.getvalue())


@functools.lru_cache(maxsize=100_000)
def token_ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Ids of a caption, cleaned as the runtime cleans prompts; "" stays empty."""
    return tuple(tokenizer.encode(clean_caption(clean_caption(text)) if text else "", text_config().max_length))


def token_batch(tokenizer: Tokenizer, captions: list[str], device: str) -> tuple[Tensor, Tensor]:
    """Ids (batch, longest) padded with 0 on the right, and the mask of valid ones."""
    rows = [torch.tensor(token_ids(tokenizer, c)) for c in captions]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(r) for r in rows])
    return ids.to(device), (torch.arange(ids.shape[1]) < lengths[:, None]).to(device)


class TextWithHeads(nn.Module):
    """The encoder and, for training alone, one linear head an attribute over the mean of the valid states."""

    def __init__(self) -> None:
        super().__init__()
        self.t5 = T5Encoder(text_config())
        self.heads = nn.ModuleDict({k: nn.Linear(text_config().d_model, len(v)) for k, v in ATTRIBUTES.items()})

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        states = self.t5(ids, mask).float() * mask[..., None]
        mean = states.sum(1) / mask.sum(1, keepdim=True)
        return {k: head(mean) for k, head in self.heads.items()}


def targets(scenes: list[Scene], device: str) -> dict[str, Tensor]:
    return {k: torch.tensor([v.index(getattr(s, k)) for s in scenes], device=device) for k, v in ATTRIBUTES.items()}


def batch(draw: np.random.Generator, n: int) -> tuple[list[Scene], list[str]]:
    scenes = [sample_scene(draw) for _ in range(n)]
    return scenes, [caption(s, draw) for s in scenes]


def run(args: argparse.Namespace) -> None:
    recipe = Recipe.load("text")
    torch.manual_seed(recipe.schedule.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    vocabulary = args.out / "tokenizer.model"
    if not vocabulary.is_file():
        train_vocabulary(vocabulary, text_config().vocab_size, recipe.tables["training"]["vocabulary_captions"])
    tokenizer = Tokenizer(vocabulary, text_config().vocab_size)
    model = TextWithHeads()

    def losses(step: int) -> Losses:
        scenes, captions = batch(rng(recipe.schedule.seed, step), recipe.schedule.batch_size)
        logits, wanted = model(*token_batch(tokenizer, captions, args.device)), targets(scenes, args.device)
        return {"loss": torch.stack([F.cross_entropy(logits[k], wanted[k]) for k in ATTRIBUTES]).sum()}

    def evaluate(averaged: nn.Module) -> dict[str, float]:
        scenes, captions = batch(rng(0, 1), 512)
        logits, wanted = averaged(*token_batch(tokenizer, captions, args.device)), targets(scenes, args.device)
        return {k: float((logits[k].argmax(-1) == wanted[k]).float().mean()) for k in ATTRIBUTES}

    train(model, recipe, args, losses, evaluate)


def load_text_encoder(out: Path, device: str) -> tuple[Tokenizer, T5Encoder]:
    """The trained text encoder, frozen."""
    from demo.training import load_averaged

    model = load_averaged(out, "text", TextWithHeads(), device)
    assert isinstance(model, TextWithHeads)
    return Tokenizer(out / "tokenizer.model", text_config().vocab_size), model.t5


if __name__ == "__main__":
    run(arguments(__doc__.splitlines()[0]).parse_args())
