"""The command-line arguments that name a checkpoint: a folder, or a path for each network of published weights."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arlon_rt.errors import OptionsError

if TYPE_CHECKING:
    from arlon_export.checkpoints.checkpoint import Checkpoint

PUBLISHED = {
    "dit": ("; required", "STDiT3"), "vae": ("; required", "the video autoencoder"),
    "text-encoder": ("; required", "T5 v1.1 with its spiece.model"), "ar": ("", "ARLON's token model"),
    "vq": ("", "its latent VQ-VAE"), "injection": ("", "its adapters; arlon.json beside them says what shapes cannot"),
}
"""Option -> a suffix of its help if it is required, and what it names."""


def add_published(parser: argparse.ArgumentParser) -> None:
    """Add --dit, --vae, --text-encoder and the options for add-ons."""
    group = parser.add_argument_group(
        "published weights instead of a checkpoint folder; each is a Hugging Face folder, a .safetensors or a .pt file"
    )
    for network, (required, what) in PUBLISHED.items():
        group.add_argument(f"--{network}", type=Path, metavar="PATH", help=f"{what} (default: none{required})")
    group.add_argument(
        "--exact", action="store_true",
        help="keep position tables in full precision; the published run used bf16 (default: off)",
    )


def published_paths(args: argparse.Namespace) -> dict[str, Path]:
    """The options of `add_published` that the command line has, and their paths."""
    return {n: path for n in PUBLISHED if (path := getattr(args, n.replace("-", "_"))) is not None}


def chosen_checkpoint(args: argparse.Namespace) -> Checkpoint:
    """The checkpoint that ``args.checkpoint`` or the options of `add_published` name.

    Raises:
        OptionsError: the command line has both, or a required option is missing.
    """
    from arlon_export.checkpoints.checkpoint import read_checkpoint
    from arlon_export.checkpoints.published import read_published

    published = published_paths(args)
    if args.checkpoint is not None:
        if published or args.exact:
            names = ", ".join([f"--{n}" for n in published] + ["--exact"] * args.exact)
            raise OptionsError(f"checkpoint is {args.checkpoint}, and {names} names weights too; leave out one of them")
        return read_checkpoint(args.checkpoint)
    if missing := [f"--{n}" for n, (required, _) in PUBLISHED.items() if required and n not in published]:
        raise OptionsError(f"{', '.join(missing)} missing; give them, or a checkpoint folder")
    paths: dict[str, Any] = {n.replace("-", "_"): path for n, path in published.items()}
    return read_published(**paths, exact=args.exact)
