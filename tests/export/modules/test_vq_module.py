"""The latent VQ-VAE: its strides, its codebook, and that it learns."""

import pytest
import torch

from arlon_export.modules.vq import VQVAE, Codebook, stage_strides
from arlon_rt.config import VQConfig


def config(stride: tuple[int, int, int] = (2, 2, 2), channels: tuple[int, ...] = (16,)) -> VQConfig:
    return VQConfig(num_codes=24, code_dim=4, stride=stride, channels=channels, num_res_blocks=1, norm_groups=8)


def test_an_axis_is_halved_in_the_last_stages() -> None:
    assert stage_strides(config((4, 8, 8), (8, 8, 8))) == [(1, 2, 2), (2, 2, 2), (2, 2, 2)]
    assert stage_strides(config((2, 1, 4), (8, 8))) == [(1, 1, 2), (2, 1, 2)]


@pytest.mark.parametrize(
    ("stride", "channels", "message"),
    [((3, 2, 2), (8, 8), "power of two"), ((0, 2, 2), (8,), "power of two"), ((4, 2, 2), (8,), "needs 2 or more")],
)
def test_strides_the_stages_cannot_make_are_refused(
    stride: tuple[int, int, int], channels: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        VQVAE(config(stride, channels))


@pytest.mark.parametrize(("stride", "channels"), [((2, 2, 2), (16,)), ((4, 2, 2), (8, 16)), ((1, 4, 2), (8, 8, 16))])
def test_tokens_lie_on_the_strided_grid_and_decode_to_whole_strides(
    stride: tuple[int, int, int], channels: tuple[int, ...]
) -> None:
    model = VQVAE(config(stride, channels)).eval()
    with torch.no_grad():
        tokens = model.encode(torch.randn(2, 4, 5, 7, 6))
        coarse = model.decode(tokens)
    grid = tuple(-(-size // s) for size, s in zip((5, 7, 6), stride, strict=True))
    assert tokens.shape == (2, *grid)
    assert coarse.shape == (2, 4, *(n * s for n, s in zip(grid, stride, strict=True)))


def test_padding_repeats_the_edge() -> None:
    model = VQVAE(config()).eval()
    latents = torch.randn(1, 4, 3, 4, 4)
    padded = torch.cat([latents, latents[:, :, -1:]], dim=2)
    with torch.no_grad():
        torch.testing.assert_close(model.vectors(latents), model.vectors(padded))


def test_a_pass_gives_what_encode_and_decode_give() -> None:
    model = VQVAE(config()).eval()
    latents = torch.randn(2, 4, 3, 5, 4)
    with torch.no_grad():
        out = model(latents)
        assert torch.equal(out.tokens, model.encode(latents))
        torch.testing.assert_close(out.coarse, model.decode(out.tokens)[:, :, :3, :5], rtol=1e-4, atol=1e-5)


def test_the_nearest_code_is_the_nearest() -> None:
    book = Codebook(10, 3)
    vectors = torch.randn(50, 3)
    assert torch.equal(book.nearest(vectors), torch.cdist(vectors, book.weight).argmin(dim=1))
    assert torch.equal(book.nearest(book.weight), torch.arange(10))


def test_a_new_codebook_is_seeded_from_its_first_batch() -> None:
    book = Codebook(8, 3)
    vectors = torch.randn(40, 3) + 100.0
    book.seed_dead(vectors)
    assert {tuple(code) for code in book.weight.tolist()} <= {tuple(vector) for vector in vectors.tolist()}


def test_a_code_nobody_uses_dies_and_moves_to_the_data() -> None:
    torch.manual_seed(0)
    book = Codebook(4, 2)
    vectors = torch.randn(64, 2)
    book.seed_dead(vectors)
    book.weight[2] = book.total[2] = 1e4
    for _ in range(320):
        book.seed_dead(vectors)
        book.follow(vectors, book.nearest(vectors))
    assert float(book.weight.abs().max()) < 10.0
    assert len(book.nearest(vectors).unique()) == 4


def test_codes_follow_the_mean_of_their_vectors() -> None:
    book = Codebook(2, 1)
    vectors = torch.tensor([[0.0], [2.0], [10.0], [14.0]])
    book.weight.copy_(torch.tensor([[0.0], [10.0]]))
    book.usage.fill_(2.0)
    book.total.copy_(2.0 * book.weight)
    for _ in range(1000):
        book.follow(vectors, book.nearest(vectors))
    torch.testing.assert_close(book.weight, torch.tensor([[1.0], [12.0]]), rtol=1e-3, atol=1e-3)


def test_it_learns_four_clips() -> None:
    torch.manual_seed(0)
    clips = torch.nn.functional.interpolate(torch.randn(4, 4, 2, 2, 2), scale_factor=2.0)
    model = VQVAE(config(channels=(8,)))
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(50):
        out = model(clips)
        loss = (out.coarse - clips).square().mean() + out.loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float((model(clips).coarse - clips).square().mean().detach()) < 0.5 * float(clips.square().mean())
