"""The command ``arlon-rt parity``: compares graphs with recorded outputs, or a bundle with its checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from arlon_export.checkpoints.arguments import add_published, chosen_checkpoint, published_paths
from arlon_rt.cli.arguments import add_option
from arlon_rt.errors import OptionsError
from arlon_rt.options import GenerateOptions

SIZES = ("num_frames", "height", "width", "num_inference_steps")


class Parity:
    """The command; see `arlon_rt.cli.main.Command`."""

    help = (
        "Compare exported graphs with recorded outputs of Open-Sora's own code. With --checkpoint, compare a bundle in "
        "each precision with its checkpoint in torch float32. The exit code is 1 if one differs."
    )

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "folder", type=Path, metavar="DIR",
            help="recorded outputs (stdit3_*.json, vae_io.npz, rflow_io.npz), or with --checkpoint its bundle",
        )
        recorded = parser.add_argument_group("recorded outputs")
        recorded.add_argument("--precision", help="precision set of the graphs, fp32 or fp16 (default: fp32)")
        recorded.add_argument(
            "--keep", type=Path, metavar="BUNDLES", help="a new folder for the bundles, one a family (default: none)"
        )
        request = parser.add_argument_group("a bundle's checkpoint, and the request that makes the inputs")
        request.add_argument("--checkpoint", type=Path, metavar="PATH", help="folder with config.json (default: none)")
        request.add_argument("--prompt", help="what the video shows (default: a prompt of usual length)")
        for name in SIZES:
            add_option(request, name, default="two segments" if name == "num_frames" else None)
        add_published(parser)

    def run(self, args: argparse.Namespace) -> int:
        requested = {name: value for name in (*SIZES, "prompt") if (value := getattr(args, name)) is not None}
        if args.checkpoint is not None or published_paths(args):
            if args.precision or args.keep:
                raise OptionsError(
                    "--precision and --keep are for recorded outputs; with a checkpoint, every precision of the bundle "
                    "is compared; leave them out"
                )
            return _with_checkpoint(args, requested)
        if requested or args.exact:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in (*requested, *["exact"] * args.exact))
            raise OptionsError(f"{names} needs a checkpoint: add --checkpoint PATH, or leave it out")
        return _with_recorded(args)


def _with_recorded(args: argparse.Namespace) -> int:
    from arlon_export.parity.recorded import run_parity

    console = Console(highlight=False)
    table = Table("case", "what", "relative error", "tolerance", "verdict")
    passed = []
    with console.status("exporting and comparing"):
        for result in run_parity(args.folder, precision=args.precision or "fp32", keep=args.keep):
            table.add_row(
                result.case, result.what, f"{result.error:.2e}", f"{result.tolerance:.0e}", _verdict(result.passed)
            )
            passed.append(result.passed)
    return _finish(console, table, passed)


def _with_checkpoint(args: argparse.Namespace, requested: dict[str, str | int]) -> int:
    from arlon_export.parity.checkpoint import compare_checkpoint
    from arlon_rt.bundle import Bundle

    console = Console(highlight=False)
    bundle = Bundle.open(args.folder)
    prompt = requested.pop("prompt", None)
    options = GenerateOptions(**requested) if requested else None  # type: ignore[arg-type]
    table = Table("graph", "run by", "worst output", "error", "allowed", "", box=None)  # fits 80 columns
    passed = []
    checkpoint = chosen_checkpoint(args)
    with console.status("running the request in torch, then comparing"):
        for row in compare_checkpoint(checkpoint, bundle, prompt=prompt, options=options):  # type: ignore[arg-type]
            table.add_row(
                f"{row.graph}.{row.precision}", row.by, row.output, f"{row.error:.1e}", f"{row.tolerance:.0e}",
                _verdict(row.passed) if row.finite else "[red]NOT FINITE[/]",
            )
            passed.append(row.passed)
    console.print("Errors: of floats relative, of tokens the share that differs, of frames mean levels of 0..255.")
    return _finish(console, table, passed)


def _verdict(passed: bool) -> str:
    return "[green]pass[/]" if passed else "[red]FAIL[/]"


def _finish(console: Console, table: Table, passed: list[bool]) -> int:
    console.print(table)
    console.print(f"{sum(passed)} of {len(passed)} comparisons pass")
    return 0 if all(passed) else 1


parity_command = Parity()
