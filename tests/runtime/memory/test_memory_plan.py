"""The planner: exact bytes of what is held, the order in which memory is saved, what is said when it is too little."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from full_size_weights import FULL_SIZE
from memory_plans import bundle_without_weights, weight_bytes

from arlon_rt import GenerateOptions, OptionsError
from arlon_rt.bundle import Bundle, EngineProfile, demo_bundle_path
from arlon_rt.config import ModelConfig
from arlon_rt.errors import BudgetError
from arlon_rt.graphs import graph_specs, segment_latents
from arlon_rt.memory import CONTEXT, GRAPH, Budget, Demand, MemoryPlan, check_fits, plan_for, remember
from arlon_rt.memory.activations import record_path, recorded
from arlon_rt.memory.footprint import buffers, held, needed_graphs
from arlon_rt.memory.plan import STAGING, Figure, least_budget, plan_memory, roomy_budget
from arlon_rt.memory.planning import weights_of
from arlon_rt.units import mebibytes, parse_bytes
from tiny_bundle import TINY, write_tiny_bundle

GIB = 1 << 30
PUBLISHED = Demand(
    height=512, width=512, latents=20, guided=True, also_unguided=False, ar_guided=False, inject=True
)
SIZES = {graph: 1000 * (place + 1) for place, graph in enumerate(graph_specs(TINY))}
"""Weights of the tiny model's graphs, made up."""
SMALL = dataclasses.replace(PUBLISHED, height=32, width=32)


def planned(budget: int | None, demand: Demand = SMALL, **weights: int) -> MemoryPlan:
    sizes = {**SIZES, **weights}
    return plan_memory(
        TINY, demand, "fp16", budget=budget,
        weights={graph: Figure(size=size, source="made up") for graph, size in sizes.items()},
        activations={graph: Figure(size=10 * size, source="made up") for graph, size in SIZES.items()},
    )


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


@pytest.mark.parametrize(("text", "size"), [
    ("16G", 16 * GIB), ("16GiB", 16 * GIB), ("16gb", 16 * 10**9), ("800M", 800 << 20), ("1.5 G", 3 * GIB // 2),
    ("123", 123), (456, 456), ("1T", 1 << 40),
])
def test_sizes_read_as_they_are_written(text: int | str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "G", "16X", "-1G", "1e3", "16 G B", "iB", 0, "0", -5, True, 1.5, "9" * 30, "١G"])
def test_what_is_no_size_is_named_with_an_example(text: object) -> None:
    with pytest.raises(OptionsError, match=r"vram_budget is .*(16G|2\^60)"):
        parse_bytes(text)  # type: ignore[arg-type]


def test_what_is_held_is_counted_from_the_axes() -> None:
    found = {tensor.name.partition(",")[0]: tensor.size for tensor in held(FULL_SIZE, PUBLISHED, "fp16")}
    tokens, mask, weights = 2 * 56 * 2 * 2 * 16 * 300 * 72, 2 * 300, 2 * 4
    assert found == {
        "caption keys and values": 2 * (tokens + mask + weights),
        "latents before and after a step": 2 * 4 * (4 * 20 * 64 * 64),
        "position tables": 4 * (1024 * 1152 + 2 * 20 * 36 + 1),
        "injected features": 2 * (14 * 20 * 1024 * 3 * 1152),
        "caches of the token model": 2 * (2 * 24 * 1264 * 1024),
    }


def test_guidance_of_the_tokens_doubles_their_caches_and_fp32_all_floats() -> None:
    guided = dataclasses.replace(PUBLISHED, ar_guided=True)
    caches = [held(FULL_SIZE, d, p)[-1].size for d, p in ((PUBLISHED, "fp16"), (guided, "fp16"), (PUBLISHED, "fp32"))]
    assert caches == [caches[0], 2 * caches[0], 2 * caches[0]]


