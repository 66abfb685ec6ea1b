"""Frames for ``arlon-rt generate`` from files: a clip to extend, an image, references, a clip to repaint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from arlon_rt.bundle import Bundle
from arlon_rt.errors import OptionsError
from arlon_rt.events import FootageRead
from arlon_rt.files import file_sha256
from arlon_rt.options import ResolvedOptions

if TYPE_CHECKING:
    from arlon_rt.recording import Sources

IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
"""Suffixes of files that are read as one image."""
LONGEST_SECONDS = 60.0
"""The part of a clip that is repainted when no length is requested."""


def add_footage(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name files with frames."""
    group = parser.add_argument_group("frames to start from (of any size and rate: they are converted to the model's)")
    begin = group.add_mutually_exclusive_group()
    begin.add_argument(
        "--extend", type=Path, metavar="CLIP",
        help="continue this clip; the output holds the new frames alone (default: none)",
    )
    begin.add_argument("--image", type=Path, metavar="IMAGE", help="begin with this image (default: none)")
    begin.add_argument(
        "--repaint", type=Path, metavar="CLIP",
        help="move as this clip does and look as the prompt says; as long as the clip (60 s at most) or --seconds "
             "(default: none)",
    )
    group.add_argument(
        "--reference", type=Path, action="append", metavar="FILE",
        help="an image or a clip whose frames --mask-strategy puts into the video; repeat it for more (default: none)",
    )
    group.add_argument(
        "--mask-strategy", metavar="S",
        help="Open-Sora's 'segment,reference,start,at,length,edit_ratio;…', counted from 0, places in latents: "
             "'0,0,0,0,1,0;0,1,0,-1,1,0' begins with the first reference and ends its segment with the second "
             "(default: none)",
    )


def read_footage(args: argparse.Namespace, options: ResolvedOptions, bundle: Bundle, length: int | None) -> Sources:
    """The frames of the files that the arguments of `add_footage` name.

    ``length`` is the requested number of frames; ``None``: as many as the repainted clip has.

    Raises:
        OptionsError: a file cannot be read or used.
    """
    from arlon_rt.recording import Sources
    from arlon_rt.video import read_clip, read_image

    vae, segment = bundle.model.vae, bundle.model.video.segment_frames
    size = {"height": vae.whole(options.height), "width": vae.whole(options.width)}
    read: list[FootageRead] = []
    hashes: dict[str, str] = {}

    def frames_of(use: str, path: Path, most: int | None = None, *, end: bool = False) -> NDArray[np.uint8]:
        """The first or last ``most`` frames of a clip (frame, height, width, 3); ``None``: an image as one frame."""
        footage = read_image(path, **size) if most is None else read_clip(
            path, **size, fps=options.fps, most_frames=most, at_least=vae.chunk_frames, end=end
        )
        read.append(FootageRead(use=use, file=str(path), num_frames=len(footage.frames), changes=footage.changes))
        hashes[f"{use} {path.name}"] = file_sha256(path)
        return footage.frames

    after, repainted = None, None
    if args.extend is not None:
        after = frames_of("extend", args.extend, segment, end=True)
    if args.image is not None:
        after = frames_of("image", args.image)
    if args.repaint is not None:
        most, chunk = length or round(LONGEST_SECONDS * options.fps), vae.chunk_frames
        repainted = frames_of("repaint", args.repaint, -(-most // chunk) * chunk)
        repainted = repainted[: len(repainted) // chunk * chunk]
        if length and len(repainted) < length:
            raise OptionsError(
                f"repaint is {str(args.repaint)!r}, which gives {len(repainted)} frames in whole chunks; {length} are "
                "asked for: ask for a shorter video"
            )
    references = tuple(
        frames_of("reference", path, None if path.suffix.lower() in IMAGES else segment)
        for path in args.reference or ()
    )
    return Sources(
        after=after, references=references, mask_strategy=args.mask_strategy or "", repainted=repainted,
        read=tuple(read), hashes=hashes,
    )
