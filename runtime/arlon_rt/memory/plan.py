"""What stays in GPU memory, what is loaded for a prompt and freed, what streams its weights: sizes in, a plan out.

One engine a graph, one arena of activations a lane or for all of them, and what `arlon_rt.memory.footprint` counts.
Nothing in this file touches a GPU or a file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from arlon_rt.config import ModelConfig
from arlon_rt.graphs import ALL_LANES, LANE_OF
from arlon_rt.memory.demand import Demand
from arlon_rt.memory.footprint import Held, buffers, held, needed_graphs
from arlon_rt.units import mebibytes

CONTEXT = 512 << 20
"""Assumed for the CUDA context, TensorRT itself, CUDA graphs and what the allocator rounds up: nobody tells before."""
PASSING = ("text_encoder", "vq_encoder")
"""What may be loaded alone and freed, in this order: it runs once a prompt, or once before a video."""
STREAMING = ("dit", "ar_step", "ar_prefix")
"""What may stream its weights, in this order."""
STAGING = 16
"""A 16th of an engine's weights is assumed for the memory through which they stream."""

Way = Literal["stays", "passes"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number of bytes, and where it comes from."""

    size: int
    source: str


@dataclass(frozen=True, kw_only=True)
class GraphMemory:
    """One graph's share."""

    graph: str
    lane: str
    way: Way
    """``"passes"``: loaded alone when it is run, and freed before anything else runs."""
    weights: Figure
    on_device: int
    """Bytes of its weights that stay there; the others are streamed."""
    buffers: int
    """Inputs from the host and outputs to it."""
    activations: Figure

    @property
    def streams(self) -> bool:
        """Whether weights come over the bus at every run."""
        return self.on_device < self.weights.size

    @property
    def loaded(self) -> int:
        """What it takes while it is loaded, its lane's activations aside."""
        return self.on_device + self.buffers + (self.staging if self.streams else 0)

    @property
    def staging(self) -> int:
        """Memory that streaming its weights would take."""
        return self.weights.size // STAGING


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What a request takes of a GPU's memory."""

    budget: int | None
    """``None``: as much as there is."""
    demand: Demand
    precision: str
    graphs: tuple[GraphMemory, ...]
    held: tuple[Held, ...]
    one_arena: bool = False
    """Whether all lanes share a stream and activations: overlapped, they take turns on the GPU."""

    @property
    def arenas(self) -> Mapping[str, int]:
        """Lane -> activations of the graphs that are loaded together: the largest of each lane, or of all."""
        sizes = {ALL_LANES: 0} if self.one_arena else dict.fromkeys(LANE_OF.values(), 0)
        for graph in self._together:
            lane = ALL_LANES if self.one_arena else graph.lane
            sizes[lane] = max(sizes[lane], graph.activations.size)
        return sizes

    @property
    def together(self) -> int:
        """At most while a segment is made: all that stays."""
        return self._always + sum(graph.loaded for graph in self._together) + sum(self.arenas.values())

    @property
    def alone(self) -> Mapping[str, int]:
        """Graph that passes -> at most while it is loaded."""
        return {g.graph: self._always + g.loaded + g.activations.size for g in self.graphs if g.way == "passes"}

    @property
    def peak(self) -> int:
        """The most that is taken at once."""
        return max(self.together, *self.alone.values(), 0)

    @property
    def fits(self) -> bool:
        """Whether the budget holds it."""
        return self.budget is None or self.peak <= self.budget

    def of(self, graph: str) -> GraphMemory:
        """The share of one graph."""
        return next(g for g in self.graphs if g.graph == graph)

    @property
    def _together(self) -> list[GraphMemory]:
        return [graph for graph in self.graphs if graph.way == "stays"]

    @property
    def _always(self) -> int:
        return CONTEXT + sum(tensor.size for tensor in self.held)


def plan_memory(
    model: ModelConfig, demand: Demand, precision: str, *, budget: int | None,
    weights: Mapping[str, Figure], activations: Mapping[str, Figure],
) -> MemoryPlan:
    """The first of the ways to run that fits the budget; where none fits, the one that takes least.

    All stays; or the text encoder passes, then the encoder of codes, too; then lanes share their activations; then
    weights are streamed, no more than is needed: the transformer's, then the token model's; those of a graph that
    passes where it is too large alone.

    Args:
        budget: bytes of GPU memory; ``None``: no limit.
        weights: of every graph of the bundle.
        activations: likewise.
    """
    least: MemoryPlan | None = None
    for passing in _ways({spec.name for spec in needed_graphs(model, demand)}):
        found = _laid_out(model, demand, precision, budget, weights, activations, passing)
        if found.fits:
            return found
        least = found
    assert least
    shared = dataclasses.replace(least, one_arena=True)
    return shared if shared.fits else _streamed(shared)


def least_budget(plan: MemoryPlan) -> int:
    """Bytes below which nothing helps: all passes that can, all is shared and streamed that can."""
    return _streamed(dataclasses.replace(plan, budget=1, one_arena=True)).peak


def roomy_budget(plan: MemoryPlan) -> int:
    """Bytes from which on all stays."""
    graphs = tuple(dataclasses.replace(g, way="stays", on_device=g.weights.size) for g in plan.graphs)
    return dataclasses.replace(plan, graphs=graphs, one_arena=False).peak


def _ways(graphs: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Which graphs pass: none, then one more each time."""
    may = [graph for graph in PASSING if graph in graphs]
    return (tuple(may[:count]) for count in range(len(may) + 1))


def _laid_out(
    model: ModelConfig, demand: Demand, precision: str, budget: int | None, weights: Mapping[str, Figure],
    activations: Mapping[str, Figure], passing: Collection[str],
) -> MemoryPlan:
    graphs = tuple(
        GraphMemory(
            graph=spec.name, lane=LANE_OF[spec.network], way="passes" if spec.name in passing else "stays",
            weights=weights[spec.name], on_device=weights[spec.name].size,
            buffers=buffers(spec, demand, precision), activations=activations[spec.name],
        ) for spec in needed_graphs(model, demand)
    )
    return MemoryPlan(
        budget=budget, demand=demand, precision=precision, graphs=graphs, held=held(model, demand, precision)
    )


def _streamed(plan: MemoryPlan) -> MemoryPlan:
    """The plan with as few weights streamed as its budget needs; all of them where that is not enough."""
    assert plan.budget is not None
    budget = plan.budget
    for graph in STREAMING:
        plan = _with_less(plan, graph, plan.together - budget)
    for graph, taken in plan.alone.items():
        plan = _with_less(plan, graph, taken - budget)
    return plan


def _with_less(plan: MemoryPlan, graph: str, excess: int) -> MemoryPlan:
    """The plan with ``excess`` bytes less of a graph's weights on the device, as far as it has them."""
    if excess <= 0 or graph not in {g.graph for g in plan.graphs}:
        return plan
    share = plan.of(graph)
    kept = max(0, share.weights.size - excess - share.staging)
    graphs = tuple(dataclasses.replace(g, on_device=kept) if g.graph == graph else g for g in plan.graphs)
    return dataclasses.replace(plan, graphs=graphs)


def shortage(plan: MemoryPlan, ways_out: Collection[str]) -> str:
    """The message for a plan that does not fit."""
    assert plan.budget is not None
    largest = max((g for g in plan.graphs if g.way == "stays"), key=lambda g: g.activations.size)
    return (
        f"vram_budget is {mebibytes(plan.budget)}; {plan.demand} in {plan.precision} need {mebibytes(plan.peak)} at "
        f"least, {mebibytes(largest.activations.size)} of it activations of {largest.graph}. What would fit: "
        f"{'; '.join(ways_out)}"
    )
