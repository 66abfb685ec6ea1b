"""Frames in, an H.264 MP4 out: written as it is made, identical for identical input, playable when cut short.

Colour is BT.709, limited range, and tagged so; the metadata carries no time. The file grows under ``<name>.part``
and takes its name only when it is complete, or when the caller stops it on purpose.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from arlon_rt.errors import Cancelled, OutputError

if TYPE_CHECKING:
    import av
    from numpy.typing import NDArray

SUFFIX = ".mp4"
ENCODER = {"preset": "medium", "crf": "18"}
"""x264: near-transparent, at a speed no generation waits for."""
CPU = Path("/proc/cpuinfo")
"""Where Linux lists what the processor can do."""
BT709 = 1
"""Its number in all three tables of ITU-T H.273: primaries, transfer and matrix."""
LIMITED, FULL = 1, 2
"""FFmpeg's AVColorRange: luma in 16..235, or 0..255."""
SECONDS_A_KEYFRAME = 2


def check_writable(path: str | os.PathLike[str]) -> None:
    """Find out that ``path`` cannot be written before any work is done.

    Raises:
        OutputError: it is no ``.mp4``, its folder is missing, or a file cannot be made there.
    """
    path = Path(path)
    with _reporting(path):
        if path.is_dir():
            raise OutputError(f"output {str(path)!r} is a folder; name a file, e.g. {str(path / 'out.mp4')!r}")
        if path.suffix.lower() != SUFFIX:
            raise OutputError(f"output is {str(path)!r}; its name must end in {SUFFIX}, the one format there is")
        if not path.parent.is_dir():
            raise OutputError(f"output {str(path)!r} cannot be written: there is no folder {str(path.parent)!r}")
        if path.exists() and not os.access(path, os.W_OK):
            raise OutputError(f"output {str(path)!r} exists and is read-only; name another file")
        part_of(path).open("wb").close()
        part_of(path).unlink()


@contextlib.contextmanager
def _reporting(path: Path) -> Iterator[None]:
    """Turn errors of the system, PyAV's among them (e.g. a full disk), into `OutputError`."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"output {str(path)!r} cannot be written: {error.strerror or error}") from error


def part_of(path: Path) -> Path:
    """Where the file grows until it is complete: ``<name>.part`` beside it."""
    return path.with_name(path.name + ".part")


class VideoWriter:
    """Writes frames to an MP4 as they come; use it as a context manager.

    * Left normally: the file is complete under its own name.
    * Left by an interrupt (KeyboardInterrupt, SystemExit, `Cancelled`): what was written is completed the same way.
    * Left by an error: the final name is not touched; frames that were written stay, playable, under ``<name>.part``.
    * Without a single frame nothing is left, however it ends.

    A process that is killed outright leaves a fragmented file that still plays under ``<name>.part``.

    Args:
        path: the file to write, ``.mp4``; an existing file is replaced, at the end and in one step.
        fps: frames a second.
        height, width: of the frames in pixels. Odd sizes are made even by repeating the last row or column.
        metadata: container tags, e.g. ``title`` and ``comment``.

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
    ) -> None:
        check_writable(path)
        self.path = Path(path)
        self.part = part_of(self.path)
        self.frames_written = 0
        self._size = (height, width)
        self._closed = False
        with _reporting(self.path):
            self.part.touch()   # FFmpeg makes the file at the first packet; a header without packets crashes it
            self._container, self._stream = _open(self.part, fps, height, width, metadata or {})

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Append ``frames`` (frame, height, width, 3), RGB uint8."""
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (*self._size, 3):
            height, width = self._size
            raise ValueError(f"frames are {frames.dtype} {frames.shape}; uint8 (n, {height}, {width}, 3) is expected")
        with _reporting(self.path):
            for frame in _even(frames):
                self._container.mux(self._stream.encode(_yuv(frame, self.frames_written)))
                self.frames_written += 1

    def close(self) -> None:
        """Finish the file and give it its name. Without a frame, remove it."""
        if self._closed:
            return
        if not self.frames_written:
            self.abort()
            return
        self._finish()
        with _reporting(self.path):
            self.part.replace(self.path)

    def abort(self) -> None:
        """Stop and remove what was written; the final name is not touched."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(OSError):
                self._container.close()
            self.part.unlink(missing_ok=True)

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

    def _finish(self) -> None:
        """Flush the encoder and complete the file under its temporary name."""
        self._closed = True
        with _reporting(self.path):
            try:
                self._container.mux(self._stream.encode(None))
            finally:
                self._container.close()


