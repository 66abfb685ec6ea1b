"""What the demo's stages learn from: windows that ask for what long video will ask for, and for its faults."""

import copy
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from arlon_export.modules.ar import TokenModel
from arlon_export.modules.vq import VQVAE
from arlon_rt.networks.vq import VQDecoder
from arlon_rt.segments import Segment, plan
from demo.captions import canonical
from demo.config import ar_config, model_config, vq_config
from demo.latents import CHUNK_LATENTS, CLIP_LATENTS, LatentPool, clip_of, is_recoloured, twin_of
from demo.train_ar import CONTEXT_FRAMES, Windows, code_logits, mixed_with_own
from demo.train_dit import (
    CODECS,
    JOIN_WEIGHT,
    Window,
    coarse_window,
    draw_window,
    faulty,
    kept_frames,
    wavering,
    with_flashes,
)
from demo.train_vq import HELD_BACK, VQLosses
from demo.training import Recipe, rng
from demo.windows import Corpus, flash, stain

SIDE = 8
"""Rows and columns of the demo's latents."""
CLIPS = 48
TWIN = 1000


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
    in_passing = 0
    for clip in clips:
        whole = bool(mask[clip].all())
        assert torch.equal(made[clip], (own if whole or is_recoloured(clip) else twins)[clip])
        if whole or not is_recoloured(clip):
            assert torch.equal(kept[clip], made[clip])
            continue
        seen = (kept[clip] == twins[clip]).all(dim=(0, 2, 3))
        assert torch.equal(kept[clip][:, ~seen], own[clip][:, ~seen])
        assert seen[:5].any(), "the fault shows in the kept latents"
        in_passing += not seen[:5].all()
    assert 5 < in_passing < 15, "of 20, in half of them only in passing"
    for at_all in faulty(rng(0, 1), window, corpus, mask, {"shifted": 0.0, "recoloured": 0.0}):
        assert torch.equal(at_all, own)


