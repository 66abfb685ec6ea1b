"""Writers of MP4 and WebM: frames are written as they come, and a file that is cut short plays.

The same frames give the same bytes; the metadata carries no time. A file grows under ``<name>.part`` and takes its name
when it is complete, or when the caller stops it on purpose. Each segment is encoded by itself, so that a file that was
cut short can be resumed with the packets it has.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from arlon_rt.errors import Cancelled, OutputError
from arlon_rt.video.encoding import DEFAULT_QUALITY, Quality
from arlon_rt.video.track import Pipe, Track, reporting

CONTAINERS = {
    # Fragments that reach the disk while it grows, so that a killed process leaves a file that plays; an ordinary MP4
    # once closed.
    ".mp4": {"movflags": "+hybrid_fragmented+frag_keyframe"},
    ".webm": {},
}
LIVE = {"movflags": "+empty_moov+default_base_moof+frag_keyframe"}
"""A pipe's options: fragments from the start."""


def check_writable(path: str | os.PathLike[str]) -> None:
    """Find out that ``path`` cannot be written, before any work is done.

    Raises:
        OutputError: it is neither ``.mp4`` nor ``.webm``, its folder is missing, or no file can be created in it.
    """
    path = Path(path)
    with reporting(path):
        if path.is_dir():
            raise OutputError(
                f"output {str(path)!r} is a folder; name a file, e.g. {str(path / 'out.mp4')!r}, or end it with / for "
                "PNG frames"
            )
        if path.suffix.lower() not in CONTAINERS:
            raise OutputError(
                f"output is {str(path)!r}; its name must end in {' or '.join(CONTAINERS)}, or in / for PNG frames"
            )
        if not path.parent.is_dir():
            raise OutputError(f"output {str(path)!r} cannot be written: there is no folder {str(path.parent)!r}")
        if path.exists() and not os.access(path, os.W_OK):
            raise OutputError(f"output {str(path)!r} exists and is read-only; name another file")
        unfinished = unfinished_path(path)
        resumable = unfinished.exists()   # of a video that was cut short
        unfinished.open("ab").close()
        if not resumable:
            unfinished.unlink()


def unfinished_path(path: Path) -> Path:
    """The file that grows until ``path`` is complete: ``<name>.part`` beside it."""
    return path.with_name(path.name + ".part")


class VideoWriter(Track):
    """Writes frames to an MP4 or a WebM as they come; use it as a context manager.

    * Left normally: the file is complete under its own name.
    * Left by an interrupt (KeyboardInterrupt, SystemExit, `Cancelled`): the file is completed in the same way.
    * Left by an error: the final name is not touched; the frames so far stay, playable, under ``<name>.part``.
    * Without a single frame no file is left, however it ends.

    A process that is killed leaves a fragmented file under ``<name>.part``, which plays. It holds all segments for
    which `end_segment` was called but the last.

    Args:
        path: the file to write, ``.mp4`` (H.264) or ``.webm`` (VP9); an existing file is replaced, at the end and in
            one step.
        fps: frames a second.
        height, width: of the frames in pixels. Odd sizes are made even by repeating the last row or column.
        metadata: container tags, e.g. ``title`` and ``comment``.
        quality: how frames are encoded.
        resumed: number of frames to keep of an MP4 that was cut short, ``<name>.part`` or else ``<name>``; a segment
            must end with them. The result is the same as without a break. The earlier file stays until its frames
            are copied.

    Raises:
        OutputError: the file cannot be written; also from `write` and `close`.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, fps: float, height: int, width: int,
        metadata: Mapping[str, str] | None = None, quality: Quality = DEFAULT_QUALITY, resumed: int = 0,
    ) -> None:
        path = Path(path)
        self.unfinished, kind, self._closed = unfinished_path(path), path.suffix.lower(), False
        before = self.unfinished if self.unfinished.exists() else path
        if not resumed:
            check_writable(path)
        self._growing = self.unfinished.with_name(self.unfinished.name + ".new") if resumed else self.unfinished
        with reporting(path):
            self._growing.touch()   # FFmpeg creates the file at the first packet; a header without packets crashes it
        super().__init__(
            path, self._growing, kind, CONTAINERS[kind], height=height, width=width, fps=fps, quality=quality,
            metadata=metadata,
        )
        if resumed:
            try:
                self._take_over(before, resumed)
            except BaseException:
                self.abort()
                raise

    def end_segment(self) -> None:
        super().end_segment()
        if self._growing != self.unfinished:
            with reporting(self.path):
                self._growing = self._growing.replace(self.unfinished)   # it holds all frames of the old one

    def close(self) -> None:
        """Complete the file and give it its final name; without a frame, remove it."""
        if not self.frames_written:
            self.abort()
        elif not self._closed:
            self._finish()
            with reporting(self.path):
                self.unfinished.replace(self.path)

    def abort(self) -> None:
        """Stop and remove the unfinished file; the final name is not touched."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(OSError):
                self._close_container()
            self._growing.unlink(missing_ok=True)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, KeyboardInterrupt | SystemExit | Cancelled):
            self.close()
        elif not self.frames_written:
            self.abort()
        elif not self._closed:
            with contextlib.suppress(OutputError):   # the error under way is the one to report
                self._finish()
            if self._state == "no header":
                self._growing.unlink(missing_ok=True)

    def _finish(self) -> None:
        """Flush the encoder and complete the file under its temporary name."""
        self._closed = True
        try:
            self.end_segment()
        finally:
            self._close_container()


class PipeWriter(Track):
    """Writes frames as a fragmented MP4 to a stream that cannot seek, e.g. a player's standard input.

    A fragment is written at the end of each segment and every two seconds. Use it as a context manager; the stream
    stays open.

    Args:
        stream: takes the bytes.
        fps, height, width, metadata, quality: as for `VideoWriter`.

    Raises:
        OutputError: the stream cannot be written.
    """

    def __init__(
        self, stream: BinaryIO, *, fps: float, height: int, width: int, metadata: Mapping[str, str] | None = None,
        quality: Quality = DEFAULT_QUALITY,
    ) -> None:
        self._pipe = Pipe(stream)
        super().__init__(
            Path("-"), self._pipe, ".mp4", LIVE, height=height, width=width, fps=fps, quality=quality, metadata=metadata
        )

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._pipe.gone:
            return
        with contextlib.nullcontext() if error is None else contextlib.suppress(OutputError):
            self.end_segment()
            self._close_container()
