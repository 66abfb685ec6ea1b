"""Training of the demo model: runs that resume, and windows that ask for what long video will ask for."""

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from arlon_export.modules.ar import TokenModel
from arlon_export.modules.vae import VideoVAE
from arlon_export.modules.vq import VQVAE
from arlon_rt.segments import Segment, plan
from arlon_rt.vqvae import VQDecoder
from demo.captions import canonical
from demo.config import ar_config, model_config, vae_config, vq_config
from demo.latents import (
    CHUNK_LATENTS,
    CLIP_LATENTS,
    LARGEST_SHIFT,
    SHARD_CLIPS,
    LatentPool,
    clip_of,
    encode_clip,
    is_recoloured,
    twin_of,
)
from demo.muon import Muon, hidden_weights, optimizers, orthogonal
from demo.train_ar import CONTEXT_FRAMES, Windows, code_logits, mixed_with_own
from demo.train_autoencoder import CROP, cropped
from demo.train_dit import CODECS, Window, coarse_window, draw_window, faulty, kept_frames, wavering
from demo.trained import check_latents
from demo.training import Recipe, Schedule, arguments, learning_rate, rng, train
from demo.windows import Corpus
from demo.world import HELD_OUT, render, render_clip, sample_scene

SIDE = 8
"""Rows and columns of the demo's latents."""
CLIPS = 48
TWIN = 1000
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


# -- windows ---------------------------------------------------------------------------------------------------------