def _open(part: Path, fps: float, height: int, width: int, metadata: Mapping[str, str]) -> tuple[Any, Any]:
    import av

    # Fragments that reach the disk while it grows, so that a killed process leaves a file that plays; an ordinary MP4
    # once closed. bitexact: no version strings and no times.
    options = {"movflags": "+hybrid_fragmented+frag_keyframe", "flush_packets": "1", "fflags": "+bitexact"}
    container = av.open(part, "w", format="mp4", options=options)
    container.metadata.update(metadata)
    stream = container.add_stream(
        "libx264", rate=Fraction(fps).limit_denominator(1001), options={**ENCODER, **_instructions(CPU)}
    )
    stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
    context = stream.codec_context
    context.thread_count = 1   # x264's output depends on the number of threads
    context.gop_size = round(SECONDS_A_KEYFRAME * fps)
    context.color_primaries = context.color_trc = context.colorspace = BT709
    context.color_range = LIMITED
    return container, stream


def _instructions(cpu: Path) -> dict[str, str]:
    """Which processor instructions x264 may use: AVX2 where ``cpu`` names it, else what x264 finds itself.

    Its AVX-512 code (x264 core 165 in av 18.1) is no faster, and makes other bytes of the same frames in most runs of
    a process that runs ONNX Runtime beside it; with AVX2 there were none in 1,100 runs.
    """
    has_avx2 = cpu.is_file() and re.search(r"^flags\b.*\bavx2\b", cpu.read_text(encoding="utf-8"), re.MULTILINE)
    return {"x264-params": "asm=AVX2"} if has_avx2 else {}


def _even(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Repeat the last row and column of odd sizes: 4:2:0 needs even ones."""
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(frames)


def _yuv(frame: NDArray[np.uint8], number: int) -> av.VideoFrame:
    """One RGB frame (height, width, 3) as BT.709 limited-range 4:2:0, to be shown as frame ``number``."""
    import av

    rgb = av.VideoFrame.from_ndarray(frame, format="rgb24")
    yuv = rgb.reformat(format="yuv420p", dst_colorspace=BT709, src_color_range=FULL, dst_color_range=LIMITED)
    yuv.pts = number
    return yuv


@dataclass(frozen=True, kw_only=True)
class StoredVideo:
    """A video file read back."""

    frames: NDArray[np.uint8]
    """(frame, height, width, 3), RGB."""
    fps: float
    metadata: dict[str, str]


def read_video(path: str | os.PathLike[str]) -> StoredVideo:
    """Decode a whole file that `VideoWriter` wrote.

    Raises:
        OutputError: it is missing or does not decode.
    """
    import av

    frames = []
    try:
        with av.open(Path(path)) as container:
            stream = container.streams.video[0]
            for frame in container.decode(stream):
                rgb = frame.reformat(
                    format="rgb24", src_colorspace=BT709, src_color_range=LIMITED, dst_color_range=FULL
                )
                frames.append(rgb.to_ndarray())
            rate, metadata = stream.average_rate, dict(container.metadata)
    except (OSError, ValueError, IndexError) as error:   # missing, damaged, without a picture
        raise OutputError(f"video {str(path)!r} cannot be read: {error}") from error
    if not frames or rate is None:
        raise OutputError(f"video {str(path)!r} holds no frames")
    return StoredVideo(frames=np.stack(frames), fps=float(rate), metadata=metadata)
