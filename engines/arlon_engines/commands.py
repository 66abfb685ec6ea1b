"""The command ``arlon-rt build``. In this package only commands.py and display.py print."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from rich.console import Console

from arlon_engines.build import Request, build, plan
from arlon_engines.display import Display, print_plan
from arlon_engines.errors import BuildError
from arlon_engines.profiles import parse_size
from arlon_rt.backends import compute_capability
from arlon_rt.bundle import FLAVOURS, Bundle
from arlon_rt.cli.arguments import add_bundle, open_bundle
from arlon_rt.errors import BackendError, OptionsError

PRECISIONS = ("fp16", "bf16", "fp32")


class Build:
    """The command; see `arlon_rt.cli.main.Command`."""

    help = (
        "Build the TensorRT engines of a bundle's graphs that are missing or out of date. They are stored in the "
        "bundle's folder engines/, or in your cache if the bundle cannot be written."
    )

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add_bundle(parser)
        parser.add_argument("--backend", choices=FLAVOURS, required=True, help="the TensorRT that will run the engines")
        parser.add_argument(
            "--precision", choices=PRECISIONS, default="fp16", help="precision of the graphs (default: %(default)s)"
        )
        parser.add_argument(
            "--gpu", action="append", metavar="smNN", help="compute capability; repeat it (default: this machine's GPU)"
        )
        parser.add_argument(
            "--profile", action="append", metavar="WxHxF",
            help="width, height and frames of a segment at most; repeat it (default: any size, tuned for the bundle's)",
        )
        parser.add_argument(
            "--weight-streaming", action="store_true",
            help="build engines that can keep part of their weights in the host's memory, for `generate --vram-budget` "
                 "(default: off)",
        )
        parser.add_argument(
            "--only", metavar="GRAPH,GRAPH", help="build only these graphs, e.g. dit,vae_decoder (default: all)"
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="print what would be built, and why; build nothing (default: off)"
        )
        parser.add_argument(
            "--polygraphy", type=Path, metavar="DIR",
            help="write scripts with which Polygraphy compares engines with ONNX Runtime to DIR; build nothing "
                 "(default: off)",
        )

    def run(self, args: argparse.Namespace) -> int:
        bundle = open_bundle(args)
        request = read_request(args, bundle)
        console = Console(highlight=False)
        if args.polygraphy is not None:
            from arlon_engines.polygraphy_files import write_scripts

            for script in write_scripts(bundle, request, args.polygraphy):
                console.print(str(script), soft_wrap=True)
            return 0
        if args.dry_run:
            print_plan(console, plan(bundle, request))
            return 0
        try:
            with Display(console) as display:
                failed = build(bundle, request, display.event)
        except KeyboardInterrupt:
            console.print("interrupted: finished engines are kept; the same command builds the others")
            raise
        if failed:
            names = ", ".join(f"{f.graph} for {f.identity.compute_capability}" for f in failed)
            raise BuildError(f"no engine of {names}; the reasons are printed above, and all other engines are ready")
        return 0


def read_request(args: argparse.Namespace, bundle: Bundle) -> Request:
    """The request that the arguments describe.

    Raises:
        OptionsError: a GPU or a profile is malformed, or no GPU is named and this machine has none.
    """
    return Request(
        flavour=args.backend, precision=args.precision, gpus=_gpus(args.gpu),
        sizes=tuple(parse_size(text, bundle.model) for text in args.profile or ()),
        only=tuple(name.strip() for name in (args.only or "").split(",") if name.strip()),
        weight_streaming=args.weight_streaming,
    )


def _gpus(named: list[str] | None) -> tuple[str, ...]:
    if named is None:
        try:
            return (compute_capability(),)
        except BackendError as error:
            raise OptionsError(f"the command line has no --gpu (e.g. --gpu sm89), and {error}") from error
    for gpu in named:
        if not re.fullmatch(r"sm\d{2,3}", gpu):
            raise OptionsError(f"gpu is {gpu!r:.80}; sm and the compute capability are expected, e.g. sm89 for 8.9")
    return tuple(named)


build_command = Build()