class PlainCorpus(Corpus):
    """A corpus with the plainest captions, which remembers those asked for instead of encoding them.

    The codes of a twin are its clip's, plus `TWIN`.
    """

    heard: list[str]

    def caption(self, clip: int, latent: int, draw: np.random.Generator, shown: bool = False) -> str:
        return canonical(self.scene(clip, latent))

    def text(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        self.heard = captions
        return torch.zeros(len(captions), 1, 4), torch.ones(len(captions), 1, dtype=torch.bool)

    def twin_codes(self, codec: str, clips: list[int]) -> Tensor:
        return self.codes(codec, clips) + TWIN


def small_codec(name: str) -> VQVAE:
    """Untrained, with the recipe's strides."""
    config = vq_config(coarse=name == "vq_coarse")
    return VQVAE(dataclasses.replace(config, num_codes=32, code_dim=4, channels=(8, 8), norm_groups=4)).eval()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> PlainCorpus:
    """Random latents beside the stream's real clips, encoded by codecs of random weights; no text encoder."""
    torch.manual_seed(0)
    latents = np.random.default_rng(0).standard_normal((CLIPS, 4, CLIP_LATENTS, SIDE, SIDE)).astype(np.float16)
    folder, numbers = tmp_path_factory.mktemp("latents"), range(CLIPS)
    pool = LatentPool(folder, clip_of, list(latents), [clip_of(i) for i in numbers])
    twins = LatentPool(folder, twin_of, list(latents + TWIN), [twin_of(i) for i in numbers])
    codecs = {name: small_codec(name) for name in CODECS}
    made = PlainCorpus(pool, twins, None, None, codecs, "cpu", pool.statistics(), {name: [] for name in codecs})
    made.refresh()
    return made


class CodecSession:
    """A codec's decoder behind the runtime's session protocol."""

    def __init__(self, codec: VQVAE) -> None:
        self.codec = codec

    @torch.no_grad()
    def run(self, feed: dict[str, np.ndarray], hold: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        return {"coarse": self.codec.decode(torch.from_numpy(feed["tokens"])).numpy()}

    def close(self) -> None: ...


MODEL = model_config([0.0] * 4, [1.0] * 4)
SEGMENTS = [*plan(136, MODEL), *plan(1, MODEL)]


def test_the_segments_compared_start_at_even_and_odd_latents():
    assert {s.latents.start % 2 for s in SEGMENTS} == {0, 1}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("segment", SEGMENTS, ids=lambda s: f"{s.latents.start}-{s.latents.stop}")
def test_training_cuts_coarse_latents_as_the_runtime_does(corpus: PlainCorpus, codec: str, segment: Segment):
    model = corpus.codecs[codec]
    window = Window([3], segment.latents.start, len(segment.latents))
    covered = segment.code_frames(model.config.stride[0])
    tokens = corpus.codes(codec, [3])[:, covered.start:covered.stop].numpy()
    expected = VQDecoder(CodecSession(model), model.config).decode(tokens, segment, SIDE, SIDE)
    assert expected.shape[2] == len(segment.latents)
    np.testing.assert_array_equal(coarse_window(corpus, codec, window, 0.0).numpy(), expected)


def test_drawn_tokens_take_the_place_of_their_row_alone(corpus: PlainCorpus):
    window, other = Window([3, 4], 0, 20), corpus.codes("vq", [5])[0]
    plain, drawn = (coarse_window(corpus, "vq", window, 0.0, rows) for rows in ({}, {1: other}))
    torch.testing.assert_close(drawn[0], plain[0])
    torch.testing.assert_close(drawn[1:], coarse_window(corpus, "vq", Window([5], 0, 20), 0.0))
    torch.testing.assert_close(coarse_window(corpus, "vq", window, 0.0), plain)


def test_the_first_five_latents_are_kept_where_the_prompt_switches(corpus: PlainCorpus):
    switched = 0
    for number in range(60):
        draw = rng(0, number)
        window = draw_window(draw, corpus.pool, corpus, 8, 0, CLIPS)
        for clip, mask in zip(window.clips, kept_frames(draw, window, corpus).tolist(), strict=True):
            assert len(mask) == window.length
            inside = [s - window.start for s in corpus.switches(clip) if 0 < s - window.start < window.length]
            assert inside in ([], [CHUNK_LATENTS])
            if inside:
                assert mask == [False] * CHUNK_LATENTS + [True] * (window.length - CHUNK_LATENTS)
                switched += 1
    assert switched > 10


def test_the_generated_frames_go_on_from_shifted_kept_ones_and_mend_recoloured_ones(corpus: PlainCorpus):
    clips = list(range(CLIPS))
    window, mask = Window(clips, 5, 15), torch.ones(CLIPS, 15, dtype=torch.bool)
    mask[:40, :5] = False
    made, kept = faulty(rng(0, 1), window, corpus, mask, {"shifted": 1.0, "recoloured": 1.0})
    own, twins = (f(clips)[:, :, 5:20] for f in (corpus.latents, corpus.twin_latents))
    for clip in clips:
        whole = bool(mask[clip].all())
        assert torch.equal(made[clip], (own if whole or is_recoloured(clip) else twins)[clip])
        assert torch.equal(kept[clip], (own if whole else twins)[clip])
    for at_all in faulty(rng(0, 1), window, corpus, mask, {"shifted": 0.0, "recoloured": 0.0}):
        assert torch.equal(at_all, own)


def test_a_background_that_is_off_in_one_chunk_flickers_and_one_that_is_off_throughout_does_not():
    mask = torch.ones(1, 10, dtype=torch.bool)
    steady, chunk = torch.full((1, 4, 10, SIDE, SIDE), 0.1), torch.zeros(1, 4, 10, SIDE, SIDE)
    chunk[:, :, 5:] = 0.1
    assert [float(v) for v in wavering(steady, mask)] == pytest.approx([0.01, 0.0])
    assert [float(v) for v in wavering(chunk, mask)] == pytest.approx([0.005, 0.01 / 9])
    noise = torch.randn(1, 4, 10, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    assert float(wavering(noise, mask)[0]) == pytest.approx(1 / 16, rel=0.3)


def test_a_step_from_kept_frames_to_made_ones_counts_and_one_between_kept_frames_does_not():
    mask = torch.tensor([[False] * 5 + [True] * 5])
    error = torch.zeros(1, 4, 10, SIDE, SIDE)
    error[:, :, 5:] = 0.1
    tint, flicker = wavering(error, mask)
    assert float(tint) == pytest.approx(0.01)
    assert float(flicker) == pytest.approx(0.01 / 5)


@dataclass(frozen=True)
class Row:
    """One row of an AR batch."""

    clip: int
    caption: str
    frames: list[int]
    """Code-frames of the window, counted from the start of the clip."""
    learned: list[bool]
    """Which of them carry a loss."""
    twin: list[bool]
    """Which of them are the recoloured twin's."""


@pytest.fixture(scope="module")
def rows(corpus: PlainCorpus) -> list[Row]:
    """Many AR windows over clips whose codes are the numbers of their code-frames."""
    frames, height, width = ar_config().grid
    count = CLIP_LATENTS // vq_config().stride[0]
    numbered = torch.arange(count).view(count, 1, 1).expand(count, height, width)
    stand_in = dataclasses.replace(corpus, tokens={"vq": [numbered] * CLIPS})
    windows, drawn = Windows(stand_in, Recipe.load("ar")), []
    for number in range(20):
        clips = list(range(CLIPS))
        _, _, codes, spoken = windows.draw(rng(0, number), clips)
        codes, spoken = codes.view(CLIPS, frames, -1), spoken.view(CLIPS, frames, -1)
        assert torch.equal(spoken.any(2), spoken.all(2)), "a code-frame carries a loss as a whole or not at all"
        number = codes[:, :, 0]
        drawn += map(Row, clips, stand_in.heard, (number % TWIN).tolist(), spoken[:, :, 0].tolist(),
                     (number >= TWIN).tolist())
    return drawn


def small_token_model() -> TokenModel:
    small = {"hidden_size": 20, "num_layers": 1, "num_heads": 2, "ffn_size": 20, "num_codes": 32, "max_top_k": 8}
    torch.manual_seed(0)
    return TokenModel(dataclasses.replace(ar_config(), **small)).eval()


def test_own_draws_follow_the_model_and_take_the_share_asked_for():
    model = small_token_model()
    text, lengths = torch.randn(2, 3, model.config.text_dim), torch.tensor([3, 2])
    codes = torch.randint(0, 32, (2, math.prod(model.config.grid)))
    assert torch.equal(mixed_with_own(model, text, lengths, codes, torch.zeros(2)), codes)
    half = mixed_with_own(model, text, lengths, codes, torch.tensor([0.0, 0.5]))
    assert torch.equal(half[0], codes[0])
    assert 0.4 < float((half[1] != codes[1]).float().mean()) < 0.6
    drawn = mixed_with_own(model, text, lengths, codes, torch.ones(2))
    with torch.no_grad():
        logits = code_logits(model, text, lengths, codes)
    likelihood = torch.distributions.Categorical(logits=logits).log_prob
    assert likelihood(drawn).mean() > likelihood(codes).mean()


def test_a_code_is_told_from_the_codes_before_it_alone():
    model = small_token_model()
    text, lengths = torch.randn(1, 3, model.config.text_dim), torch.tensor([3])
    codes = torch.zeros(1, math.prod(model.config.grid), dtype=torch.int64)
    other = codes.clone()
    other[:, 7] = 9
    with torch.no_grad():
        a, b = (code_logits(model, text, lengths, c) for c in (codes, other))
    assert torch.equal(a[:, :8], b[:, :8])
    assert not torch.equal(a[:, 8], b[:, 8])


def scenes_learned(corpus: PlainCorpus, row: Row) -> set[str]:
    """What the code-frames that carry a loss show; one that a switch divides was written under the old prompt."""
    stride = vq_config().stride[0]
    learned = [frame for frame, yes in zip(row.frames, row.learned, strict=True) if yes]
    return {canonical(corpus.scene(row.clip, frame * stride)) for frame in learned}


def test_no_loss_falls_on_codes_of_another_prompt(corpus: PlainCorpus, rows: list[Row]):
    told = [row for row in rows if row.caption]
    assert all(scenes_learned(corpus, row) <= {row.caption} for row in told)
    assert all(len(scenes_learned(corpus, row)) <= 1 for row in rows)
    after_a_switch = [r for r in told if r.caption != canonical(corpus.scene(r.clip, 0)) and any(r.learned)]
    assert len(after_a_switch) > 20


def test_after_codes_of_a_recoloured_twin_the_very_next_ones_are_learned(rows: list[Row]):
    mended = [row for row in rows if any(row.twin)]
    assert 20 < len(mended) < len(rows) / 4
    assert all(is_recoloured(row.clip) and row.caption for row in mended)
    for row in mended:
        cut = row.twin.index(False)
        assert not any(row.twin[cut:])
        assert row.learned[:cut + 1] == [False] * cut + [True]


def test_a_window_that_is_not_the_start_is_given_its_first_code_frames(rows: list[Row]):
    later = [row for row in rows if row.frames[0] > 0]
    assert not any(any(row.learned[:CONTEXT_FRAMES]) for row in later)
    assert sum(row.learned[CONTEXT_FRAMES] for row in later) > 20


def test_a_video_is_learned_from_its_first_code_on(corpus: PlainCorpus, rows: list[Row]):
    starts = [r for r in rows if r.frames[0] == 0 and r.caption == canonical(corpus.scene(r.clip, 0))]
    assert starts
    assert any(row.learned[0] for row in starts)
    assert all(row.learned[0] for row in starts if not corpus.switches(row.clip) and not any(row.twin))


def test_a_variant_differs_from_its_base_in_what_it_names_alone():
    usual, variant = Recipe.load("dit"), Recipe.load("dit_one_layer")
    assert variant.schedule == dataclasses.replace(usual.schedule, steps=500, batch_size=8)
    assert variant.tables["injection"] == {"layers": [0]} != usual.tables["injection"]
    assert variant.tables["model"] == usual.tables["model"]
    different = {k for k, v in variant.tables["training"].items() if usual.tables["training"][k] != v}
    assert different == {"wrong_tokens", "drawn_tokens"}


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