def test_a_background_that_is_off_in_one_chunk_flickers_and_one_that_is_off_throughout_does_not():
    mask = torch.ones(1, 10, dtype=torch.bool)
    steady, chunk = torch.full((1, 4, 10, SIDE, SIDE), 0.1), torch.zeros(1, 4, 10, SIDE, SIDE)
    chunk[:, :, 5:] = 0.1
    assert [float(v) for v in wavering(steady, mask)] == pytest.approx([0.01, 0.0])
    assert [float(v) for v in wavering(chunk, mask)] == pytest.approx([0.005, 0.01 * JOIN_WEIGHT / (8 + JOIN_WEIGHT)])
    noise = torch.randn(1, 4, 10, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    assert float(wavering(noise, mask)[0]) == pytest.approx(1 / 16, rel=0.3)


def test_a_step_from_kept_frames_to_made_ones_counts_and_one_between_kept_frames_does_not():
    mask = torch.tensor([[False] * 5 + [True] * 5])
    error = torch.zeros(1, 4, 10, SIDE, SIDE)
    error[:, :, 5:] = 0.1
    tint, flicker = wavering(error, mask)
    assert float(tint) == pytest.approx(0.01)
    assert float(flicker) == pytest.approx(0.01 * JOIN_WEIGHT / (4 + JOIN_WEIGHT))


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
    flashes: list[bool]
    """Which of them the model sees as the recoloured twin's, in part at least, though they are not."""


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
        batch = windows.draw(rng(0, number), clips)
        codes, spoken, before = (part.view(CLIPS, frames, -1) for part in (batch.codes, batch.spoken, batch.before))
        assert torch.equal(before % TWIN, codes % TWIN), "only the twin's codes take the place of a clip's own"
        assert torch.equal(spoken.any(2), spoken.all(2)), "a code-frame carries a loss as a whole or not at all"
        number = codes[:, :, 0]
        drawn += map(Row, clips, stand_in.heard, (number % TWIN).tolist(), spoken[:, :, 0].tolist(),
                     (number >= TWIN).tolist(), (before != codes).any(2).tolist())
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


def test_flashes_and_stains_are_short_and_nothing_to_be_learned(rows: list[Row]):
    flashing = [row for row in rows if any(row.flashes)]
    assert len(rows) / 6 < len(flashing) < len(rows) / 2
    assert all(is_recoloured(row.clip) for row in flashing)
    assert any(row.learned[row.flashes.index(True)] for row in flashing)
    assert all(sum(row.flashes) < len(row.flashes) for row in flashing)


def test_a_flash_is_one_or_two_frames_once_or_in_every_chunk():
    drawn = [flash(rng(0, i), 20, CHUNK_LATENTS) for i in range(200)]
    once = [where for where in drawn if where.sum() <= 2]
    assert 60 < len(once) < 140
    assert all(where.any() for where in drawn)
    for where in drawn:
        if where.sum() > 2:
            assert 4 <= where.sum() <= 8
            assert any(where[phase::CHUNK_LATENTS].all() for phase in range(CHUNK_LATENTS))


def test_a_stain_stays_for_at_most_five_frames_after_as_many_right_ones():
    grid = (16, 4, 4)
    drawn = [stain(rng(0, i), grid) for i in range(300)]
    for where in drawn:
        frames = where.any(axis=(1, 2)).nonzero()[0]
        assert 1 <= len(frames) <= min(5, frames[0])
        assert frames[-1] - frames[0] == len(frames) - 1
        assert (where[frames] == where[frames[0]]).all(), "it stays where it is"
    whole = [where for where in drawn if where.any(axis=0).all()]
    assert len(drawn) / 5 < len(whole) < len(drawn) / 2


def test_a_share_of_the_clips_is_drawn_among_those_whose_prompt_switches(corpus: PlainCorpus):
    def share(switched: float) -> float:
        windows = Windows(stand_in, Recipe.load("ar"))
        windows.extra = {**windows.extra, "switched": switched}
        clips = windows.clips(rng(0, 5), 400)
        assert min(clips) >= HELD_BACK
        return sum(bool(stand_in.switches(clip)) for clip in clips) / len(clips)

    clips = [clip_of(i) for i in range(HELD_BACK + CLIPS)]
    pool = LatentPool(corpus.pool.folder, clip_of, [corpus.pool.latents[0]] * len(clips), clips)
    stand_in = dataclasses.replace(corpus, pool=pool)
    by_chance = share(0.0)
    assert 0.2 < by_chance < 0.8
    assert share(1.0) == 1.0
    assert share(0.5) == pytest.approx((1 + by_chance) / 2, abs=0.1)


def test_tokens_flash_in_rows_with_a_recoloured_twin_alone(corpus: PlainCorpus):
    window, given = Window(list(range(8)), 0, 20), {2: corpus.codes("vq", [20])[0]}
    assert with_flashes(rng(0, 3), window, corpus, given, 0.0) == given
    found = with_flashes(rng(0, 3), window, corpus, given, 1.0)
    assert sorted(found) == [row for row in range(8) if is_recoloured(row)]
    for row, codes in found.items():
        own = given.get(row, corpus.codes("vq", [row])[0])
        passing = codes == corpus.twin_codes("vq", [row])[0]
        assert torch.equal(codes[~passing], own[~passing])
        assert 0 < int((codes != own).sum()) < own.numel()


def test_the_last_phase_of_the_codec_leaves_codes_as_they_are():
    recipe = Recipe.load("vq")
    torch.manual_seed(0)
    model = VQVAE(vq_config()).train()
    latents = np.random.default_rng(0).standard_normal((160, 4, CLIP_LATENTS, SIDE, SIDE)).astype(np.float16)
    pool = LatentPool(Path("nowhere"), clip_of, list(latents), [clip_of(0)] * 160)
    losses = VQLosses(model, pool, recipe, "cpu")
    before = copy.deepcopy(model.state_dict())
    losses(recipe.tables["training"]["decoder_from"])["loss"].backward()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    learning = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert learning == {"decoder"}
    losses(recipe.tables["training"]["decoder_from"] - 1)["loss"].backward()
    assert not torch.equal(model.codebook.weight, before["codebook.weight"])


def test_a_window_that_is_not_the_start_is_given_its_first_code_frames(rows: list[Row]):
    later = [row for row in rows if row.frames[0] > 0]
    assert not any(any(row.learned[:CONTEXT_FRAMES]) for row in later)
    assert sum(row.learned[CONTEXT_FRAMES] for row in later) > 20


def test_a_video_is_learned_from_its_first_code_on(corpus: PlainCorpus, rows: list[Row]):
    starts = [r for r in rows if r.frames[0] == 0 and r.caption == canonical(corpus.scene(r.clip, 0))]
    assert starts
    assert any(row.learned[0] for row in starts)
    assert all(row.learned[0] for row in starts if not corpus.switches(row.clip) and not any(row.twin))