def test_an_engine_s_inputs_and_outputs_count_where_they_are_not_held() -> None:
    specs = graph_specs(PUBLISHED.narrowed(FULL_SIZE))
    frames = 20 * 512 * 512 * 3
    assert buffers(specs["vae_decoder"], PUBLISHED, "fp16") == 4 * 4 * 5 * 64 * 64 + 8 * 20 + 2 * frames
    hidden = 2 * 2 * 300 * 4096
    assert buffers(specs["caption"], PUBLISHED, "fp16") == 2 * hidden + 2, "its keys and values are held"
    assert buffers(specs["ar_step"], PUBLISHED, "fp16") < 130_000, "its caches are held"


def test_a_request_without_injection_needs_no_token_model() -> None:
    plain = dataclasses.replace(SMALL, inject=False)
    names = {spec.name for spec in needed_graphs(TINY, plain)}
    assert names == {"text_encoder", "caption", "dit", "vae_decoder", "vae_encoder"}
    assert not any("caches" in tensor.name for tensor in held(TINY, plain, "fp16"))


def test_lanes_have_an_arena_each_as_large_as_their_largest_graph_needs() -> None:
    plan = planned(None)
    assert plan.arenas == {"drafting": 50_000, "denoising": 80_000, "decoding": 100_000}
    assert plan.together == (
        CONTEXT + sum(t.size for t in plan.held) + sum(SIZES.values()) + sum(g.buffers for g in plan.graphs) + 230_000
    )


def test_all_stays_where_it_fits_and_not_with_a_byte_less() -> None:
    roomy = planned(None).peak
    assert roomy_budget(planned(1)) == roomy
    plan = planned(roomy)
    assert plan.fits
    assert {g.way for g in plan.graphs} == {"stays"}
    assert not plan.alone
    less = planned(roomy - 1)
    assert less.fits
    assert [g.graph for g in less.graphs if g.way == "passes"] == ["text_encoder"]
    assert not any(g.streams for g in less.graphs)


def test_the_text_encoder_alone_counts_what_is_held_and_no_other_s_weights() -> None:
    plan = planned(planned(None, text_encoder=900_000).peak - 1, text_encoder=900_000)
    text = plan.of("text_encoder")
    assert plan.alone == {
        "text_encoder": CONTEXT + sum(t.size for t in plan.held) + 900_000 + text.buffers + text.activations.size
    }
    assert plan.together == planned(None).together - SIZES["text_encoder"] - text.buffers
    assert plan.peak == max(plan.together, plan.alone["text_encoder"])


def test_the_encoder_of_codes_passes_next_then_activations_are_shared_and_then_weights_stream_in_order() -> None:
    text_passes = planned(planned(None).peak - 1).together
    second = planned(text_passes - 1)
    assert [g.graph for g in second.graphs if g.way == "passes"] == ["text_encoder", "vq_encoder"]
    assert not any(g.streams for g in second.graphs)
    third = planned(second.together - 1)
    assert third.one_arena
    assert third.arenas == {"all lanes": 100_000}
    assert third.together == second.together - sum(second.arenas.values()) + 100_000
    assert not any(g.streams for g in third.graphs)
    for taken, streaming in ((500, {"dit"}), (8000, {"dit", "ar_step"}), (11_000, {"dit", "ar_step", "ar_prefix"})):
        plan = planned(third.together - taken)
        assert plan.fits
        assert {g.graph for g in plan.graphs if g.streams} == streaming
        assert plan.together == plan.budget, "no byte more is streamed than must be"
    dit = planned(third.together - 500).of("dit")
    assert dit.on_device == 8000 - 500 - 8000 // STAGING


def test_a_text_encoder_too_large_even_alone_streams_too() -> None:
    large = planned(None).peak
    plan = planned(large, text_encoder=900_000)
    assert plan.fits
    text = plan.of("text_encoder")
    assert (text.way, text.streams) == ("passes", True)
    assert plan.alone["text_encoder"] == large


def test_every_plan_that_fits_stays_within_its_budget_and_the_least_is_the_least() -> None:
    least = least_budget(planned(1))
    assert planned(least).fits
    assert not planned(least - 1).fits
    for budget in range(least, planned(None).peak + 2000, 997):
        plan = planned(budget)
        assert plan.fits
        assert max(plan.together, *plan.alone.values(), 0) <= budget


