"""Training of the demo model: runs that resume, the stream of clips, the optimizer."""

import copy
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from arlon_export.modules.vae import VideoVAE
from arlon_export.modules.vq import VQVAE
from arlon_rt.config import VQConfig
from demo.config import vae_config
from demo.latents import (
    LARGEST_SHIFT,
    SHARD_CLIPS,
    LatentPool,
    clip_of,
    encode_clip,
    is_recoloured,
    twin_of,
)
from demo.muon import Muon, hidden_weights, optimizers, orthogonal
from demo.scene import HELD_OUT, sample_scene
from demo.train_autoencoder import CROP, cropped
from demo.trained import check_latents
from demo.training import Recipe, Schedule, arguments, keep_short_conv3d_in_float32, learning_rate, rng, train
from demo.world import render, render_clip

TINY = Recipe("tiny", Schedule(steps=4, batch_size=16, learning_rate=1e-2, warmup_steps=2, phases=(3,)), {})


# -- runs ------------------------------------------------------------------------------------------------------------


def run(out: Path, *options: str, initial: int = 0, evaluate: Callable[[nn.Module], None] = lambda averaged: None):
    """Train a tiny model in ``out`` and return it; its losses use both random streams, its batch norm has buffers."""
    torch.manual_seed(initial)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 1))
    threads = str(torch.get_num_threads())
    args = arguments("").parse_args(["--out", str(out), "--device", "cpu", "--threads", threads, *options])

    def losses(step: int) -> dict[str, Tensor]:
        x = torch.from_numpy(rng(1, step).standard_normal((16, 3), np.float32))
        return {"loss": (model(x) - x.sum(1, keepdim=True) + 0.1 * torch.randn(16, 1)).square().mean()}

    def figures(averaged: nn.Module) -> dict[str, float]:
        evaluate(averaged)
        return {}

    train(model, TINY, args, losses, figures)
    return model


def checkpoint(out: Path) -> dict[str, Any]:
    return torch.load(out / "tiny.pt", weights_only=True)


def assert_same(out: Path, other: Path) -> None:
    """Bit for bit: the weights, their averages and the optimizer's moments."""
    a, b = checkpoint(out), checkpoint(other)
    assert a["step"] == b["step"]
    moments = [[o["state"] for o in c["optimizers"]] for c in (a, b)]
    for x, y in ((a["model"], b["model"]), (a["ema"], b["ema"]), moments):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path):
    run(tmp_path / "once")
    run(tmp_path / "twice", "--steps", "2")
    assert checkpoint(tmp_path / "twice")["step"] == 2
    run(tmp_path / "twice", initial=5)
    assert_same(tmp_path / "once", tmp_path / "twice")


def test_a_save_that_fails_midway_leaves_the_last_checkpoint_whole(tmp_path: Path):
    run(tmp_path / "once")
    run(tmp_path / "full", "--steps", "2")
    before = (tmp_path / "full" / "tiny.pt").read_bytes()
    unfinished = tmp_path / "full" / "tiny.tmp"
    unfinished.symlink_to("/dev/full")  # every write finds the disk full
    with pytest.raises(RuntimeError, match=r"iostream|unexpected pos"):
        run(tmp_path / "full")
    assert (tmp_path / "full" / "tiny.pt").read_bytes() == before
    unfinished.unlink()
    run(tmp_path / "full")
    assert_same(tmp_path / "once", tmp_path / "full")


def test_a_finished_run_is_left_as_it_is(tmp_path: Path):
    run(tmp_path)
    before = (tmp_path / "tiny.pt").read_bytes(), (tmp_path / "tiny.jsonl").read_text()
    run(tmp_path)
    assert ((tmp_path / "tiny.pt").read_bytes(), (tmp_path / "tiny.jsonl").read_text()) == before


def test_the_average_is_evaluated_and_the_trained_weights_come_back(tmp_path: Path):
    seen: dict[str, Tensor] = {}
    model = run(tmp_path, evaluate=lambda averaged: seen.update(copy.deepcopy(averaged.state_dict())))
    saved = checkpoint(tmp_path)
    torch.testing.assert_close(seen, dict(saved["ema"]), rtol=0, atol=0)
    torch.testing.assert_close(dict(model.state_dict()), dict(saved["model"]), rtol=0, atol=0)
    assert not torch.equal(saved["ema"]["0.weight"], saved["model"]["0.weight"])


