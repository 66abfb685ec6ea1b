"""The text encoder: T5's token ids, caption cleaning, encoding at true length."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from arlon_rt.config import TextConfig
from arlon_rt.errors import BundleError, OptionsError
from arlon_rt.events import PromptCut
from arlon_rt.networks import TextEncoder, Tokenizer, clean_caption, guidance_weights, with_scores
from arlon_rt.networks.embedding import stacked
from tiny_bundle import tokenizer

WORDS = [
    "a", "red", "circle", "moves", "right", "slowly", "on", "black", "background", "fully", "naïve", "café", "fly",
    "don't", "re-do", "x2", "3.5", "Ünïcödé", "straße", "Москва", "движется", "σφαίρα", "你好", "日本語", "مرحبا", "😀",
    "👍🏽", "e\u0301", "ﬁne", "½", "№", "™", "Å",
]
MARKS = [*" \t\n\u00a0\u3000.,;:!?'\"-_()[]{}<>/\\@#%&*+=~`^|$€", "</s>", "<pad>", "<unk>", "<extra_id_0>"]
SCRIPTS = [(0x21, 0x24F), (0x370, 0x5FF), (0x900, 0x97F), (0x2000, 0x2FFF), (0xAC00, 0xAD00), (0x1F300, 0x1F600)]
TEXT = TextConfig(
    vocab_size=64, d_model=3, d_kv=4, d_ff=16, num_layers=1, num_heads=2, max_length=12, clean_caption=False
)


def strings(count: int) -> list[str]:
    """Words, marks, special tokens and odd characters of many scripts, in any order."""
    rng = random.Random(0)
    kinds = [
        lambda: rng.choice(WORDS), lambda: rng.choice(WORDS), lambda: rng.choice(MARKS),
        lambda: chr(rng.randint(*rng.choice(SCRIPTS))), lambda: "".join(rng.choices(WORDS, k=3)),
    ]
    gaps = [" ", " ", "", "  ", "\t"]
    return ["".join(rng.choice(kinds)() + rng.choice(gaps) for _ in range(rng.randint(0, 12))) for _ in range(count)]


@pytest.fixture(scope="module")
def unigram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentencepiece model trained as T5's was; some of the characters stay unknown to it."""
    folder, rng = tmp_path_factory.mktemp("t5"), random.Random(1)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(rng.choices(WORDS, k=10)) for _ in range(300)]),
        model_prefix=str(folder / "spiece"), vocab_size=220, hard_vocab_limit=False, character_coverage=0.98,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, num_threads=1,
    )
    return folder / "spiece.model"


@pytest.mark.parametrize("max_length", [300, 8])
def test_token_ids_equal_those_of_transformers(unigram: Path, max_length: int) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.T5Tokenizer.from_pretrained(unigram.parent, extra_ids=0)
    ours = Tokenizer(unigram, vocab_size=220)
    for text in strings(1000):
        expected = theirs(text, max_length=max_length, truncation=True, padding="max_length")
        ids = ours.encode(text, max_length)
        assert ids + [0] * (max_length - len(ids)) == expected["input_ids"], repr(text)
        assert len(ids) == sum(expected["attention_mask"])


def test_special_tokens_in_the_text_are_themselves(unigram: Path) -> None:
    ours = Tokenizer(unigram, vocab_size=220)
    red, circle = ours.encode("red", 9)[:-1], ours.encode("circle", 9)[:-1]
    assert ours.encode("red</s>circle<pad>", 99) == [*red, 1, *circle, 0, 1]


def test_a_damaged_or_foreign_tokenizer_is_refused(tmp_path: Path, unigram: Path) -> None:
    damaged = tmp_path / "tokenizer.model"
    damaged.write_bytes(b"no model")
    with pytest.raises(BundleError, match="cannot be read"):
        Tokenizer(damaged, vocab_size=220)
    with pytest.raises(BundleError, match=r"vocab_size is 50"):
        Tokenizer(unigram, vocab_size=50)


@pytest.mark.parametrize(
    ("prompt", "caption"),
    [
        ("A Red  Circle\nmoves", "a red circle moves"),
        ("see https://example.com/x?y=1 now", "see ?y=1 now"),
        ("a <b>bold</b> cat &amp; dog", "a bold cat dog"),
        ("红色 circle", "circle"),
        ("a ‘quiet’ — «long» night", "a 'quiet' - \"long\" night"),
        ("photo.jpg of a cat, 640x480", "of a cat,"),
        ("free shipping worldwide", "worldwide"),
        ("this-is-my-cute-cat", "this is my cute cat"),
        ("a dog aesthetic score: 6.5.", "a dog aesthetic score: 6.5."),
        ("wow*** (really) #123", "wow really"),
        ("ﬁne ﬂowers", "fine flowers"),
    ],
)
def test_captions_are_cleaned(prompt: str, caption: str) -> None:
    assert clean_caption(prompt) == caption