def test_a_request_s_length_size_and_guidance_decide(folder: Path) -> None:
    bundle = Bundle.open(folder)
    whole = Demand.of(GenerateOptions(), bundle)
    assert whole.latents == segment_latents(TINY), "a length that is left out may be any"
    assert Demand.of(GenerateOptions(num_frames=17), bundle).latents == 5
    assert Demand.of(GenerateOptions(num_frames=1), bundle).latents == 1
    assert Demand.of(GenerateOptions(num_frames=500), bundle) == whole
    assert not Demand.of(GenerateOptions(guidance_scale=1), bundle).guided
    assert Demand.of(GenerateOptions(guided_steps=1), bundle).also_unguided
    smaller = Demand.of(GenerateOptions(num_frames=17, height=31), bundle)
    assert (smaller.height, smaller.width) == (24, 32)
    assert whole.exceeded_by(smaller) == []
    Budget(size=1, demand=whole).check(smaller)
    with pytest.raises(OptionsError, match=r"for 32x24, segments of 5 .*takes more \(height, latents\); .*sized_for"):
        Budget(size=1, demand=smaller).check(whole)


@pytest.mark.parametrize("latents", [1, 5, 10, 15, 20])
def test_axes_are_narrowed_to_the_request(latents: int) -> None:
    demand = dataclasses.replace(SMALL, latents=latents, height=24)
    for spec in graph_specs(demand.narrowed(TINY)).values():
        sizes = demand.sizes(spec)
        assert sizes.get("frame", latents) == latents
        assert sizes.get("latent_height", 3) == 3


def test_weights_of_the_demo_bundle_are_what_its_graphs_read() -> None:
    bundle = Bundle.open(demo_bundle_path())
    for name, spec in graph_specs(bundle.model).items():
        figure = weights_of(bundle, name, "fp16", {})
        assert figure.source == GRAPH
        assert figure.size == pytest.approx(weight_bytes(bundle.model, spec, "fp16"), rel=0.17), name
    assert weights_of(bundle, "dit", "fp32", {}).size == pytest.approx(
        2 * weights_of(bundle, "dit", "fp16", {}).size, rel=0.01
    )


def test_a_manifest_that_states_no_bytes_gives_those_of_its_files(folder: Path) -> None:
    bundle = Bundle.open(folder)
    entry = bundle.graph("dit", "fp16")
    files = sum(bundle.manifest.files[name].size for name in (entry.file, *entry.data))
    assert weights_of(bundle, "dit", "fp16", {}).size == files


def test_activations_are_estimates_until_they_were_told(folder: Path) -> None:
    bundle = Bundle.open(folder)
    plan = plan_for(bundle, SMALL, "fp16", None, {})
    assert {g.activations.source for g in plan.graphs} == {"estimated"}
    narrow, wide = (EngineProfile(name=n, ranges={"frame": (1, 5, m)}) for n, m in (("a", 5), ("b", 20)))
    assert recorded("f" * 64, (narrow, wide), {"frame": 5}) is None
    remember("f" * 64, [100, 400])
    assert recorded("f" * 64, (narrow, wide), {"frame": 20}) == 400
    assert recorded("f" * 64, (wide, narrow), {"frame": 20}) == 100
    remember("f" * 64, [300, 200])
    assert recorded("f" * 64, (), {}) == 400
    assert recorded("f" * 64, (narrow, wide), {"frame": 21}) == 400, "none fits: the most"


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 3}', b'{"a": []}', b'{"a": [-1]}', b"\xff", b'{"a": [1e9]}'])
def test_a_damaged_record_counts_as_none(content: bytes) -> None:
    record_path().parent.mkdir(parents=True)
    record_path().write_bytes(content)
    assert recorded("a", (), {}) is None
    remember("a", [5])
    assert recorded("a", (), {}) == 5


def test_a_record_that_cannot_be_written_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    record_path().parent.parent.mkdir(parents=True)
    record_path().parent.write_text("a file in its place")
    remember("a", [5])
    assert "plans of memory stay estimates" in caplog.text


def published(tmp_path: Path, model: ModelConfig = FULL_SIZE) -> Bundle:
    (tmp_path / "published").mkdir()
    return bundle_without_weights(tmp_path / "published", model, "fp16")