@pytest.mark.parametrize(("first", "end"), [(0, 100), (100, 300), (300, 400)])
def test_each_phase_warms_up_to_the_learning_rate_and_falls_to_a_fiftieth_of_it(first: int, end: int):
    schedule = Schedule(steps=400, batch_size=1, learning_rate=2.0, warmup_steps=10, phases=(100, 300))
    rates = [learning_rate(schedule, step) for step in range(first, end)]
    assert rates[0] == pytest.approx(2.0 / 10)
    assert all(a < b for a, b in itertools.pairwise(rates[:10]))
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert max(rates) == pytest.approx(2.0, rel=0.02)
    assert rates[len(rates) // 2] == pytest.approx(2.0 * 0.51)
    assert rates[-1] == pytest.approx(2.0 / 50, rel=0.02)


# -- the stream of clips ---------------------------------------------------------------------------------------------


def test_held_out_combinations_never_occur_in_the_stream_of_clips():
    clips = [clip_of(i) for i in range(500)]
    shown = {scene.combination for clip in clips for _, scene in clip.scenes}
    assert any(len(clip.scenes) > 1 for clip in clips)
    assert shown.isdisjoint(HELD_OUT)


def test_a_twin_differs_from_its_clip_in_one_fault_and_shows_nothing_held_out():
    for i in range(200):
        clip, twin = clip_of(i), twin_of(i)
        assert [start for start, _ in clip.scenes] == [start for start, _ in twin.scenes]
        for (_, scene), (_, other) in zip(clip.scenes, twin.scenes, strict=True):
            assert other.combination not in HELD_OUT
            if is_recoloured(i):
                assert (other.colour != scene.colour) != (other.background != scene.background)
                moves = [(s.x, s.y, s.shape, s.direction, s.velocity) for s in (scene, other)]
                assert moves[0] == moves[1]
            else:
                assert 0 < max(abs(other.x - scene.x), abs(other.y - scene.y)) <= LARGEST_SHIFT
                assert dataclasses.replace(other, x=scene.x, y=scene.y) == scene


def test_the_pool_takes_in_shards_as_they_come_and_normalises_by_the_first(tmp_path: Path):
    shards = np.random.default_rng(0).normal(3, 2, (2, SHARD_CLIPS, 4, 2, 2, 2)).astype(np.float16)
    pool = LatentPool(tmp_path)
    with pytest.raises(SystemExit, match=r"python -m demo\.latents"):
        pool.refresh()
    np.save(tmp_path / "00000.npy", shards[0])
    pool.refresh()
    statistics = pool.statistics()
    np.save(tmp_path / "00001.npy", shards[1] + 5)
    pool.refresh()
    assert len(pool) == 2 * SHARD_CLIPS
    assert pool.clips[-1] == clip_of(2 * SHARD_CLIPS - 1)
    assert pool.statistics() == statistics
    first = pool.batch(list(range(SHARD_CLIPS)), *statistics)
    assert float(first.mean()) == pytest.approx(0, abs=0.01)
    assert float(first.std()) == pytest.approx(1, abs=0.01)


def test_latents_that_the_autoencoder_does_not_make_are_refused(tmp_path: Path):
    torch.manual_seed(0)
    vae, other = VideoVAE(vae_config()).eval(), VideoVAE(vae_config([0.2] * 4, [1.3] * 4)).eval()
    other.load_state_dict({k: v for k, v in vae.state_dict().items() if k not in ("shift", "scale")}, strict=False)
    made = encode_clip(vae, render_clip(clip_of(0), 64), "cpu")
    pool = LatentPool(tmp_path, clip_of, [made], [clip_of(0)])
    check_latents(pool, vae)
    with pytest.raises(SystemExit, match=r"make them again with `python -m demo\.latents`"):
        check_latents(pool, other)


def test_a_variant_differs_from_its_base_in_what_it_names_alone():
    usual, variant = Recipe.load("dit"), Recipe.load("dit_one_layer")
    assert variant.schedule == dataclasses.replace(usual.schedule, steps=500, batch_size=8)
    assert variant.tables["injection"] == {"layers": [0]} != usual.tables["injection"]
    assert variant.tables["model"] == usual.tables["model"]
    different = {k for k, v in variant.tables["training"].items() if usual.tables["training"][k] != v}
    assert different == {"wrong_tokens", "drawn_tokens", "flashes"}


# -- the optimizer and the autoencoder's windows -----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16), (1, 24, 24)])
def test_orthogonal_matrices_have_singular_values_near_one(shape: tuple[int, int, int]):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonal(matrices))
    assert values.min() > 0.3
    assert values.max() < 1.4
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(orthogonal(matrices).flatten(), (u @ v).flatten(), dim=0) > 0.95


