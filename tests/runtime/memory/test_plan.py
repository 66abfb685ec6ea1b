"""The order in which a plan saves memory, the figures it uses, and the error when a budget is too small."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from full_size_weights import FULL_SIZE
from memory_plans import bundle_without_weights, weight_bytes

from arlon_rt.bundle import Bundle, demo_bundle_path
from arlon_rt.config import ModelConfig
from arlon_rt.errors import BudgetError
from arlon_rt.graphs import graph_specs
from arlon_rt.memory import CONTEXT, GRAPH, Demand, MemoryPlan, check_fits, plan_for
from arlon_rt.memory.plan import STAGING_PART, Figure, budget_without_offload, least_budget, plan_memory
from arlon_rt.memory.planning import weights_of
from arlon_rt.units import mebibytes
from demands import PUBLISHED, SMALL
from tiny_bundle import TINY

GIB = 1 << 30
SIZES = {graph: 1000 * (place + 1) for place, graph in enumerate(graph_specs(TINY))}
"""Graph of the tiny model -> invented bytes of its weights."""


def planned(budget: int | None, demand: Demand = SMALL, **weights: int) -> MemoryPlan:
    sizes = {**SIZES, **weights}
    return plan_memory(
        TINY, demand, "fp16", budget=budget,
        weights={graph: Figure(size=size, source="invented") for graph, size in sizes.items()},
        activations={graph: Figure(size=10 * size, source="invented") for graph, size in SIZES.items()},
    )


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whose folders are empty."""
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


def test_each_lane_has_an_arena_as_large_as_its_largest_graph_needs() -> None:
    plan = planned(None)
    assert plan.arenas == {"drafting": 50_000, "denoising": 80_000, "decoding": 100_000}
    assert plan.resident_peak == (
        CONTEXT + sum(plan.held.values()) + sum(SIZES.values()) + sum(g.buffers for g in plan.graphs) + 230_000
    )


def test_all_graphs_are_resident_where_they_fit_and_not_with_a_byte_less() -> None:
    enough = planned(None).peak
    assert budget_without_offload(planned(1)) == enough
    plan = planned(enough)
    assert plan.fits
    assert {g.residency for g in plan.graphs} == {"resident"}
    assert not plan.offloaded_peaks
    less = planned(enough - 1)
    assert less.fits
    assert list(less.offloaded_peaks) == ["text_encoder"]
    assert not any(g.streamed for g in less.graphs)


def test_the_offloaded_text_encoder_counts_what_is_held_and_no_other_weights() -> None:
    plan = planned(planned(None, text_encoder=900_000).peak - 1, text_encoder=900_000)
    text = plan.of("text_encoder")
    assert plan.offloaded_peaks == {
        "text_encoder": CONTEXT + sum(plan.held.values()) + 900_000 + text.buffers + text.activations.size
    }
    assert plan.resident_peak == planned(None).resident_peak - SIZES["text_encoder"] - text.buffers
    assert plan.peak == max(plan.resident_peak, plan.offloaded_peaks["text_encoder"])


def test_the_encoder_of_codes_is_offloaded_next_then_lanes_share_an_arena_then_weights_are_streamed_in_order() -> None:
    first = planned(planned(None).peak - 1)
    second = planned(first.resident_peak - 1)
    assert list(second.offloaded_peaks) == ["text_encoder", "vq_encoder"]
    assert not any(g.streamed for g in second.graphs)
    third = planned(second.resident_peak - 1)
    assert third.one_arena
    assert list(third.arenas.values()) == [100_000]
    assert third.resident_peak == second.resident_peak - sum(second.arenas.values()) + 100_000
    assert not any(g.streamed for g in third.graphs)
    for taken, streaming in ((500, {"dit"}), (8000, {"dit", "ar_step"}), (11_000, {"dit", "ar_step", "ar_prefix"})):
        plan = planned(third.resident_peak - taken)
        assert plan.fits
        assert {g.graph for g in plan.graphs if g.streamed} == streaming
        assert plan.resident_peak == plan.budget, "no byte more is streamed than must be"
    dit = planned(third.resident_peak - 500).of("dit")
    assert dit.on_device == 8000 - 500 - 8000 // STAGING_PART


def test_a_text_encoder_too_large_even_alone_is_streamed_too() -> None:
    large = planned(None).peak
    plan = planned(large, text_encoder=900_000)
    assert plan.fits
    text = plan.of("text_encoder")
    assert text.residency == "offloaded, streamed"
    assert plan.offloaded_peaks["text_encoder"] == large


def test_every_plan_that_fits_stays_within_its_budget_and_the_least_is_the_least() -> None:
    least = least_budget(planned(1))
    assert planned(least).fits
    assert not planned(least - 1).fits
    for budget in range(least, planned(None).peak + 2000, 997):
        plan = planned(budget)
        assert plan.fits
        assert max(plan.resident_peak, *plan.offloaded_peaks.values(), 0) <= budget


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


def published(tmp_path: Path, model: ModelConfig = FULL_SIZE) -> Bundle:
    (tmp_path / "published").mkdir()
    return bundle_without_weights(tmp_path / "published", model, "fp16")


def test_the_published_sizes_as_docs_edge_states_them(tmp_path: Path) -> None:
    bundle = published(tmp_path)
    plans = {gib: plan_for(bundle, PUBLISHED, "fp16", gib * GIB) for gib in (32, 24, 16, 8)}
    assert [plan.fits for plan in plans.values()] == [True, True, True, False]
    assert {gib: plan.of("text_encoder").residency for gib, plan in plans.items()} == {
        32: "resident", 24: "offloaded", 16: "offloaded", 8: "offloaded, streamed"
    }
    assert [plan.one_arena for plan in plans.values()] == [False, False, True, True]
    assert not any(g.streamed for g in plans[16].graphs)
    stated = (Path(__file__).parents[3] / "docs" / "edge.md").read_text(encoding="utf-8")
    for plan in (plans[16], plans[8]):
        assert f"{mebibytes(plan.resident_peak)}  at most while a segment is generated" in stated
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


def test_fp16_and_no_guidance_are_proposed_where_they_help(folder: Path) -> None:
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
