"""Files that ``arlon-rt generate`` takes frames from: a clip to go on from, an image, references, a clip to repaint."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from arlon_rt.bundle import Bundle
from arlon_rt.errors import OptionsError
from arlon_rt.events import FootageRead
from arlon_rt.options import ResolvedOptions

if TYPE_CHECKING:
    pass
from arlon_rt.recording import Sources

IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
"""Endings of files that are read as one image."""
LONGEST_SECONDS = 60.0
"""Of a clip that is repainted, where no length is asked for."""


def add_footage(parser: argparse.ArgumentParser) -> None:
    """The arguments that name files with frames."""
    group = parser.add_argument_group("frames to go by (any size and rate: they are brought to the model's)")
    begin = group.add_mutually_exclusive_group()
    begin.add_argument(
        "--extend", type=Path, metavar="CLIP", 
        help="go on where this clip ends; the output is what comes after it (default: none)",
    )
    begin.add_argument("--image", type=Path, metavar="IMAGE", help="begin with this image (default: none)")
    begin.add_argument(
        "--repaint", type=Path, metavar="CLIP",
        help="move as this clip does, look as the prompt says; as long as the clip (60 s at most), or as --seconds "
             "(default: none)",
    )
    group.add_argument(
        "--reference", type=Path, action="append", metavar="FILE",
        help="an image or a clip to take frames from, where --mask-strategy puts them; repeat it for more "
             "(default: none)",
    )
    group.add_argument(
        "--mask-strategy", metavar="S",
        help="Open-Sora's 'segment,reference,start,at,length,edit_ratio;…', counted from 0, places in latents: "
             "'0,0,0,0,1,0;0,1,0,-1,1,0' begins with the first reference and ends its segment with the second "
             "(default: none)",
    )








def read_footage(args: argparse.Namespace, options: ResolvedOptions, bundle: Bundle, length: int | None) -> Sources:
    """Read what the arguments of `add_footage` name, for a video of ``length`` frames or of the clip's.

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
    """Reads files and remembers what was done."""

    def __init__(self, options: ResolvedOptions, bundle: Bundle) -> None:
        unit = bundle.model.vae.space_stride
        self.size = {"height": options.height // unit * unit, "width": options.width // unit * unit}
        self.chunk, self._fps = bundle.model.vae.chunk_frames, options.fps
        self.read: list[FootageRead] = []
        self.hashes: dict[str, str] = {}

    def clip(self, use: str, path: Path, *, most: int, end: bool) -> NDArray[np.uint8]:
        """(frame, height, width, 3), a chunk or more."""
        from arlon_rt.video import read_clip

        return self._note(use, path, read_clip(
            path, **self.size, fps=self._fps, most_frames=most, at_least=self.chunk, end=end
        ))

    def image(self, use: str, path: Path) -> NDArray[np.uint8]:
        """(1, height, width, 3)."""
        from arlon_rt.video import read_image

        return self._note(use, path, read_image(path, **self.size))

    def reference(self, path: Path, most: int) -> NDArray[np.uint8]:
        """An image, or the beginning of a clip, by the file's name."""
        if path.suffix.lower() in IMAGES:
            return self.image("reference", path)
        return self.clip("reference", path, most=most, end=False)

    def _note(self, use: str, path: Path, footage: Any) -> NDArray[np.uint8]:
        frames: NDArray[np.uint8] = footage.frames
        self.read.append(FootageRead(use=use, file=str(path), num_frames=len(frames), changes=footage.changes))
        with path.open("rb") as file:
            self.hashes[f"{use} {path.name}"] = hashlib.file_digest(file, "sha256").hexdigest()
        return frames
