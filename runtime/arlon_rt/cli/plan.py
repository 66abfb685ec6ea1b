"""``arlon-rt generate --dry-run``: the plan of GPU memory as a table."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from arlon_rt.bundle import FLAVOURS
from arlon_rt.cli.arguments import open_bundle, read_options

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from arlon_rt.memory import GraphMemory, MemoryPlan


def show_plan(args: argparse.Namespace) -> int:
    """Print the plan of the request that the arguments say.

    Raises:
        BudgetError: the budget does not hold it; the table was printed.
    """
    from rich.console import Console

    from arlon_rt.cli.arguments import has_footage
    from arlon_rt.memory import Demand, built_engines, check_fits, plan_for
    from arlon_rt.networks import usual_precision
    from arlon_rt.units import parse_bytes

    bundle = open_bundle(args)
    budget = None if args.vram_budget is None else parse_bytes(args.vram_budget)
    options = read_options(args, bundle)
    if has_footage(args):
        options = dataclasses.replace(options, num_frames=None)
    precision = args.precision or usual_precision(bundle, "cuda")
    flavour = args.backend if args.backend in FLAVOURS else None
    engines = built_engines(bundle, precision, flavour)
    plan = plan_for(bundle, Demand.of(options, bundle), precision, budget, engines)
    print_plan(Console(highlight=False), plan)
    check_fits(bundle, plan, engines)
    return 0


def print_plan(console: Console, plan: MemoryPlan) -> None:
    """The graphs, what is held, and the sums that the budget is held to."""
    from arlon_rt.memory import CONTEXT
    from arlon_rt.units import mebibytes

    console.print(f"{plan.demand}, {plan.precision}, TensorRT: planned, nothing was run", soft_wrap=True)
    console.print(graph_table(plan))
    rows = [(held.name, held.size) for held in plan.held]
    rows += [(f"activations of {lane}, one arena", size) for lane, size in plan.arenas.items()]
    rows += [("CUDA context and rounding (assumed)", CONTEXT)]
    for name, size in rows:
        console.print(f"{mebibytes(size):>12}  {name}", soft_wrap=True)
    console.print(f"\n{mebibytes(plan.together):>12}  at most while a segment is made", soft_wrap=True)
    for graph, taken in plan.alone.items():
        console.print(f"{mebibytes(taken):>12}  at most while {graph} is loaded alone", soft_wrap=True)
    if plan.budget is not None:
        verdict = "fits" if plan.fits else "DOES NOT FIT"
        console.print(f"{mebibytes(plan.budget):>12}  budget: {verdict}", soft_wrap=True)
    for line in notes(plan):
        console.print(line, soft_wrap=True)


def graph_table(plan: MemoryPlan) -> Table:
    """A row a graph."""
    from rich import box
    from rich.table import Table

    from arlon_rt.units import mebibytes

    table = Table(box=box.SIMPLE, pad_edge=False)
    for heading in ("graph", "plan"):
        table.add_column(heading)
    for heading in ("weights", "on the GPU", "in and out", "activations"):
        table.add_column(heading, justify="right")
    for graph in plan.graphs:
        table.add_row(
            graph.graph, way(graph), mebibytes(graph.weights.size), mebibytes(graph.on_device),
            mebibytes(graph.buffers), f"{'' if told(graph) else '~ '}{mebibytes(graph.activations.size)}",
        )
    return table


def way(graph: GraphMemory) -> str:
    """What is done with a graph, in words."""
    return ("stays" if graph.way == "stays" else "alone") + (", streams" if graph.streams else "")


def told(graph: GraphMemory) -> bool:
    """Whether TensorRT said what activations it takes."""
    from arlon_rt.memory import TOLD

    return graph.activations.source == TOLD


def notes(plan: MemoryPlan) -> list[str]:
    """What the words mean, where the figures come from, and what the plan asks for."""
    from arlon_rt.memory import GRAPH

    lines = []
    if plan.alone:
        lines.append("alone: loaded when it is to run, all others freed, and freed before another runs")
    if plan.one_arena:
        lines.append("one arena for all lanes: with --overlap they take turns on the GPU")
    if any(g.streams for g in plan.graphs):
        lines.append("streams: weights that are not on the GPU come over the bus at every run")
    if unbuilt := [g.graph for g in plan.graphs if g.weights.source == GRAPH]:
        lines.append(f"weights of graphs of which no engine is built yet, as the manifest states them: {join(unbuilt)}")
    if any(not told(g) for g in plan.graphs):
        lines.append("~ estimated from the widest tensor, until TensorRT tells when the engine is loaded first")
    if streaming := [g.graph for g in plan.graphs if g.streams]:
        lines.append(f"needs engines built with --weight-streaming: {join(streaming)}")
    return ["", *lines] if lines else []


def join(graphs: list[str]) -> str:
    return ", ".join(graphs)