@pytest.mark.parametrize(
    ("prompt", "scores", "scored"),
    [
        ("a dog.", {}, "a dog. aesthetic score: 6.5."),
        ("a dog.", {"aesthetic_score": 7}, "a dog. aesthetic score: 7.0."),
        ("a dog.", {"motion_score": 4.25}, "a dog. aesthetic score: 6.5. motion score: 4.2."),
        ("a dog.", {"camera_motion": "pan right", "motion_score": 4, "aesthetic_score": 5.5},
         "a dog. aesthetic score: 5.5. motion score: 4.0. camera motion: pan right."),
        ("a dog. Aesthetic score: 3.", {"aesthetic_score": 7}, "a dog. Aesthetic score: 3."),
        ("a dog. motion score: 9.", {"motion_score": 1}, "a dog. motion score: 9. aesthetic score: 6.5."),
        ("a dog. camera motion: static.", {"camera_motion": "pan right", "motion_score": 0},
         "a dog. camera motion: static. aesthetic score: 6.5. motion score: 0.0."),
    ],
)
def test_scores_follow_the_prompt_in_open_sora_s_order_unless_it_says_them(
    prompt: str, scores: dict[str, Any], scored: str
) -> None:
    assert with_scores(prompt, " aesthetic score: 6.5.", **scores) == scored
    assert clean_caption(clean_caption(scored)) == scored.lower()   # cleaning keeps every score


def test_a_model_trained_without_scores_gets_the_prompt_as_it_is() -> None:
    assert with_scores("a dog", "") == "a dog"


class Lengths:
    """A text encoder whose hidden state is the token ids, and that counts its runs."""

    def __init__(self) -> None:
        self.runs = 0

    def run(self, feed: Mapping[str, Any], hold: Collection[str] = ()) -> dict[str, Any]:
        self.runs += 1
        assert feed["attention_mask"].all()
        return {"last_hidden_state": np.repeat(feed["input_ids"][:, :, None], 3, axis=2).astype(np.float32)}


def encoder(tmp_path: Path, **fields: Any) -> tuple[TextEncoder, Lengths]:
    path, session = tmp_path / "tokenizer.model", Lengths()
    path.write_bytes(tokenizer())
    config = TextConfig(**{**TEXT.__dict__, **fields})
    return TextEncoder(session, Tokenizer(path, config.vocab_size), config), session


def test_a_prompt_is_encoded_at_its_true_length_and_once(tmp_path: Path) -> None:
    text_encoder, session = encoder(tmp_path)
    text = text_encoder.encode("red circle")
    assert text.hidden.shape[::2] == (1, 3)
    assert text.hidden[0, -1, 0] == 1
    assert text_encoder.encode("red circle") is text
    assert session.runs == 1


def test_few_prompts_are_remembered(tmp_path: Path) -> None:
    text_encoder, session = encoder(tmp_path)
    for i in range(20):
        text_encoder.encode(f"red {i}")
    text_encoder.encode("red 19")
    assert session.runs == 20
    text_encoder.encode("red 0")
    assert session.runs == 21


def test_a_prompt_that_is_too_long_says_what_it_loses(tmp_path: Path) -> None:
    fitting = encoder(tmp_path, max_length=99)[0].encode("red circle").hidden.shape[1]   # the closing token included
    text_encoder, _ = encoder(tmp_path, max_length=fitting)
    assert text_encoder.cut("red circle") is None
    assert text_encoder.cut("red circle a a") == PromptCut(
        prompt="red circle a a", max_tokens=fitting, lost_tokens=4, lost_text="a a"   # a space is a token here
    )
    assert np.array_equal(text_encoder.encode("red circle a a").hidden, text_encoder.encode("red circle").hidden)


def test_the_null_prompt_is_the_end_token_alone(tmp_path: Path) -> None:
    assert encoder(tmp_path)[0].null().hidden.tolist() == [[[1, 1, 1]]]


def test_a_prompt_of_which_cleaning_leaves_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="no word is left"):
        encoder(tmp_path, clean_caption=True)[0].encode("红色的圆")


def test_texts_of_different_length_become_one_batch(tmp_path: Path) -> None:
    text_encoder, _ = encoder(tmp_path)
    texts = [text_encoder.encode("red circle"), text_encoder.null()]
    hidden, mask = stacked(texts)
    assert mask.sum(axis=1).tolist() == [texts[0].hidden.shape[1], 1]
    assert np.array_equal(hidden[0], texts[0].hidden[0])
    assert (hidden[1, 1:] == 0).all()


def test_guidance_weighs_prompt_and_null_to_one() -> None:
    assert guidance_weights(7, 2).tolist() == [7, -6]
    assert guidance_weights(1, 1).tolist() == [1]
