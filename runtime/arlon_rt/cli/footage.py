"""Frames for ``arlon-rt generate`` from files: a clip to extend, an image, references, a clip to repaint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arlon_rt.bundle import Bundle
from arlon_rt.errors import OptionsError
from arlon_rt.events import FootageRead
from arlon_rt.files import file_sha256
from arlon_rt.options import ResolvedOptions
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
    reader = _Reader(options, bundle)
    segment = bundle.model.video.segment_frames
    after, repainted = None, None
    if args.extend is not None:
        after = reader.clip("extend", args.extend, most=segment, end=True)
    if args.image is not None:
        after = reader.image("image", args.image)
    if args.repaint is not None:
        most = length or round(LONGEST_SECONDS * options.fps)
        repainted = reader.clip("repaint", args.repaint, most=-(-most // reader.chunk) * reader.chunk, end=False)
        repainted = repainted[: len(repainted) // reader.chunk * reader.chunk]
        if length and len(repainted) < length:
            raise OptionsError(
                f"repaint is {str(args.repaint)!r}, which gives {len(repainted)} frames in whole chunks; {length} are "
                "asked for: ask for a shorter video"
            )
    references = [reader.reference(path, segment) for path in args.reference or ()]
    return Sources(
        after=after, references=tuple(references), mask_strategy=args.mask_strategy or "", repainted=repainted,
        read=tuple(reader.read), hashes=reader.hashes,
    )


class _Reader:
    """Reads files at one size and rate, and keeps their hashes and the events that report them."""

    def __init__(self, options: ResolvedOptions, bundle: Bundle) -> None:
        vae = bundle.model.vae
        self.size = {"height": vae.whole(options.height), "width": vae.whole(options.width)}
        self.chunk, self._fps = vae.chunk_frames, options.fps
        self.read: list[FootageRead] = []
        self.hashes: dict[str, str] = {}

    def clip(self, use: str, path: Path, *, most: int, end: bool) -> NDArray[np.uint8]:
        """The first or last ``most`` frames of a clip (frame, height, width, 3), at least one chunk."""
        from arlon_rt.video import read_clip

        return self._note(use, path, read_clip(
            path, **self.size, fps=self._fps, most_frames=most, at_least=self.chunk, end=end
        ))

    def image(self, use: str, path: Path) -> NDArray[np.uint8]:
        """An image as one frame (1, height, width, 3)."""
        from arlon_rt.video import read_image

        return self._note(use, path, read_image(path, **self.size))

    def reference(self, path: Path, most: int) -> NDArray[np.uint8]:
        """An image, or the first ``most`` frames of a clip; the suffix says which."""
        if path.suffix.lower() in IMAGES:
            return self.image("reference", path)
        return self.clip("reference", path, most=most, end=False)

    def _note(self, use: str, path: Path, footage: Any) -> NDArray[np.uint8]:
        frames: NDArray[np.uint8] = footage.frames
        self.read.append(FootageRead(use=use, file=str(path), num_frames=len(frames), changes=footage.changes))
        self.hashes[f"{use} {path.name}"] = file_sha256(path)
        return frames
