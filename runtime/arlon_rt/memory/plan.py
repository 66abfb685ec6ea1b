"""Which graphs are resident, offloaded or streamed: sizes go in, a plan comes out.

Each graph has one engine. Activations have one arena for each lane, or one for all lanes. `arlon_rt.memory.footprint`
counts everything else. Nothing in this file touches a GPU or a file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from arlon_rt.config import ModelConfig
from arlon_rt.graphs import ALL_LANES, LANE_OF
from arlon_rt.memory.demand import Demand
from arlon_rt.memory.footprint import buffers, held, needed_graphs
from arlon_rt.units import mebibytes

CONTEXT = 512 << 20
"""Bytes assumed for the CUDA context, TensorRT itself, CUDA graphs and the allocator's rounding. They cannot be known
before a run."""
OFFLOAD_ORDER = ("text_encoder", "vq_encoder")
"""Graphs that may be offloaded, the first one first. One runs once a prompt, the other once before a video."""
STREAM_ORDER = ("dit", "ar_step", "ar_prefix")
"""Resident graphs whose weights may be streamed, the first one first."""
STAGING_PART = 16
"""Streaming is assumed to need a buffer of a 16th of the engine's weights."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number of bytes, and where it comes from."""

    size: int
    source: str


@dataclass(frozen=True, kw_only=True)
class GraphMemory:
    """The memory of one graph."""

    graph: str
    lane: str
    offloaded: bool = False
    """Whether it is loaded alone when it runs, and freed before any other graph runs."""
    weights: Figure
    on_device: int
    """Bytes of its weights that are on the GPU while it is loaded. The others are streamed."""
    buffers: int
    """Bytes of the inputs that come from the host and of the outputs that go there."""
    activations: Figure

    @property
    def streamed(self) -> bool:
        """Whether weights cross the bus at every run."""
        return self.on_device < self.weights.size

    @property
    def residency(self) -> str:
        """``"resident"``, ``"offloaded"``, ``"streamed"`` or ``"offloaded, streamed"``."""
        return ", ".join(["offloaded"] * self.offloaded + ["streamed"] * self.streamed) or "resident"

    @property
    def loaded(self) -> int:
        """Bytes that it takes while it is loaded, without activations."""
        return self.on_device + self.buffers + (self.staging if self.streamed else 0)

    @property
    def staging(self) -> int:
        """Bytes of the buffer that streaming its weights would need."""
        return self.weights.size // STAGING_PART


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What a request takes of a GPU's memory."""

    budget: int | None
    """Bytes; ``None``: no limit."""
    demand: Demand
    precision: str
    graphs: tuple[GraphMemory, ...]
    held: Mapping[str, int]
    """Bytes that belong to no single graph, by what they are."""
    one_arena: bool = False
    """Whether all lanes share a stream and one arena of activations. Overlapped, they then take turns on the GPU."""

    @property
    def arenas(self) -> Mapping[str, int]:
        """Lane -> bytes of its arena, which is as large as the largest activations of its resident graphs."""
        sizes = {ALL_LANES: 0} if self.one_arena else dict.fromkeys(LANE_OF.values(), 0)
        for graph in self._resident:
            lane = ALL_LANES if self.one_arena else graph.lane
            sizes[lane] = max(sizes[lane], graph.activations.size)
        return sizes

    @property
    def resident_peak(self) -> int:
        """The most bytes while a segment is generated, with all resident graphs loaded."""
        return self._base + sum(graph.loaded for graph in self._resident) + sum(self.arenas.values())

    @property
    def offloaded_peaks(self) -> Mapping[str, int]:
        """Offloaded graph -> the most bytes while it alone is loaded."""
        return {g.graph: self._base + g.loaded + g.activations.size for g in self.graphs if g.offloaded}

    @property
    def peak(self) -> int:
        """The most bytes at any time."""
        return max(self.resident_peak, *self.offloaded_peaks.values(), 0)

    @property
    def fits(self) -> bool:
        """Whether the peak stays within the budget."""
        return self.budget is None or self.peak <= self.budget

    def of(self, graph: str) -> GraphMemory:
        """The memory of one graph."""
        return next(g for g in self.graphs if g.graph == graph)

    def shortage(self, alternatives: Collection[str]) -> str:
        """The message for a plan that does not fit."""
        assert self.budget is not None
        largest = max(self._resident, key=lambda graph: graph.activations.size)
        return (
            f"vram_budget is {mebibytes(self.budget)}; {self.demand} in {self.precision} need {mebibytes(self.peak)} "
            f"at least, {mebibytes(largest.activations.size)} of it activations of {largest.graph}. What would fit: "
            f"{'; '.join(alternatives)}"
        )

    @property
    def _resident(self) -> list[GraphMemory]:
        return [graph for graph in self.graphs if not graph.offloaded]

    @property
    def _base(self) -> int:
        """Bytes that are taken whichever graphs are loaded."""
        return CONTEXT + sum(self.held.values())


