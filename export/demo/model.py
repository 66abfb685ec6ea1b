"""The options that choose the model of a demo command: a bundle, or checkpoints that were not exported."""

from __future__ import annotations

import argparse
from pathlib import Path

from arlon_rt.pipeline import Pipeline


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add --bundle, --checkpoints and --device."""
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--bundle", type=Path, help="a bundle's folder (default: the demo bundle)")
    model.add_argument("--checkpoints", type=Path, help="a folder of runs' checkpoints instead, for PyTorch")
    parser.add_argument("--device", default="cpu", help="device on which a bundle runs (default: cpu)")


def open_pipeline(args: argparse.Namespace) -> Pipeline:
    """The pipeline that the options of `add_model_options` name; only checkpoints need PyTorch."""
    if args.checkpoints:
        from demo.trained import open_trained

        return open_trained(args.checkpoints)
    return Pipeline.open(args.bundle, device=args.device)
