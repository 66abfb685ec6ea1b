"""The token model's loop: cache slots, grid positions, sliding windows, prompt switches, on a toy that checks them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from arlon_rt.config import ARConfig
from arlon_rt.errors import BackendError, OptionsError
from arlon_rt.networks import Sampling, Text, noise
from arlon_rt.networks.ar import TokenModel, TokenStream, grid_positions

CONFIG = ARConfig(
    num_codes=50, hidden_size=8, num_layers=1, num_heads=2, ffn_size=8, text_dim=3, grid=(4, 2, 3), max_length=40,
    max_top_k=16,
)
AREA = 6
SAMPLING = Sampling(guidance_scale=1.0, temperature=1.0, top_k=5, top_p=0.9, seed=3)


class ToyTokenModel:
    """``ar_prefix`` and ``ar_step`` with a cache of slots that remembers what was written where.

    The next token is a hash of everything the mask lets it see: the row's text, and each token with its slot and grid
    position. So one slot or position that is off changes every token after it.
    """

    float_dtype = np.dtype(np.float32)

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def run(self, feed: Mapping[str, Any], hold: Collection[str] = ()) -> dict[str, Any]:
        self.calls.append(dict(feed))
        assert set(hold) == {"key_0_out", "value_0_out"}
        cache = feed["key_0"].copy()
        if "last_hidden_state" in feed:
            cache[:, 0, : feed["last_hidden_state"].shape[1], 0] = feed["last_hidden_state"][:, :, 0]
            return {"key_0_out": cache, "value_0_out": feed["value_0"]}
        tokens, grid = feed["tokens"][0], feed["grid"]
        assert (grid >= 0).all()
        assert (grid < CONFIG.grid).all()
        assert len(tokens) == len(grid)
        seen = []
        for row, start in zip(cache, feed["write_index"], strict=True):
            assert start + len(tokens) <= CONFIG.max_length
            row[0, start : start + len(tokens), 0] = tokens + 100 * grid[:, 0] + 1000 * grid[:, 1] + 5000 * grid[:, 2]
            seen.append(row[0, : start + len(tokens), 0].tobytes())
        number = int.from_bytes(b"".join(seen)[::7], "little") + round(feed["uniform"][0] * 1000)
        return {"next_token": np.array([[number % 50]]), "key_0_out": cache, "value_0_out": feed["value_0"]}

    def steps(self) -> list[dict[str, Any]]:
        return [c for c in self.calls if "tokens" in c]


def text(length: int, value: float = 1.0) -> Text:
    return Text(np.full((1, length, 3), value, np.float32))


def started(toy: ToyTokenModel, sampling: Sampling = SAMPLING, config: ARConfig = CONFIG) -> TokenStream:
    return TokenStream(TokenModel(toy, toy, config), 2, 3, sampling)


def tokens_of(ranges: Sequence[range], prompt: Text, sampling: Sampling = SAMPLING) -> dict[int, bytes]:
    """Tokens by code-frame, written in these portions."""
    stream, found = started(ToyTokenModel(), sampling), {}
    for codes in ranges:
        for frame, grid in zip(codes, stream.extend([prompt], codes)[0], strict=True):
            assert found.setdefault(frame, grid.tobytes()) == grid.tobytes()
    return found


def test_positions_are_those_of_the_predicted_code_or_of_the_token_itself() -> None:
    assert grid_positions(0, 4, 2, 3, "next").tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0]]
    assert grid_positions(5, 3, 2, 3, "next").tolist() == [[0, 1, 2], [1, 0, 0], [1, 0, 1]]
    assert grid_positions(0, 4, 2, 3, "self").tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 2]]


def test_the_first_window_is_the_text_then_bos_then_one_code_a_step() -> None:
    toy = ToyTokenModel()
    tokens = started(toy).extend([text(5)], range(2))
    assert tokens.shape == (1, 2, 2, 3)
    steps = toy.steps()
    assert [s["write_index"].tolist() for s in steps] == [[5 + i] for i in range(12)]
    assert [s["tokens"].tolist() for s in steps] == [[[t]] for t in [CONFIG.bos, *tokens.ravel()[:-1]]]
    assert [s["grid"][0].tolist() for s in steps] == grid_positions(0, 12, 2, 3, "next").tolist()


def test_a_full_window_slides_to_its_newest_half_in_one_call() -> None:
    toy = ToyTokenModel()
    tokens = started(toy).extend([text(5)], range(7))
    full = 4 * AREA
    refill = toy.steps()[full]
    assert refill["tokens"].tolist() == [[CONFIG.bos, *tokens.ravel()[full - 2 * AREA : full]]]
    assert refill["write_index"].tolist() == [5]
    assert np.array_equal(refill["grid"], grid_positions(0, 2 * AREA + 1, 2, 3, "next"))
    assert [len(s["tokens"][0]) for s in toy.steps()].count(1) == len(toy.steps()) - 2  # at code-frames 4 and 6
    assert sum("last_hidden_state" in c for c in toy.calls) == 1


def test_a_slid_window_goes_on_as_a_fresh_model_shown_the_same_context_would() -> None:
    """Window 2 holds nothing of window 1 but the codes it was given again."""
    toy = ToyTokenModel()
    stream = started(toy)
    first = stream.extend([text(5)], range(4))
    after = stream.extend([text(5, 2.0)], range(4, 6))  # another prompt: the prefix is rebuilt over the old caches

    fresh = ToyTokenModel()
    caches = {"key_0": np.zeros((1, 2, 40, 4), np.float32), "value_0": np.zeros((1, 2, 40, 4), np.float32)}
    key = fresh.run({"last_hidden_state": text(5, 2.0).hidden, **caches}, ["key_0_out", "value_0_out"])["key_0_out"]
    codes = [CONFIG.bos, *first.ravel()[2 * AREA :]]
    for index in range(24, 36):
        new = len(codes) if index == 24 else 1
        output = fresh.run({
            "tokens": np.array([codes[-new:]]), "grid": grid_positions(len(codes) - new, new, 2, 3, "next"),
            "write_index": np.array([5 + len(codes) - new]), "key_0": key, "value_0": caches["value_0"],
            "uniform": [noise.uniform(3, "token", index)],
        }, ["key_0_out", "value_0_out"])
        key = output["key_0_out"]
        codes.append(int(output["next_token"][0, 0]))
    assert codes[1 + 2 * AREA :] == after.ravel().tolist()


def test_tokens_do_not_depend_on_how_the_video_is_cut() -> None:
    prompt = text(5)
    whole = tokens_of([range(12)], prompt)
    assert tokens_of([range(0, 5), range(3, 9), range(7, 12)], prompt) == whole
    assert tokens_of([range(i, i + 1) for i in range(12)], prompt) == whole


def test_a_seed_gives_its_own_tokens() -> None:
    other = Sampling(guidance_scale=1.0, temperature=1.0, top_k=5, top_p=0.9, seed=4)
    assert tokens_of([range(3)], text(5)) == tokens_of([range(3)], text(5))
    assert tokens_of([range(3)], text(5)) != tokens_of([range(3)], text(5), other)


def test_a_new_prompt_keeps_half_a_window_as_context() -> None:
    toy = ToyTokenModel()
    stream = started(toy)
    tokens = stream.extend([text(5)], range(3)).ravel().tolist()
    toy.calls.clear()
    stream.extend([text(7)], range(2, 4))
    assert [*toy.calls[0]["last_hidden_state"].shape] == [1, 7, 3]
    assert toy.calls[1]["tokens"].tolist() == [[CONFIG.bos, *tokens[AREA:]]]
    assert toy.calls[1]["write_index"].tolist() == [7]


def test_with_guidance_each_row_writes_after_its_own_text() -> None:
    toy = ToyTokenModel()
    stream = started(toy, Sampling(guidance_scale=3.0, temperature=1.0, top_k=5, top_p=0.9, seed=3))
    stream.extend([text(5), text(1)], range(1))
    assert toy.calls[0]["last_hidden_state"].shape == (2, 5, 3)
    assert toy.calls[0]["key_0"].shape == (2, 2, 40, 4)
    assert [s["write_index"].tolist() for s in toy.steps()] == [[5 + i, 1 + i] for i in range(6)]
    assert toy.steps()[0]["guidance_weights"].tolist() == [3, -2]


def test_temperature_zero_takes_the_likeliest_token() -> None:
    toy = ToyTokenModel()
    started(toy, Sampling(guidance_scale=1.0, temperature=0.0, top_k=5, top_p=0.9, seed=3)).extend([text(5)], range(1))
    assert {int(s["top_k"][0]) for s in toy.steps()} == {1}


def test_a_window_of_the_longest_prompt_fills_the_cache_and_no_more() -> None:
    toy, longest = ToyTokenModel(), CONFIG.max_length - CONFIG.grid[0] * AREA
    started(toy).extend([text(longest)], range(5))  # text, BOS and every code but the last, which is not fed
    assert max(int(s["write_index"][0]) + len(s["tokens"][0]) for s in toy.steps()) == CONFIG.max_length


def test_a_grid_larger_than_the_model_was_trained_for_is_refused() -> None:
    with pytest.raises(OptionsError, match="at most 2 x 3"):
        TokenModel(ToyTokenModel(), ToyTokenModel(), CONFIG).check_size(3, 3)


def test_a_token_that_is_no_code_is_refused() -> None:
    class Broken(ToyTokenModel):
        def run(self, feed: Mapping[str, Any], hold: Collection[str] = ()) -> dict[str, Any]:
            outputs = super().run(feed, hold)
            return {**outputs, "next_token": np.array([[CONFIG.vocab_size - 1]])}

    with pytest.raises(BackendError, match="token 51"):
        started(Broken()).extend([text(5)], range(1))


def test_memory_does_not_grow_with_the_video() -> None:
    stream = started(ToyTokenModel())
    for first in range(0, 60, 2):
        stream.extend([text(5)], range(first, first + 3))
    assert len(stream._codes) <= 5 * AREA


def test_progress_counts_the_new_tokens() -> None:
    seen: list[tuple[int, int]] = []
    stream = started(ToyTokenModel())
    stream.extend([text(5)], range(2))
    stream.extend([text(5)], range(1, 3), on_token=lambda done, total: seen.append((done, total)))
    assert seen == [(i, AREA) for i in range(1, AREA + 1)]
