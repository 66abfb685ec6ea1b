"""The T5 encoder agrees with transformers' T5EncoderModel."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import T5Config, T5EncoderModel

from arlon_export.modules.t5 import T5Encoder
from arlon_rt.config import TextConfig

CONFIG = TextConfig(vocab_size=50, d_model=24, d_kv=6, d_ff=40, num_layers=3, num_heads=4, max_length=160)
TOLERANCE = 1e-5
"""Largest difference on layer-normalised outputs of order 1: two orders of float32 sums."""


@pytest.fixture(scope="module")
def reference() -> T5EncoderModel:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=CONFIG.vocab_size, d_model=CONFIG.d_model, d_kv=CONFIG.d_kv, d_ff=CONFIG.d_ff,
        num_layers=CONFIG.num_layers, num_heads=CONFIG.num_heads, feed_forward_proj="gated-gelu", dropout_rate=0.0,
    )
    model = T5EncoderModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def encoder(reference: T5EncoderModel) -> T5Encoder:
    module = T5Encoder(CONFIG)
    module.load_state_dict(reference.state_dict())
    return module.eval()


@pytest.mark.parametrize("length", [1, 7, 40, 150])
def test_hidden_states_of_valid_tokens_are_those_of_transformers(
    encoder: T5Encoder, reference: T5EncoderModel, length: int
) -> None:
    ids = torch.randint(0, CONFIG.vocab_size, (3, length), generator=torch.Generator().manual_seed(length))
    mask = torch.arange(length)[None] < torch.tensor([length, max(1, length // 2), 1])[:, None]
    with torch.no_grad():
        ours = encoder(ids, mask)
        theirs = reference(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(ours[mask], theirs[mask], rtol=0, atol=TOLERANCE)


def test_padding_does_not_change_a_prompt(encoder: T5Encoder) -> None:
    ids = torch.tensor([[5, 9, 2, 1]])
    padded = torch.tensor([[5, 9, 2, 1, 0, 0, 0]])
    with torch.no_grad():
        alone = encoder(ids, torch.ones(1, 4, dtype=torch.bool))
        beside_padding = encoder(padded, padded != 0)
    torch.testing.assert_close(beside_padding[:, :4], alone, rtol=0, atol=TOLERANCE)


def test_saving_and_loading_use_the_same_names_as_transformers(encoder: T5Encoder, reference: T5EncoderModel) -> None:
    theirs = dict(reference.named_parameters())
    ours = encoder.state_dict()
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}


def test_half_precision_survives_activations_beyond_float16(encoder: T5Encoder) -> None:
    large = copy.deepcopy(encoder)
    with torch.no_grad():
        large.encoder.block[0].layer[1].DenseReluDense.wi_0.weight *= 200
        large.encoder.block[0].layer[1].DenseReluDense.wi_1.weight *= 200
        ids, mask = torch.arange(1, 9)[None], torch.ones(1, 8, dtype=torch.bool)
        exact = large(ids, mask)
        half = large.half()(ids, mask)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), exact, rtol=0.02, atol=0.02)
