"""``arlon-rt generate --dry-run``: the memory plan as a table."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from arlon_rt.bundle import FLAVOURS
from arlon_rt.cli.arguments import open_bundle, read_options
from arlon_rt.memory import CONTEXT, GRAPH, STATED, Demand, MemoryPlan, built_engines, check_fits, plan_for
from arlon_rt.networks import usual_precision
from arlon_rt.units import mebibytes, parse_bytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def show_plan(args: argparse.Namespace) -> None:
    """Print the memory plan of the request in the arguments.

    Raises:
        BudgetError: the plan, which was printed, does not fit its budget.
    """
    from rich.console import Console

    bundle = open_bundle(args)
    budget = None if args.vram_budget is None else parse_bytes(args.vram_budget)
    options = read_options(args, bundle)
    if args.extend or args.image or args.repaint or args.reference:
        options = dataclasses.replace(options, num_frames=None)
    precision = args.precision or usual_precision(bundle, "cuda")
    flavour = args.backend if args.backend in FLAVOURS else None
    engines = built_engines(bundle, precision, flavour)
    plan = plan_for(bundle, Demand.of(options, bundle), precision, budget, engines)
    print_plan(Console(highlight=False), plan)
    check_fits(bundle, plan, engines)


def print_plan(console: Console, plan: MemoryPlan) -> None:
    """Print the graphs, what is held besides them, and the sums that must fit the budget."""
    def row(size: int, words: str) -> str:
        return f"{mebibytes(size):>12}  {words}"

    console.print(f"{plan.demand}, {plan.precision}, TensorRT: planned, nothing was run", soft_wrap=True)
    console.print(graph_table(plan))
    lines = [row(size, name) for name, size in plan.held.items()]
    lines += [row(size, f"activations of {lane}, one arena") for lane, size in plan.arenas.items()]
    lines += [row(CONTEXT, "CUDA context and rounding (assumed)")]
    lines += ["", row(plan.resident_peak, "at most while a segment is generated")]
    lines += [row(peak, f"at most while {graph} is loaded alone") for graph, peak in plan.offloaded_peaks.items()]
    if plan.budget is not None:
        lines += [row(plan.budget, f"budget: {'fits' if plan.fits else 'DOES NOT FIT'}")]
    console.print("\n".join([*lines, *notes(plan)]), soft_wrap=True)


def graph_table(plan: MemoryPlan) -> Table:
    """A table with a row for each graph; ``~`` marks activations that are estimated."""
    from rich import box
    from rich.table import Table

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
    lines = []
    if plan.offloaded_peaks:
        lines.append("offloaded: loaded alone when it runs; all other graphs are freed first, and it is freed after")
    if plan.one_arena:
        lines.append("one arena for all lanes: with --overlap the lanes take turns on the GPU")
    if streamed := [g.graph for g in plan.graphs if g.streamed]:
        lines.append("streamed: weights that are not on the GPU cross the bus at every run")
    if unbuilt := [g.graph for g in plan.graphs if g.weights.source == GRAPH]:
        lines.append(f"no engine is built yet, so the manifest states the weights: {', '.join(unbuilt)}")
    if any(g.activations.source != STATED for g in plan.graphs):
        lines.append("~ estimated from the widest tensor, until an engine is loaded and TensorRT states the figure")
    if streamed:
        lines.append(f"needs engines built with --weight-streaming: {', '.join(streamed)}")
    return ["", *lines] if lines else []
