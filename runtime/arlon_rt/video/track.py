"""The one video track of a file: frames are encoded segment by segment, or packets copied from an unfinished file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Self

import numpy as np

from arlon_rt.errors import OutputError
from arlon_rt.video.encoding import COLOUR_TAGS, Quality, even, new_encoder, yuv

if TYPE_CHECKING:
    import av
    from numpy.typing import NDArray

BITEXACT = {"fflags": "+bitexact", "flush_packets": "1"}
"""Options that keep version strings and times out of the file, and write each packet at once."""


class Pipe:
    """A stream with nothing but `write`, which passes each fragment on at once."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.gone = stream, False

    def write(self, content: bytes) -> int:
        try:
            written = self._stream.write(content)
            self._stream.flush()
        except BaseException:
            self.gone = True
            raise
        return written


@contextlib.contextmanager
def reporting(path: Path) -> Iterator[None]:
    """Turn errors of the system, PyAV's among them (e.g. a full disk), into `OutputError`."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"output {str(path)!r} cannot be written: {error.strerror or error}") from error


class Track:
    """The one video track of a container, the base of its writers.

    Args:
        path: the name of the target in errors.
        target: the file or the pipe.
        kind: suffix of the file name, ``.mp4`` or ``.webm``.
        options: of FFmpeg's muxer.
        height, width: of the frames in pixels.
    """

    def __init__(
        self, path: Path, target: Path | Pipe, kind: str, options: Mapping[str, str], *, height: int, width: int,
        fps: float, quality: Quality, metadata: Mapping[str, str] | None,
    ) -> None:
        import av

        self.path, self.frames_written = path, 0
        self._state: Literal["", "open", "no header"] = ""
        self._size, self._rate = (height, width), Fraction(fps).limit_denominator(1001)
        self._new_encoder = partial(new_encoder, kind, height, width, self._rate, quality)
        self._encoder: av.VideoCodecContext | None = None
        with reporting(path):
            self._container: Any = av.open(target, "w", format=kind.removeprefix("."), options={**options, **BITEXACT})
            self._container.metadata.update(metadata or {})
            described = self._new_encoder()   # the track's header; each segment has an encoder of its own
            self._stream: Any = self._container.add_stream(
                described.codec.name, rate=described.framerate, options=described.options
            )
        for name in ("height", "width", "pix_fmt", "thread_count", "gop_size", *COLOUR_TAGS):
            setattr(self._stream.codec_context, name, getattr(described, name))

    def __enter__(self) -> Self:
        return self

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Append ``frames`` (frame, height, width, 3), RGB uint8."""
        height, width = self._size
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (height, width, 3):
            raise ValueError(f"frames are {frames.dtype} {frames.shape}; uint8 (n, {height}, {width}, 3) is expected")
        with reporting(self.path):
            self._encoder = self._encoder or self._new_encoder()
            for frame in even(frames):
                self._mux(self._encoder.encode(yuv(frame, self.frames_written)))
                self.frames_written += 1

    def end_segment(self) -> None:
        """Close the group of pictures: later frames are encoded independently of these."""
        encoder, self._encoder = self._encoder, None
        if encoder is not None:
            with reporting(self.path):
                self._mux(encoder.encode(None))

    def _close_container(self) -> None:
        if self._state != "no header":   # FFmpeg crashes in the trailer of a container without a header
            with reporting(self.path):
                self._container.close()

    def _take_over(self, before: Path, frames: int) -> None:
        """Copy the packets of the first ``frames`` frames from the file ``before``; nothing is encoded again."""
        import av

        with reporting(self.path), av.open(before) as old:
            packets: list[Any] = [packet for packet in old.demux(video=0) if packet.pts is not None]
            begin = min((packet.pts for packet in packets), default=0)   # an unfinished file has no edit list
            taken = [p for p in packets if round((p.pts - begin) * p.time_base * self._rate) < frames]
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
            if self._state == "no header":
                return
            packet.stream = self._stream
            try:
                self._container.mux(packet)   # the first one writes the header
            except BaseException:
                self._state = self._state or "no header"
                raise
            self._state = "open"


def _with_start_codes(packet: bytes) -> bytes:
    """A packet of an MP4 as x264 writes it: a start code before each H.264 unit in place of its length."""
    units, at = [], 0
    while at < len(packet):
        end = at + 4 + int.from_bytes(packet[at : at + 4], "big")
        units.append(packet[at + 4 : end])
        at = end
    return b"".join(b"\0\0\0\1" + unit for unit in units)
