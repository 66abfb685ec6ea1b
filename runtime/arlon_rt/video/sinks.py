"""Targets for frames, chosen by name: a video file, a folder of PNG frames, or standard output."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from arlon_rt.errors import OutputError
from arlon_rt.video.encoding import DEFAULT_QUALITY, Quality, png
from arlon_rt.video.track import reporting
from arlon_rt.video.writer import PipeWriter, VideoWriter, check_writable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PIPE = "-"
"""The target that stands for standard output."""


class FrameFolder:
    """Writes each frame as a PNG file, ``000000.png`` and on, into a folder that is created for the first one.

    Raises:
        OutputError: a file cannot be written; raised by `write`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.frames_written = folder, 0

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Append ``frames`` (frame, height, width, 3), RGB uint8."""
        with reporting(self.folder):
            self.folder.mkdir(exist_ok=True)
            for frame in frames:
                path = self.folder / f"{self.frames_written:06d}.png"
                part = path.with_suffix(".part")
                part.write_bytes(png(frame))
                part.replace(path)
                self.frames_written += 1

    def end_segment(self) -> None:
        """Nothing to do: each file is complete."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


Sink = VideoWriter | PipeWriter | FrameFolder
"""Takes the frames of a video, in order. Use it as a context manager."""


def is_folder(target: str) -> bool:
    """Whether the target is a folder of PNG frames: its name ends with a slash."""
    return target.endswith("/")


def check_sink(target: str) -> None:
    """Find out that ``target`` cannot be written before any work is done.

    Raises:
        OutputError: it cannot be written, or is a folder that is not empty, or a terminal.
    """
    if target == PIPE:
        if sys.stdout.isatty():
            raise OutputError("output is '-', but standard output is a terminal; pipe it, e.g. to `ffplay -`")
    elif not is_folder(target):
        check_writable(target)
    else:
        folder = Path(target)
        if folder.is_dir() and any(folder.iterdir()):
            raise OutputError(f"output {target!r} is a folder with files in it; name a new or an empty one")
        if not folder.is_dir() and (folder.exists() or not folder.parent.is_dir()):
            raise OutputError(f"output {target!r} cannot be made: it is a file, or there is no {str(folder.parent)!r}")


def open_sink(
    target: str, *, fps: float, height: int, width: int, metadata: Mapping[str, str],
    quality: Quality = DEFAULT_QUALITY, resumed: int = 0,
) -> Sink:
    """The sink of ``target``: a file, a folder whose name ends with a slash, or `PIPE`.

    The other arguments are as for `VideoWriter`; a pipe and a folder cannot be resumed.
    """
    if target == PIPE:
        return PipeWriter(sys.stdout.buffer, fps=fps, height=height, width=width, metadata=metadata, quality=quality)
    if is_folder(target):
        return FrameFolder(Path(target))
    return VideoWriter(
        target, fps=fps, height=height, width=width, metadata=metadata, quality=quality, resumed=resumed
    )
