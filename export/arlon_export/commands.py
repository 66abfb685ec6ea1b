"""``arlon-rt export`` and ``arlon-rt parity``; the only file of the exporter that prints."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from arlon_rt.errors import OptionsError

if TYPE_CHECKING:
    from arlon_export.checkpoint import Checkpoint

MOST_GIB = 4096
_PUBLISHED = {
    "dit": (" (required)", "STDiT3"), "vae": (" (required)", "the video autoencoder"),
    "text-encoder": (" (required)", "T5 v1.1 with its spiece.model"), "ar": ("", "ARLON's token model"),
    "vq": ("", "its latent VQ-VAE"), "injection": ("", "its adapters; arlon.json beside them says what shapes cannot"),
}
"""Option -> whether it is required, and what it names."""


class Export:
    """The command; see `arlon_rt.cli.Command`."""

    help = (
        "Export a checkpoint to a bundle of ONNX graphs, each checked against its module as far as memory allows. "
        "When interrupted, the same command goes on where it stopped."
    )

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "checkpoint", type=Path, nargs="?", help="folder with config.json and <network>.safetensors"
        )
        published = parser.add_argument_group(
            "published weights instead (a Hugging Face folder, a .safetensors or a .pt file each)"
        )
        for network, (required, what) in _PUBLISHED.items():
            published.add_argument(f"--{network}", type=Path, metavar="PATH", help=f"{what}{required}")
        published.add_argument(
            "--exact", action="store_true", help="exact position tables, not as the published bf16 run had them"
        )
        parser.add_argument("-o", "--output", type=Path, required=True, help="the bundle to write; must not exist yet")
        parser.add_argument(
            "--precision", default="fp32,fp16", metavar="P,P", help="sets of fp32, fp16, bf16 (default: fp32,fp16)"
        )
        parser.add_argument("--only", metavar="GRAPH,GRAPH", help="export these graphs alone, e.g. dit,vae_decoder")
        parser.add_argument(
            "--compare-memory", type=float, metavar="GIB",
            help="memory for comparing a graph with its module; larger graphs are not compared (default: 2.5)",
        )

    def run(self, args: argparse.Namespace) -> int:
        from arlon_export.display import Display
        from arlon_export.export import COMPARE_BYTES, export_bundle

        console = Console(highlight=False)
        memory = args.compare_memory
        if memory is not None and not 0 <= memory <= MOST_GIB:
            raise OptionsError(f"--compare-memory is {memory:g}; it must be 0 to {MOST_GIB} GiB")
        try:
            with Display(console) as display:
                bundle = export_bundle(
                    _checkpoint(args), args.output, precisions=_names(args.precision),
                    only=_names(args.only) if args.only else None, on_graph=display.graph, on_work=display.work,
                    compare_bytes=COMPARE_BYTES if memory is None else int(memory * 2**30),
                )
        except KeyboardInterrupt:
            console.print("interrupted: finished networks are kept, and the same command goes on with the others")
            raise
        total = sum(f.size for f in bundle.manifest.files.values())
        console.print(f"{args.output}: {len(bundle.manifest.graphs)} graphs, {total / 2**20:.2f} MiB")
        return 0


class Parity:
    """The command; see `arlon_rt.cli.Command`."""

    help = "Compare recorded outputs of Open-Sora's own code with the graphs that ship; exit 1 when one differs."

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("folder", type=Path, metavar="DIR", help="has stdit3_*.json, vae_io.npz or rflow_io.npz")
        parser.add_argument("--precision", default="fp32", help="precision set of the graphs: fp32 (default) or fp16")
        parser.add_argument("--keep", type=Path, metavar="BUNDLES", help="a new folder for the bundles, one a family")

    def run(self, args: argparse.Namespace) -> int:
        from arlon_export.parity import run_parity

        console = Console(highlight=False)
        table = Table("case", "what", "relative error", "tolerance", "verdict")
        results = []
        with console.status("exporting and comparing"):
            for result in run_parity(args.folder, precision=args.precision, keep=args.keep):
                verdict = "[green]pass[/]" if result.passed else "[red]FAIL[/]"
                table.add_row(result.case, result.what, f"{result.error:.2e}", f"{result.tolerance:.0e}", verdict)
                results.append(result)
        console.print(table)
        failed = sum(not r.passed for r in results)
        console.print(f"{len(results) - failed} of {len(results)} comparisons pass")
        return 1 if failed else 0


def _checkpoint(args: argparse.Namespace) -> Checkpoint:
    """What the arguments of `Export` name: a checkpoint folder, or published weights network by network."""
    from arlon_export.checkpoint import read_checkpoint
    from arlon_export.published import read_published

    given = {n: path for n in _PUBLISHED if (path := getattr(args, n.replace("-", "_"))) is not None}
    if args.checkpoint is not None:
        if given or args.exact:
            names = ", ".join([f"--{n}" for n in given] + ["--exact"] * args.exact)
            raise OptionsError(f"checkpoint is {args.checkpoint} and {names} is given, too; give one or the other")
        return read_checkpoint(args.checkpoint)
    if missing := [f"--{n}" for n, (required, _) in _PUBLISHED.items() if required and n not in given]:
        raise OptionsError(f"{', '.join(missing)} missing; give them, or a checkpoint folder")
    return read_published(**{n.replace("-", "_"): path for n, path in given.items()}, exact=args.exact)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


export_command = Export()
parity_command = Parity()
