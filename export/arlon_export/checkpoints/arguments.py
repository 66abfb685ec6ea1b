"""The arguments that name a checkpoint: a folder of this project's, or published weights network by network."""

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
"""Option -> whether it is required, and what it names."""


def add_published(parser: argparse.ArgumentParser) -> None:
    """--dit, --vae, --text-encoder and the add-ons."""
    group = parser.add_argument_group(
        "published weights (a Hugging Face folder, a .safetensors or a .pt file each) instead of a checkpoint folder"
    )
    for network, (required, what) in PUBLISHED.items():
        group.add_argument(f"--{network}", type=Path, metavar="PATH", help=f"{what} (default: none{required})")
    group.add_argument(
        "--exact", action="store_true",
        help="exact position tables, not as the published bf16 run had them (default: off)",
    )


def published_given(args: argparse.Namespace) -> dict[str, Path]:
    """Option -> path, of those given."""
    return {n: path for n in PUBLISHED if (path := getattr(args, n.replace("-", "_"))) is not None}


def chosen_checkpoint(args: argparse.Namespace) -> Checkpoint:
    """What ``args.checkpoint`` or the arguments of `add_published` name.

    Raises:
        OptionsError: both are given, or neither wholly.
    """
    from arlon_export.checkpoints.checkpoint import read_checkpoint
    from arlon_export.checkpoints.published import read_published

    given = published_given(args)
    if args.checkpoint is not None:
        if given or args.exact:
            names = ", ".join([f"--{n}" for n in given] + ["--exact"] * args.exact)
            raise OptionsError(f"checkpoint is {args.checkpoint} and {names} is given, too; give one or the other")
        return read_checkpoint(args.checkpoint)
    if missing := [f"--{n}" for n, (required, _) in PUBLISHED.items() if required and n not in given]:
        raise OptionsError(f"{', '.join(missing)} missing; give them, or a checkpoint folder")
    paths: dict[str, Any] = {n.replace("-", "_"): path for n, path in given.items()}
    return read_published(**paths, exact=args.exact)
