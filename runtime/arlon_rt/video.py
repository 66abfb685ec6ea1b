"""Frames in, an H.264 MP4 out: written as it is made, identical for identical input, playable when cut short.

Colour is BT.709, limited range, and tagged so; the metadata carries no time. The file grows under ``<name>.part``
and takes its name only when it is complete, or when the caller stops it on purpose. Segments are encoded each by
itself, so that a file that was cut short goes on with the packets it has.
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
COLOUR_TAGS = {"color_primaries": BT709, "color_trc": BT709, "colorspace": BT709, "color_range": LIMITED}
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
        part = part_of(path)
        if part.exists():   # of a video that was cut short, and may go on
            part.open("ab").close()
        else:
            part.open("wb").close()
            part.unlink()


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

    A process that is killed outright leaves a fragmented file that still plays under ``<name>.part``; it holds every
    segment but the last that `end_segment` was called for.

    Args:
        path: the file to write, ``.mp4``; an existing file is replaced, at the end and in one step.
        fps: frames a second.
        height, width: of the frames in pixels. Odd sizes are made even by repeating the last row or column.
        metadata: container tags, e.g. ``title`` and ``comment``.
        resumed: go on with the first so many frames of the file that was cut short, ``<name>.part`` or else
            ``<name>``; a segment ended there. The file is as if it had been written in one go, and what was there
            stays until it is taken over.

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
        resumed: int = 0,
    ) -> None:
        self.path = Path(path)
        self.part = part_of(self.path)
        before = self.part if self.part.exists() else self.path
        if not resumed:
            check_writable(path)
        self.frames_written = 0
        self._size, self._fps = (height, width), Fraction(fps).limit_denominator(1001)
        self._closed = False
        self._encoder: av.VideoCodecContext | None = None
        self._growing = self.part.with_name(self.part.name + ".new") if resumed else self.part
        with _reporting(self.path):
            self._growing.touch()   # FFmpeg makes the file at the first packet; a header without packets crashes it
            self._container, self._stream = _open(self._growing, self._new_encoder(), metadata or {})
            if resumed:
                try:
                    self._take_over(before, resumed)
                except BaseException:
                    self.abort()
                    raise

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Append ``frames`` (frame, height, width, 3), RGB uint8."""
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (*self._size, 3):
            height, width = self._size
            raise ValueError(f"frames are {frames.dtype} {frames.shape}; uint8 (n, {height}, {width}, 3) is expected")
        with _reporting(self.path):
            self._encoder = self._encoder or self._new_encoder()
            for frame in _even(frames):
                self._mux(self._encoder.encode(_yuv(frame, self.frames_written)))
                self.frames_written += 1

    def end_segment(self) -> None:
        """Close the group of pictures: later frames are encoded as if these had never been."""
        with _reporting(self.path):
            if self._encoder is not None:
                self._mux(self._encoder.encode(None))
            self._encoder = None
            if self._growing != self.part:
                self._growing = self._growing.replace(self.part)   # it holds all that the old one held

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

    def _finish(self) -> None:
        """Flush the encoder and complete the file under its temporary name."""
        self._closed = True
        with _reporting(self.path):
            try:
                self.end_segment()
            finally:
                self._container.close()

    def _take_over(self, before: Path, frames: int) -> None:
        """Copy the packets of the first ``frames`` frames, not encoded anew."""
        import av

        with av.open(before) as old:
            packets: list[Any] = [packet for packet in old.demux(video=0) if packet.pts is not None]
            begin = min((packet.pts for packet in packets), default=0)   # an unfinished file has no edit list
            taken = [p for p in packets if round((p.pts - begin) * p.time_base * self._fps) < frames]
            if len(taken) != frames:
                raise OutputError(f"output {str(before)!r} holds {len(taken)} of the {frames} frames to go on from")
            for old_packet in taken:
                packet = av.Packet(_with_start_codes(bytes(old_packet)))
                packet.pts, packet.dts = old_packet.pts - begin, old_packet.dts - begin
                packet.time_base, packet.duration = old_packet.time_base, old_packet.duration
                packet.is_keyframe = old_packet.is_keyframe
                self._mux([packet])
        self.frames_written = frames

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            packet.stream = self._stream
            self._container.mux(packet)

    def _new_encoder(self) -> av.VideoCodecContext:
        return _encoder(*self._size, self._fps)


def _with_start_codes(packet: bytes) -> bytes:
    """H.264 units as x264 gives them, a start code before each, from those of an MP4, a length before each."""
    units, at = [], 0
    while at < len(packet):
        end = at + 4 + int.from_bytes(packet[at : at + 4], "big")
        units.append(packet[at + 4 : end])
        at = end
    return b"".join(b"\0\0\0\1" + unit for unit in units)


def _encoder(height: int, width: int, fps: Fraction) -> av.VideoCodecContext:
    """x264 for one segment."""
    import av

    context = av.CodecContext.create("libx264", "w")
    assert isinstance(context, av.VideoCodecContext)
    context.height, context.width, context.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
    context.framerate, context.time_base = fps, 1 / fps
    context.options = {**ENCODER, **_instructions(CPU)}
    context.flags |= av.codec.context.Flags.global_header
    context.thread_count = 1   # x264's output depends on the number of threads
    context.gop_size = round(SECONDS_A_KEYFRAME * fps)
    for name, value in COLOUR_TAGS.items():
        setattr(context, name, value)
    return context


def _open(part: Path, encoder: av.VideoCodecContext, metadata: Mapping[str, str]) -> tuple[Any, Any]:
    """A container whose stream is described as ``encoder`` would make it."""
    import av

    # Fragments that reach the disk while it grows, so that a killed process leaves a file that plays; an ordinary MP4
    # once closed. bitexact: no version strings and no times.
    options = {"movflags": "+hybrid_fragmented+frag_keyframe", "flush_packets": "1", "fflags": "+bitexact"}
    container = av.open(part, "w", format="mp4", options=options)
    container.metadata.update(metadata)
    stream = container.add_stream("libx264", rate=encoder.framerate, options=encoder.options)
    context = stream.codec_context
    for name in ("height", "width", "pix_fmt", "thread_count", "gop_size", *COLOUR_TAGS):
        setattr(context, name, getattr(encoder, name))
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
