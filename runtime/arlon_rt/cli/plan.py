"""``arlon-rt generate --dry-run``: the memory plan as a table."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from arlon_rt.bundle import FLAVOURS
from arlon_rt.cli.arguments import open_bundle, read_options

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from arlon_rt.memory import MemoryPlan


def show_plan(args: argparse.Namespace) -> int:
    """Print the memory plan of the request in the arguments.

    Raises:
        BudgetError: the plan, which was printed, does not fit its budget.
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
    """Print the graphs, what is held besides them, and the sums that must fit the budget."""
    from arlon_rt.memory import CONTEXT
    from arlon_rt.units import mebibytes

    console.print(f"{plan.demand}, {plan.precision}, TensorRT: planned, nothing was run", soft_wrap=True)
    console.print(graph_table(plan))
    rows = list(plan.held.items())
    rows += [(f"activations of {lane}, one arena", size) for lane, size in plan.arenas.items()]
    rows += [("CUDA context and rounding (assumed)", CONTEXT)]
    for name, size in rows:
        console.print(f"{mebibytes(size):>12}  {name}", soft_wrap=True)
    console.print(f"\n{mebibytes(plan.resident_peak):>12}  at most while a segment is generated", soft_wrap=True)
    for graph, peak in plan.offloaded_peaks.items():
        console.print(f"{mebibytes(peak):>12}  at most while {graph} is loaded alone", soft_wrap=True)
    if plan.budget is not None:
        verdict = "fits" if plan.fits else "DOES NOT FIT"
        console.print(f"{mebibytes(plan.budget):>12}  budget: {verdict}", soft_wrap=True)
    for line in notes(plan):
        console.print(line, soft_wrap=True)


def graph_table(plan: MemoryPlan) -> Table:
    """A table with a row for each graph; ``~`` marks activations that are estimated."""
    from rich import box
    from rich.table import Table

    from arlon_rt.memory import STATED
    from arlon_rt.units import mebibytes

    table = Table(box=box.SIMPLE, pad_edge=False)
    for heading in ("graph", "residency"):
        table.add_column(heading)
    for heading in ("weights", "on the GPU", "in and out", "activations"):
        table.add_column(heading, justify="right")
    for graph in plan.graphs:
        mark = "" if graph.activations.source == STATED else "~ "
        table.add_row(
            graph.graph, graph.residency, mebibytes(graph.weights.size), mebibytes(graph.on_device),
            mebibytes(graph.buffers), f"{mark}{mebibytes(graph.activations.size)}",
        )
    return table


def notes(plan: MemoryPlan) -> list[str]:
    """Lines that explain the table: its words, the sources of its figures, and which engines it needs."""
    from arlon_rt.memory import GRAPH, STATED

    lines = []
    if plan.offloaded_peaks:
        lines.append("offloaded: loaded alone when it runs; all other graphs are freed first, and it is freed after")
    if plan.one_arena:
        lines.append("one arena for all lanes: with --overlap the lanes take turns on the GPU")
    streamed = [g.graph for g in plan.graphs if g.streamed]
    if streamed:
        lines.append("streamed: weights that are not on the GPU cross the bus at every run")
    if unbuilt := [g.graph for g in plan.graphs if g.weights.source == GRAPH]:
        lines.append(f"no engine is built yet, so the manifest states the weights: {', '.join(unbuilt)}")
    if any(g.activations.source != STATED for g in plan.graphs):
        lines.append("~ estimated from the widest tensor, until an engine is loaded and TensorRT states the figure")
    if streamed:
        lines.append(f"needs engines built with --weight-streaming: {', '.join(streamed)}")
    return ["", *lines] if lines else []
