"""``arlon-rt inspect`` and ``verify``: what a bundle holds, and whether it is whole."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from arlon_rt.cli.arguments import add_bundle, open_bundle
from arlon_rt.units import scaled

if TYPE_CHECKING:
    from arlon_rt.bundle import NetworkSummary, Summary

LONGEST_VALUE = 100
"""The most characters that are shown of one provenance entry, which may be of any length."""


class Inspect:
    """The command; see `arlon_rt.cli.main.Command`."""

    help = "Show what a bundle holds: networks, graphs, engines, precisions, sizes and defaults. No graph is opened."

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add_bundle(parser)
        parser.add_argument("--json", action="store_true", help="print one JSON object (default: off)")

    def run(self, args: argparse.Namespace) -> int:
        from arlon_rt.bundle import describe

        summary = describe(open_bundle(args))
        if args.json:
            print(json.dumps(dataclasses.asdict(summary), ensure_ascii=False, indent=2))
        else:
            print_summary(summary)
        return 0


class Verify:
    """The command; see `arlon_rt.cli.main.Command`."""

    help = "Check a bundle: the hash of every file, that no file lies outside, and the signature of every graph."

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add_bundle(parser)
        parser.add_argument(
            "--deep", action="store_true",
            help="also open every graph, and compare its signature with the manifest (default: off)",
        )

    def run(self, args: argparse.Namespace) -> int:
        bundle = open_bundle(args)
        findings = bundle.verify()
        if args.deep:
            from arlon_rt.backends.ort import verify_opened

            findings += verify_opened(bundle)
        for finding in findings:
            print(f"{finding.severity}: {finding.where}: {finding.message}")
        errors = sum(finding.severity == "error" for finding in findings)
        graphs = sum(len(precisions) for precisions in bundle.manifest.graphs.values())
        outcome = "no fault found" if not errors else f"{errors} errors"
        print(f"{bundle.path}: {len(bundle.manifest.files)} files, {graphs} graphs, {outcome}")
        return 1 if errors else 0


def print_summary(summary: Summary) -> None:
    """Print a bundle on one screen."""
    kind = "Open-Sora v1.2 (no token model)" if summary.baseline else "ARLON"
    defaults = summary.defaults
    print(summary.path)
    print(f"  {kind}, format {summary.format}, written by arlon-rt {summary.arlon_rt}, {summary.licence}")
    precisions = ", ".join(summary.precisions) or "none"
    print(f"  {summary.files} files, {scaled(summary.bytes_on_disk)}B, complete precisions: {precisions}")
    print(f"  hash {summary.hash}")
    print(f"  by default {defaults.num_frames} frames of {defaults.width}×{defaults.height} at {defaults.fps:g} fps, "
          f"{defaults.num_inference_steps} steps, guidance {defaults.guidance_scale:g}; "
          f"at most {summary.largest_width}×{summary.largest_height}")
    suffix = summary.prompt_suffix.strip()
    scores = f'"{suffix}" appended, other scores if asked for' if suffix else "trained without scores"
    print(f"  prompts of at most {summary.max_prompt_tokens} tokens; {scores}")
    print(f"\n{'network':<10}{'graph':<14}{'parameters':>12}{'on disk':>10}{'FLOPs a run':>13}  precisions")
    for network in summary.networks:
        print_network(network)
    print_engines(summary)
    print()
    for name, value in summary.provenance.items():
        text = json.dumps(value, ensure_ascii=False)
        print(f"{name}: {text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + ' … (whole with --json)'}")


def print_network(network: NetworkSummary) -> None:
    """Print a line for each graph. The first also has the figures of the network."""
    parameters = "" if network.parameters is None else scaled(network.parameters)
    name, size = network.name, f"{scaled(network.bytes_on_disk)}B"
    for graph in network.graphs:
        flops = scaled(graph.flops) if graph.flops else ""
        print(f"{name:<10}{graph.name:<14}{parameters:>12}{size:>10}{flops:>13}  {', '.join(graph.precisions)}")
        name = parameters = size = ""


def print_engines(summary: Summary) -> None:
    """Print a block for each identity, with a line for each of its engines."""
    for fault in summary.engine_faults:
        print(f"\nengines: {fault}")
    for identity in dict.fromkeys(engine.entry.header.identity for engine in summary.engines):
        engines = [engine for engine in summary.engines if engine.entry.header.identity == identity]
        total = sum(engine.entry.header.plan_bytes for engine in engines)
        print(f"\nengines for {identity}: {scaled(total)}B")
        print(f"{'graph':<14}{'on disk':>10}{'layers':>8}{'attention':>11}{'cache updates':>15}{'profiles':>10}")
        for engine in engines:
            header, layers = engine.entry.header, engine.entry.layers
            print(f"{header.graph:<14}{scaled(header.plan_bytes) + 'B':>10}{sum(layers.values()):>8}"
                  f"{layers.get('ATTENTION_INPUT', 0):>11}{layers.get('KV_CACHE_UPDATE', 0):>15}"
                  f"{len(engine.entry.profiles):>10}{f'  {engine.fault}' if engine.fault else ''}")


inspect = Inspect()
verify = Verify()
