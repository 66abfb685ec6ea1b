"""The command ``arlon-rt export``. In this package only commands.py, display.py and parity/command.py print."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from arlon_export.checkpoints.arguments import add_published, chosen_checkpoint
from arlon_rt.errors import OptionsError

MOST_COMPARE_GIB = 4096


class Export:
    """The command; see `arlon_rt.cli.main.Command`."""

    help = (
        "Export a checkpoint to a bundle of ONNX graphs. Each graph is compared with its torch module if memory "
        "allows. After an interruption the same command continues the export."
    )

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "checkpoint", type=Path, nargs="?", help="folder with config.json and <network>.safetensors"
        )
        add_published(parser)
        parser.add_argument("-o", "--output", type=Path, required=True, help="the bundle to write; must not exist yet")
        parser.add_argument(
            "--precision", default="fp32,fp16", metavar="P,P", help="sets of fp32, fp16, bf16 (default: %(default)s)"
        )
        parser.add_argument(
            "--only", metavar="GRAPH,GRAPH", help="export these graphs alone, e.g. dit,vae_decoder (default: all)"
        )
        parser.add_argument(
            "--compare-memory", type=float, metavar="GIB",
            help="memory for comparing a graph with its module; larger graphs are not compared (default: 1)",
        )

    def run(self, args: argparse.Namespace) -> int:
        from arlon_export.display import Display
        from arlon_export.export import COMPARE_BYTES, export_bundle

        console = Console(highlight=False)
        memory = args.compare_memory
        if memory is not None and not 0 <= memory <= MOST_COMPARE_GIB:
            raise OptionsError(f"--compare-memory is {memory:g}; it must be 0 to {MOST_COMPARE_GIB} GiB")
        try:
            with Display(console) as display:
                bundle = export_bundle(
                    chosen_checkpoint(args), args.output, precisions=_names(args.precision),
                    only=_names(args.only) if args.only else None, on_graph=display.graph, on_progress=display.progress,
                    compare_bytes=COMPARE_BYTES if memory is None else int(memory * 2**30),
                )
        except KeyboardInterrupt:
            console.print("interrupted: finished networks are kept; the same command exports the others")
            raise
        total = sum(f.size for f in bundle.manifest.files.values())
        console.print(f"{args.output}: {len(bundle.manifest.graphs)} graphs, {total / 2**20:.2f} MiB")
        return 0


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


export_command = Export()