def test_the_published_sizes_as_docs_edge_states_them(tmp_path: Path) -> None:
    bundle = published(tmp_path)
    plans = {gib: plan_for(bundle, PUBLISHED, "fp16", gib * GIB) for gib in (32, 24, 16, 8)}
    assert [plan.fits for plan in plans.values()] == [True, True, True, False]
    assert {gib: plan.of("text_encoder").way for gib, plan in plans.items()} == {
        32: "stays", 24: "passes", 16: "passes", 8: "passes"
    }
    assert [plan.one_arena for plan in plans.values()] == [False, False, True, True]
    assert not any(g.streams for g in plans[16].graphs)
    stated = (Path(__file__).parents[3] / "docs" / "edge.md").read_text(encoding="utf-8")
    for plan in (plans[16], plans[8]):
        assert f"{mebibytes(plan.together)}  at most while a segment is made" in stated
        assert f"{mebibytes(plan.of('dit').on_device)}" in stated


def test_what_does_not_fit_says_what_would(tmp_path: Path) -> None:
    bundle = published(tmp_path)
    plan = plan_for(bundle, PUBLISHED, "fp16", 8 * GIB)
    with pytest.raises(BudgetError) as caught:
        check_fits(bundle, plan)
    message = str(caught.value)
    assert message.startswith("vram_budget is 8.00 GiB; 512x512, segments of 20 latents, guidance in fp16 need ")
    assert f"need {mebibytes(plan.peak)} at least" in message
    assert "activations of vae_decoder" in message
    assert "What would fit: 384x384; " in message
    assert f"a budget of {mebibytes(least_budget(plan))}" in message
    assert plan_for(bundle, dataclasses.replace(PUBLISHED, height=384, width=384), "fp16", 8 * GIB).fits
    assert plan_for(bundle, PUBLISHED, "fp16", least_budget(plan)).fits
    assert isinstance(caught.value, MemoryError)


def test_fp16_and_no_guidance_are_ways_out_where_they_help(folder: Path) -> None:
    bundle = Bundle.open(folder)
    full = plan_for(bundle, SMALL, "fp32", 1)
    half = plan_for(bundle, SMALL, "fp16", 1)
    assert half.peak < full.peak
    budget = (half.peak + full.peak) // 2
    with pytest.raises(BudgetError, match="precision fp16; a budget of"):
        check_fits(bundle, plan_for(bundle, SMALL, "fp32", budget))
    plain = plan_for(bundle, dataclasses.replace(SMALL, guided=False), "fp32", 1).peak
    with pytest.raises(BudgetError, match=r"without guidance \(guidance_scale 1\); "):
        check_fits(bundle, plan_for(bundle, SMALL, "fp32", (plain + full.peak) // 2))


def test_estimates_bound_what_tensorrt_for_rtx_stated_for_the_published_widths(tmp_path: Path) -> None:
    """Total activation memory of fp16 engines for SM89, one pair of blocks, compiled by TensorRT for RTX 1.7.1.116."""
    stated = {
        "dit": 1_447_636_992, "semantic": 244_121_600, "caption": 16_486_400, "vae_decoder": 8_178_893_312,
        "vae_encoder": 4_737_466_368, "ar_step": 40_593_408, "ar_prefix": 13_107_200, "text_encoder": 85_248_000,
        "vq_decoder": 71_106_560,
    }
    batch_of_two = dataclasses.replace(PUBLISHED, ar_guided=True)
    plan = plan_for(published(tmp_path), batch_of_two, "fp16", None, {})
    for graph, told in stated.items():
        estimated = plan.of(graph).activations.size
        rows = 2 if graph == "text_encoder" else 1   # its profile takes two prompts, a request encodes one at a time
        assert told / rows <= estimated <= 1.1 * told / rows + (8 << 20), graph


def test_figures_are_rounded_up() -> None:
    assert mebibytes(1) == "0.1 MiB"
    assert mebibytes(GIB) == "1.00 GiB"
    assert math.isclose(float(mebibytes(800 << 20).split()[0]), 800)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "bundle")
