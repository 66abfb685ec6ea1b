"""The token model: training pass, prefix and steps are one function; sampling keeps its promises."""

import pytest
import torch

from arlon_export.modules.ar import TokenModel, sample, write_cache
from arlon_rt.config import ARConfig

CONFIG = ARConfig(
    num_codes=30, hidden_size=16, num_layers=2, num_heads=2, ffn_size=32, text_dim=12, grid=(4, 2, 3), max_length=24,
    max_top_k=16,
)
SAME = {"rtol": 1e-5, "atol": 1e-5}
"""fp32 sums in another order."""


@pytest.fixture(scope="module")
def model() -> TokenModel:
    torch.manual_seed(0)
    model = TokenModel(CONFIG).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def text() -> torch.Tensor:
    return torch.randn(2, 7, 12, generator=torch.Generator().manual_seed(1))


LENGTH = torch.tensor([7, 3])
TOKENS = torch.cat([torch.tensor([[CONFIG.bos]]), torch.arange(11)[None] * 7 % 30], dim=1)
GRID = torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(3))


def settings(**changed: float) -> list[torch.Tensor]:
    chosen = {"temperature": 1.0, "top_k": 16, "top_p": 1.0, "uniform": 0.5} | changed
    return [torch.tensor([int(v) if name == "top_k" else float(v)]) for name, v in chosen.items()]


def test_prefix_and_steps_give_the_logits_of_the_training_pass(model: TokenModel, text: torch.Tensor) -> None:
    expected = model.logits(text, LENGTH, TOKENS.expand(2, -1), GRID[None])
    caches = model.prefix(text, model.empty_caches(2))
    at_once, _ = model.step_logits(TOKENS, GRID, LENGTH, caches)
    torch.testing.assert_close(at_once, expected[:, -1], **SAME)
    for i in range(TOKENS.shape[1]):
        logits, caches = model.step_logits(TOKENS[:, i : i + 1], GRID[i : i + 1], LENGTH + i, caches)
        torch.testing.assert_close(logits, expected[:, i], **SAME)


def test_padding_of_the_text_and_stale_caches_change_nothing(model: TokenModel, text: torch.Tensor) -> None:
    stale = [torch.full_like(cache, 9.0) for cache in model.empty_caches(2)]
    padded = model.step_logits(TOKENS, GRID, LENGTH, model.prefix(text, stale))[0]
    alone = model.step_logits(TOKENS, GRID, LENGTH[1:], model.prefix(text[1:, :3], model.empty_caches(1)))[0]
    torch.testing.assert_close(padded[1:], alone, **SAME)
    trained = model.logits(text[1:, :3], LENGTH[1:], TOKENS, GRID[None])
    torch.testing.assert_close(trained[:, -1], alone, **SAME)


def test_no_logit_depends_on_a_later_token(model: TokenModel, text: torch.Tensor) -> None:
    changed = TOKENS.clone()
    changed[:, 6:] = 1
    a, b = (model.logits(text, LENGTH, t.expand(2, -1), GRID[None]) for t in (TOKENS, changed))
    torch.testing.assert_close(a[:, :6], b[:, :6], **SAME)
    assert not torch.allclose(a[:, 6:], b[:, 6:])


def test_each_axis_of_the_grid_matters(model: TokenModel, text: torch.Tensor) -> None:
    base = model.logits(text, LENGTH, TOKENS.expand(2, -1), torch.zeros_like(GRID)[None])
    for axis in range(3):
        moved = torch.zeros_like(GRID)
        moved[:, axis] = 1
        assert not torch.allclose(model.logits(text, LENGTH, TOKENS.expand(2, -1), moved[None]), base)


def test_a_cache_is_written_from_each_rows_own_slot() -> None:
    cache = write_cache(torch.zeros(2, 1, 6, 1), torch.ones(2, 1, 2, 1), torch.tensor([0, 3]))
    assert cache[:, 0, :, 0].tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0]]


def test_guidance_is_the_weighted_sum_of_the_rows(model: TokenModel, text: torch.Tensor) -> None:
    caches = model.prefix(text, model.empty_caches(2))
    logits, _ = model.step_logits(TOKENS, GRID, LENGTH, caches)
    greedy = settings(top_k=1)
    for weights in ([1.0, 0.0], [0.0, 1.0], [4.0, -3.0]):
        guided = (torch.tensor(weights)[:, None] * logits[:, : CONFIG.num_codes]).sum(0)
        token, _ = model.step(TOKENS, GRID, LENGTH, torch.tensor(weights), *greedy, caches)
        assert token.tolist() == [[int(guided.argmax())]]


def test_bos_and_eos_are_never_drawn(text: torch.Tensor) -> None:
    model = TokenModel(CONFIG).eval().requires_grad_(False)
    model.head.weight[CONFIG.num_codes :] = 100.0 * model.head.weight[:1]
    caches = model.prefix(text[:1], model.empty_caches(1))
    for uniform in (0.0, 0.3, 0.7, 0.999):
        arguments = (TOKENS, GRID, LENGTH[:1], torch.ones(1), *settings(uniform=uniform), caches)
        assert int(model.step(*arguments)[0]) < CONFIG.num_codes


@pytest.mark.parametrize("changed", [{"top_k": 1}, {"top_p": 0.0}, {"temperature": 0.0}])
def test_top_k_of_one_top_p_of_zero_and_temperature_of_zero_are_greedy(changed: dict[str, float]) -> None:
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(2))
    for uniform in (0.0, 0.5, 0.999, 1.0):
        token = sample(logits, *settings(uniform=uniform, **changed), max_top_k=16)
        assert token.tolist() == [[int(logits.argmax())]]


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.0, 16, 1.0), (0.7, 5, 1.0), (1.3, 16, 0.6)])
def test_tokens_are_drawn_with_the_kept_probabilities(temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(1, 16, generator=torch.Generator().manual_seed(3))
    probability, order = (logits[0] / temperature).softmax(0).sort(descending=True)
    kept = (probability.cumsum(0) - probability)[:top_k] < top_p
    if top_k < 16:
        probability = probability[:top_k] / probability[:top_k].sum()
        kept = (probability.cumsum(0) - probability) < top_p
    expected = torch.zeros(16)
    expected[order[: len(kept)]] = probability[: len(kept)] * kept / (probability[: len(kept)] * kept).sum()
    draws = [
        int(sample(logits, *settings(temperature=temperature, top_k=top_k, top_p=top_p, uniform=(i + 0.5) / 1000), 16))
        for i in range(1000)
    ]
    frequency = torch.bincount(torch.tensor(draws), minlength=16) / 1000
    assert float((frequency - expected).abs().max()) < 2e-3


def test_training_under_bfloat16_reaches_every_weight(text: torch.Tensor) -> None:
    model = TokenModel(CONFIG)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.logits(text, LENGTH, TOKENS.expand(2, -1), GRID[None])
    torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), TOKENS.expand(2, -1).flatten()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_more_candidates_than_codes_are_refused() -> None:
    with pytest.raises(ValueError, match="max_top_k is 31"):
        TokenModel(ARConfig(**{**vars(CONFIG), "max_top_k": 31}))