def test_muon_takes_hidden_weights_and_adamw_every_other_parameter():
    model = nn.ModuleDict({
        "embedding": nn.Embedding(9, 16), "conv": nn.Conv3d(8, 8, 3), "norm": nn.GroupNorm(2, 8),
        "narrow": nn.Linear(16, 4), "fc": nn.Linear(16, 16), "head": nn.Linear(16, 32),
    })
    assert [id(w) for w in hidden_weights(model)] == [id(model["conv"].weight), id(model["fc"].weight)]
    taken = [id(p) for o in optimizers(model, 1e-3, 0.0) for g in o.param_groups for p in g["params"]]
    assert sorted(taken) == sorted(id(p) for p in model.parameters())


def test_muon_brings_a_convolution_to_the_one_that_made_the_data():
    torch.manual_seed(0)
    wanted, model = nn.Conv2d(8, 12, 3), nn.Conv2d(8, 12, 3)
    muon = Muon([model.weight], 3e-3, 0.0)
    losses = []
    for _ in range(150):
        x = torch.randn(8, 8, 6, 6)
        loss = (model(x) - wanted(x)).square().mean()
        model.zero_grad()
        loss.backward()
        muon.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_cropped_windows_show_the_object():
    draw = rng(5, 1)
    for _ in range(20):
        scene = sample_scene(draw)
        window = cropped(render(scene, 2), scene, draw)
        assert window.shape == (2, CROP, CROP, 3)
        far = np.abs(window[0].astype(int) - scene.background_rgb).sum(-1).max()
        assert far > 0.9 * np.abs(np.subtract(scene.rgb, scene.background_rgb)).sum()


# -- bfloat16 --------------------------------------------------------------------------------------------------------


SMALL_VQ = VQConfig(num_codes=24, code_dim=4, stride=(4, 2, 2), channels=(8, 16), num_res_blocks=1, norm_groups=8)


@pytest.mark.parametrize("seed", range(40))
def test_gradients_are_whole_and_pass_straight_through_the_codes_under_bfloat16(seed: int) -> None:
    """Each convolution's gradient is the one that float32 gives it, from what it saw; without the guard none of the 40
    is, on an AMD EPYC with avx512_bf16 (torch 2.13)."""
    torch.manual_seed(seed)
    model = VQVAE(SMALL_VQ)
    keep_short_conv3d_in_float32(model)
    seen: dict[nn.Conv3d, Tensor] = {}
    sent: dict[nn.Conv3d, Tensor] = {}

    def keep(layer: nn.Conv3d, inputs: tuple[Tensor], output: Tensor) -> None:
        seen[layer] = inputs[0].detach().float()
        output.register_hook(lambda gradient: sent.update({layer: gradient.float()}))

    for layer in model.modules():
        if isinstance(layer, nn.Conv3d):
            layer.register_forward_hook(keep)
    latents = torch.randn(2, 4, 4, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(latents)
        loss = (out.coarse - latents).square().mean() + out.loss
    torch.autograd.backward(loss)
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    for layer, value in seen.items():
        exact = nn.grad.conv3d_weight(value, layer.weight.shape, sent[layer], layer.stride, layer.padding)
        assert torch.linalg.norm(layer.weight.grad - exact) <= 0.02 * torch.linalg.norm(exact)


def test_a_gradient_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 8), nn.Linear(8, 1))
    args = arguments("").parse_args(["--out", str(tmp_path), "--device", "cpu", "--threads", "1"])

    def losses(step: int) -> dict[str, Tensor]:
        return {"loss": (0.0 * model(torch.zeros(1, 2))).sqrt().sum()}   # 0, and its gradient is not a number

    with pytest.raises(SystemExit, match="the gradient's norm is nan at step 0"):
        train(model, TINY, args, losses, lambda averaged: {})