def plan_memory(
    model: ModelConfig, demand: Demand, precision: str, *, budget: int | None,
    weights: Mapping[str, Figure], activations: Mapping[str, Figure],
) -> MemoryPlan:
    """The plan that fits the budget at the least cost in time, or the smallest plan where none fits.

    Each step is taken only if the plan does not fit yet. All graphs are resident. The text encoder is offloaded, then
    the encoder of codes. All lanes share one arena. Then weights are streamed, no more than needed: the transformer's,
    the token model's, and those of an offloaded graph that is too large even alone.

    Args:
        budget: bytes of GPU memory; ``None``: no limit.
        weights: of every graph that the demand needs.
        activations: likewise.
    """
    graphs = tuple(
        GraphMemory(
            graph=spec.name, lane=LANE_OF[spec.network], weights=weights[spec.name],
            on_device=weights[spec.name].size, buffers=buffers(spec, demand, precision),
            activations=activations[spec.name],
        ) for spec in needed_graphs(model, demand)
    )
    plan = MemoryPlan(
        budget=budget, demand=demand, precision=precision, graphs=graphs, held=held(model, demand, precision)
    )
    for graph in OFFLOAD_ORDER:
        if not plan.fits:
            plan = _changed(plan, graph, offloaded=True)
    if not plan.fits:
        plan = dataclasses.replace(plan, one_arena=True)
    return plan if plan.fits else _streamed(plan)


def least_budget(plan: MemoryPlan) -> int:
    """The smallest budget that a plan can fit, for a plan that offloads all it can."""
    return _streamed(dataclasses.replace(plan, budget=1, one_arena=True)).peak


def budget_without_offload(plan: MemoryPlan) -> int:
    """The smallest budget in which all graphs are resident, each lane with an arena of its own."""
    graphs = tuple(dataclasses.replace(g, offloaded=False, on_device=g.weights.size) for g in plan.graphs)
    return dataclasses.replace(plan, graphs=graphs, one_arena=False).peak


def _streamed(plan: MemoryPlan) -> MemoryPlan:
    """The plan with as few weights streamed as its budget needs, or all of them where that is not enough."""
    assert plan.budget is not None
    budget = plan.budget
    for graph in STREAM_ORDER:
        plan = _with_less(plan, graph, plan.resident_peak - budget)
    for graph, peak in plan.offloaded_peaks.items():
        plan = _with_less(plan, graph, peak - budget)
    return plan


def _with_less(plan: MemoryPlan, graph: str, excess: int) -> MemoryPlan:
    """The plan with ``excess`` bytes less on the GPU by streaming the weights of a graph, as far as they suffice."""
    if excess <= 0 or graph not in {g.graph for g in plan.graphs}:
        return plan
    memory = plan.of(graph)
    return _changed(plan, graph, on_device=max(0, memory.weights.size - excess - memory.staging))


def _changed(plan: MemoryPlan, graph: str, **changes: Any) -> MemoryPlan:
    """The plan with other values for one graph, if it has that graph."""
    graphs = tuple(dataclasses.replace(g, **changes) if g.graph == graph else g for g in plan.graphs)
    return dataclasses.replace(plan, graphs=graphs)
