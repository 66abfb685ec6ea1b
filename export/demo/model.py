"""Which model a command of the demo looks at: a bundle, or checkpoints that were never exported."""

from __future__ import annotations

import argparse
from pathlib import Path

from arlon_rt.pipeline import Pipeline


def add_model_options(parser: argparse.ArgumentParser) -> None:
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--bundle", type=Path, help="a bundle's folder; left out: the demo bundle")
    model.add_argument("--checkpoints", type=Path, help="checkpoints instead, run by PyTorch")
    parser.add_argument("--device", default="cpu", help="where a bundle runs")


def open_pipeline(args: argparse.Namespace) -> Pipeline:
    """What the options of `add_model_options` name; PyTorch is imported for checkpoints alone."""
    if args.checkpoints:
        from demo.trained import open_trained

        return open_trained(args.checkpoints)
    return Pipeline.open(args.bundle, device=args.device)
