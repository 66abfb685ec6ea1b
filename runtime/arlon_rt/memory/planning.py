"""The memory plan of a bundle: figures from its engines or its manifest, and what would fit if the plan does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from arlon_rt.bundle import Bundle, EngineEntry, engine_stores, source_hash
from arlon_rt.errors import BudgetError
from arlon_rt.graphs import FLOAT_DTYPE
from arlon_rt.memory.activations import estimate, recorded
from arlon_rt.memory.demand import Demand
from arlon_rt.memory.footprint import ITEM_BYTES, moved_bytes, needed_graphs
from arlon_rt.memory.plan import Figure, MemoryPlan, budget_without_offload, least_budget, plan_memory
from arlon_rt.units import mebibytes

ENGINE, GRAPH = "engine", "graph"
"""Sources of the bytes of weights: a built engine, or the .onnx file of a graph that has no engine yet."""
STATED, ESTIMATED = "stated by TensorRT", "estimated"
"""Sources of the bytes of activations: an engine that was loaded before, or `estimate`."""
SMALLER_SIDES = (0.75, 0.5, 0.375, 0.25)
"""Smaller pictures that are tried when one does not fit, as parts of its sides."""

Engines = Mapping[str, EngineEntry]
"""Graph -> its built engine, which runs or would run."""


def plan_for(
    bundle: Bundle, demand: Demand, precision: str, budget: int | None, engines: Engines | None = None
) -> MemoryPlan:
    """The plan for requests of a bundle that ``engines`` run; ``None``: the built ones, for whichever GPU."""
    if engines is None:
        engines = built_engines(bundle, precision)
    narrowed = demand.narrowed(bundle.model)
    weights, activations = {}, {}
    for spec in needed_graphs(bundle.model, demand):
        weights[spec.name] = weights_of(bundle, spec.name, precision, engines)
        entry = engines.get(spec.name)
        stated = recorded(entry.header.plan_sha256, entry.profiles, demand.sizes(spec)) if entry else None
        activations[spec.name] = (
            Figure(size=stated, source=STATED) if stated is not None
            else Figure(size=estimate(narrowed, spec, demand, precision), source=ESTIMATED)
        )
    return plan_memory(bundle.model, demand, precision, budget=budget, weights=weights, activations=activations)


def check_fits(bundle: Bundle, plan: MemoryPlan, engines: Engines | None = None) -> None:
    """Raise `BudgetError`, which says what would fit, unless the plan for these engines fits its budget."""
    if not plan.fits:
        raise BudgetError(plan.shortage(tuple(_alternatives(bundle, plan, engines))))


def weights_of(bundle: Bundle, graph: str, precision: str, engines: Engines) -> Figure:
    """Bytes of a graph's weights.

    They are the size of its engine, which holds its kernels, too. Without an engine they are what a run of the graph
    must read, as the manifest states it, without inputs and outputs. Without that they are the size of its files.
    """
    if entry := engines.get(graph):
        return Figure(size=entry.header.plan_bytes, source=ENGINE)
    entry_of_graph, spec = bundle.graph(graph, precision), bundle.spec(graph)
    read = entry_of_graph.bytes - moved_bytes(spec, precision)
    if read <= 0:   # the external data is its network's, of which the graph may read a part
        read = sum(bundle.manifest.files[name].size for name in (entry_of_graph.file, *entry_of_graph.data))
    return Figure(size=read, source=GRAPH)


def built_engines(bundle: Bundle, precision: str, flavour: str | None = None) -> dict[str, EngineEntry]:
    """Graph -> the largest engine that was built of it in this precision, for whichever GPU."""
    found: dict[str, EngineEntry] = {}
    entries = (entry for store in engine_stores(bundle) for entry in store.index().engines)
    for entry in sorted(entries, key=lambda entry: -entry.header.plan_bytes):
        header, identity = entry.header, entry.header.identity
        if (
            header.graph not in found and header.graph in bundle.manifest.graphs
            and identity.precision == precision and identity.flavour == (flavour or identity.flavour)
            and header.source == source_hash(bundle, header.graph, precision)
        ):
            found[header.graph] = entry
    return found


def _alternatives(bundle: Bundle, plan: MemoryPlan, engines: Engines | None) -> Iterator[str]:
    """What could be requested instead and would fit. For another size or precision other engines would run."""
    assert plan.budget is not None
    demand, budget = plan.demand, plan.budget

    def fits(other: Demand, precision: str = plan.precision, of: Engines | None = None) -> bool:
        return plan_for(bundle, other, precision, budget, of).fits

    vae = bundle.model.vae
    for part in SMALLER_SIDES:
        smaller = dataclasses.replace(
            demand, height=vae.whole(int(demand.height * part), 2) or 2 * vae.space_stride,
            width=vae.whole(int(demand.width * part), 2) or 2 * vae.space_stride,
        )
        if smaller != demand and fits(smaller, of={}):
            yield f"{smaller.width}x{smaller.height}"
            break
    if demand.guided and fits(dataclasses.replace(demand, guided=False, also_unguided=False), of=engines):
        yield "without guidance (guidance_scale 1)"
    widths = {precision: ITEM_BYTES[dtype] for precision, dtype in FLOAT_DTYPE.items()}
    for precision in bundle.precisions:
        if widths[precision] < widths[plan.precision] and fits(demand, precision):
            yield f"precision {precision}"
    least, enough = mebibytes(least_budget(plan)), mebibytes(budget_without_offload(plan))
    yield f"a budget of {least}, or {enough} without offloading"
