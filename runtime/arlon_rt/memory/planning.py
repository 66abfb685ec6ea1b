"""A plan of memory for a bundle: its figures, from engines or its manifest, and what would fit where it does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from arlon_rt.bundle import Bundle, EngineEntry, engine_stores, source_hash
from arlon_rt.errors import BudgetError
from arlon_rt.graphs import FLOAT_DTYPE, graph_specs
from arlon_rt.memory.activations import RULE, estimate, recorded
from arlon_rt.memory.demand import Demand
from arlon_rt.memory.footprint import needed_graphs, tensor_bytes
from arlon_rt.memory.plan import Figure, MemoryPlan, least_budget, plan_memory, roomy_budget, shortage
from arlon_rt.units import mebibytes

ENGINE, GRAPH = "engine", "graph"
"""Where the bytes of weights come from: an engine that was built, or the .onnx of which none was built yet."""
TOLD = "told by TensorRT"
SMALLER = (0.75, 0.5, 0.375, 0.25)
"""Sides that are looked at, of a picture that is too large."""

Engines = Mapping[str, EngineEntry]
"""Graph -> the engine that runs, or would run, of those that were built."""


def plan_for(
    bundle: Bundle, demand: Demand, precision: str, budget: int | None, engines: Engines | None = None
) -> MemoryPlan:
    """The plan for requests of a bundle.

    Args:
        engines: ``None``: those that are found for any GPU.
    """
    there = built_engines(bundle, precision) if engines is None else engines
    narrowed = demand.narrowed(bundle.model)
    weights = {graph: weights_of(bundle, graph, precision, there) for graph in graph_specs(bundle.model)}
    activations: dict[str, Figure] = {}
    for spec in needed_graphs(bundle.model, demand):
        entry = there.get(spec.name)
        told = recorded(entry.header.plan_sha256, entry.profiles, demand.sizes(spec)) if entry else None
        activations[spec.name] = (
            Figure(size=told, source=TOLD) if told is not None
            else Figure(size=estimate(narrowed, spec, demand, precision), source=RULE)
        )
    return plan_memory(
        bundle.model, demand, precision, budget=budget, weights=weights, activations=activations
    )


def check_fits(bundle: Bundle, plan: MemoryPlan, engines: Engines | None = None) -> None:
    """Raise `BudgetError`, with what would fit, unless the plan, of these engines, fits its budget."""
    if not plan.fits:
        raise BudgetError(shortage(plan, tuple(_ways_out(bundle, plan, engines))))


def weights_of(bundle: Bundle, graph: str, precision: str, engines: Engines) -> Figure:
    """The engine's plan, which is its weights and kernels; or what the manifest says a run of the graph must read,
    inputs and outputs aside."""
    if entry := engines.get(graph):
        return Figure(size=entry.header.plan_bytes, source=ENGINE)
    stated, spec = bundle.graph(graph, precision).bytes, bundle.spec(graph)
    tensors = [*spec.inputs, *(t for t in spec.outputs if t.alias is None)]
    moved = tensor_bytes(spec, tensors, precision, {axis.name: axis.opt for axis in spec.axes})
    if stated > moved:
        return Figure(size=stated - moved, source=GRAPH)
    return Figure(size=_of_files(bundle, graph, precision), source=GRAPH)


def built_engines(bundle: Bundle, precision: str, flavour: str | None = None) -> dict[str, EngineEntry]:
    """Of each graph the largest engine that was built of it in this precision, for whichever GPU."""
    found: dict[str, EngineEntry] = {}
    for store in engine_stores(bundle):
        for entry in store.index().engines:
            header = entry.header
            identity = header.identity
            if identity.precision != precision or identity.flavour != (flavour or identity.flavour):
                continue
            if header.graph not in bundle.manifest.graphs:
                continue
            before = found.get(header.graph)
            larger = before is None or before.header.plan_bytes < header.plan_bytes
            if larger and header.source == source_hash(bundle, header.graph, precision):
                found[header.graph] = entry
    return found


def _of_files(bundle: Bundle, graph: str, precision: str) -> int:
    """The .onnx and its network's external data, of which it may read a part, where the manifest states no bytes."""
    entry = bundle.graph(graph, precision)
    return sum(bundle.manifest.files[name].size for name in (entry.file, *entry.data))


def _ways_out(bundle: Bundle, plan: MemoryPlan, engines: Engines | None) -> Iterator[str]:
    """What could be asked for instead, each as it would fit; another size has engines of its own."""
    assert plan.budget is not None
    demand, budget = plan.demand, plan.budget

    def fits(other: Demand, precision: str = plan.precision, of: Engines | None = None) -> bool:
        return plan_for(bundle, other, precision, budget, of).fits

    vae = bundle.model.vae
    for part in SMALLER:
        smaller = dataclasses.replace(
            demand, height=vae.whole(int(demand.height * part), 2) or 2 * vae.space_stride,
            width=vae.whole(int(demand.width * part), 2) or 2 * vae.space_stride,
        )
        if smaller != demand and fits(smaller, of={}):
            yield f"{smaller.width}x{smaller.height}"
            break
    if demand.guided and fits(dataclasses.replace(demand, guided=False, also_unguided=False), of=engines):
        yield "without guidance (guidance_scale 1)"
    for precision in bundle.precisions:
        if _width(precision) < _width(plan.precision) and fits(demand, precision):
            yield f"precision {precision}"
    yield f"a budget of {mebibytes(least_budget(plan))}, or {mebibytes(roomy_budget(plan))} for all to stay"


def _width(precision: str) -> int:
    return 4 if FLOAT_DTYPE[precision] == "float32" else 2
