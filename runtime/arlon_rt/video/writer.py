"""Writers of MP4 and WebM: frames are written as they come, and a file that is cut short plays.

The same frames give the same bytes; the metadata carries no time. A file grows under ``<name>.part`` and takes its name
when it is complete, or when the caller stops it on purpose. Each segment is encoded by itself, so that a file that was
cut short can be resumed with the packets it has.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self

import numpy as np

from arlon_rt.errors import Cancelled, OutputError
from arlon_rt.video.encoding import DEFAULT_QUALITY, Quality
from arlon_rt.video.track import Track

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONTAINERS = {
    # Fragments that reach the disk while it grows, so that a killed process leaves a file that plays; an ordinary MP4
    # once closed.
    ".mp4": {"movflags": "+hybrid_fragmented+frag_keyframe"},
    ".webm": {},
}
STDOUT = Path("-")
"""The name of a pipe in errors."""


def check_writable(path: str | os.PathLike[str]) -> None:
    """Find out that ``path`` cannot be written, before any work is done.

    Raises:
        OutputError: it is neither ``.mp4`` nor ``.webm``, its folder is missing, or no file can be created in it.
    """
    path = Path(path)
    with _reporting(path):
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
        if unfinished.exists():   # of a video that was cut short, and may be resumed
            unfinished.open("ab").close()
        else:
            unfinished.open("wb").close()
            unfinished.unlink()


@contextlib.contextmanager
def _reporting(path: Path) -> Iterator[None]:
    """Turn errors of the system, PyAV's among them (e.g. a full disk), into `OutputError`."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"output {str(path)!r} cannot be written: {error.strerror or error}") from error


def unfinished_path(path: Path) -> Path:
    """The file that grows until ``path`` is complete: ``<name>.part`` beside it."""
    return path.with_name(path.name + ".part")


class VideoWriter:
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
        self,
        path: str | os.PathLike[str],
        *,
        fps: float,
        height: int,
        width: int,
        metadata: Mapping[str, str] | None = None,
        quality: Quality = DEFAULT_QUALITY,
        resumed: int = 0,
    ) -> None:
        self.path = Path(path)
        self.unfinished = unfinished_path(self.path)
        before = self.unfinished if self.unfinished.exists() else self.path
        if not resumed:
            check_writable(path)
        kind, self._closed = self.path.suffix.lower(), False
        self._growing = self.unfinished.with_name(self.unfinished.name + ".new") if resumed else self.unfinished
        with _reporting(self.path):
            self._growing.touch()   # FFmpeg creates the file at the first packet; a header without packets crashes it
            self._track = Track(
                self._growing, kind, CONTAINERS[kind], height=height, width=width, fps=fps, quality=quality,
                metadata=metadata or {},
            )
            if resumed:
                try:
                    self._track.take_over(before, resumed)
                except BaseException:
                    self.abort()
                    raise

    @property
    def frames_written(self) -> int:
        return self._track.frames_written

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Append ``frames`` (frame, height, width, 3), RGB uint8."""
        with _reporting(self.path):
            self._track.write(frames)

    def end_segment(self) -> None:
        """Close the group of pictures: later frames are encoded independently of these."""
        with _reporting(self.path):
            self._track.end_segment()
            if self._growing != self.unfinished:
                self._growing = self._growing.replace(self.unfinished)   # it holds all frames of the old one

    def close(self) -> None:
        """Complete the file and give it its final name; without a frame, remove it."""
        if self._closed:
            return
        if not self.frames_written:
            self.abort()
            return
        self._finish()
        with _reporting(self.path):
            self.unfinished.replace(self.path)

    def abort(self) -> None:
        """Stop and remove the unfinished file; the final name is not touched."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(OSError):
                self._track.close()
            self._growing.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, KeyboardInterrupt | SystemExit | Cancelled):
            self.close()
        elif not self.frames_written:
            self.abort()
        elif not self._closed:
            with contextlib.suppress(OutputError):   # the error under way is the one to report
                self._finish()
            if self._track.lost:
                self._growing.unlink(missing_ok=True)

    def _finish(self) -> None:
        """Flush the encoder and complete the file under its temporary name."""
        self._closed = True
        with _reporting(self.path):
            try:
                self.end_segment()
            finally:
                self._track.close()


class PipeWriter:
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
        self._gone = False
        live = {"movflags": "+empty_moov+default_base_moof+frag_keyframe"}
        with _reporting(STDOUT):
            self._track = Track(
                _Unseekable(stream), ".mp4", live, height=height, width=width, fps=fps, quality=quality,
                metadata=metadata or {},
            )

    @property
    def frames_written(self) -> int:
        return self._track.frames_written

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Append ``frames`` (frame, height, width, 3), RGB uint8."""
        with self._unless_gone():
            self._track.write(frames)

    def end_segment(self) -> None:
        """Close the group of pictures."""
        with self._unless_gone():
            self._track.end_segment()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._gone:
            return
        with self._unless_gone() if error is None else contextlib.suppress(OSError, OutputError):
            self._track.end_segment()
            self._track.close()

    @contextlib.contextmanager
    def _unless_gone(self) -> Iterator[None]:
        """Remember when the stream takes no more bytes."""
        try:
            with _reporting(STDOUT):
                yield
        except OutputError:
            self._gone = True
            raise


class _Unseekable:
    """A stream with nothing but `write`, which passes each fragment on at once."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, content: bytes) -> int:
        written = self._stream.write(content)
        self._stream.flush()
        return written
