"""Frames of clips and images, converted to a model's size and rate, with a list of the changes in words.

Files are taken for hostile: only common containers and pictures are opened, and no file that they refer to.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from arlon_rt.errors import OptionsError
from arlon_rt.video.encoding import BT709, FULL, LIMITED

if TYPE_CHECKING:
    import av

FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,gif,apng,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe"
"""FFmpeg's names of the formats that are opened: no playlist, no list of files, no device."""
MOST_PIXELS = 8192 * 8192
"""The largest picture that is read."""
MOST_SIDE = 16384
"""The longest side, in pixels, of a picture scaled to cover the model's size: a long and thin one fills the memory."""
BT601, BT2020 = 5, 9
MATRICES = {1: BT709, 4: BT601, 5: BT601, 6: BT601, 7: BT601, 9: BT2020, 10: BT2020}
"""FFmpeg's number of a frame's colour matrix -> the number that its conversion takes."""
HDR = {16: "PQ", 18: "HLG"}
"""Number of a transfer function (ITU-T H.273) that needs tone mapping -> its name."""
SD_LINES = 720
"""Pictures with fewer lines and no tag have the matrix of BT.601; players assume the same."""
MARGIN_SECONDS = 2.0
"""Seconds that are decoded before the requested end of a clip, since containers round their lengths."""
MISSING_SECONDS = 0.5
"""A clip whose pictures end this long before its stated length has lost some."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Footage:
    """Frames of a file."""

    frames: NDArray[np.uint8]
    """(frame, height, width, 3), RGB."""
    changes: tuple[str, ...]
    """The conversions, one phrase each."""


def read_clip(
    path: str | os.PathLike[str], *, height: int, width: int, fps: float, most_frames: int, at_least: int = 1,
    end: bool = True,
) -> Footage:
    """The last ``most_frames`` frames of a clip, or the first ones, at ``fps`` frames a second.

    Frame k is the picture that the clip shows at second k/fps. Pictures are scaled to cover ``height`` and ``width``
    (pixels) and cut to their middle. Memory holds the returned frames alone, whatever the clip's length.

    Raises:
        OptionsError: the file cannot be read or used, or has fewer than ``at_least`` frames.
    """
    for late in (end, False):
        with _opened(path) as (container, stream):
            length, rate = _seconds(container, stream), stream.average_rate
            skipped = (length or 0.0) - most_frames / fps - MARGIN_SECONDS if late else 0.0
            fitting = _Fitting(path, height, width, stream.sample_aspect_ratio or Fraction(1))
            timing = _Timing(fps, most_frames, end)
            broken = _decode(container, stream, timing, fitting, skipped)
            frames = timing.frames()
        if skipped <= 0 or len(frames) == most_frames:
            break   # else the stated length is wrong, as in a file that was cut off: decode it from the start
    if not broken and not timing.more and length is not None and length - timing.total / fps > MISSING_SECONDS:
        broken = f"the pictures end at second {timing.total / fps:.1f}, and the file tells of {length:.1f}"
    if len(frames) < at_least:
        reason = f" ({broken})" if broken else ""
        raise OptionsError(
            f"clip {str(path)!r} gives {len(frames)} frames at {fps:g} a second; {at_least} or more are needed, that "
            f"is {at_least / fps:.2f} seconds{reason}"
        )
    if rate is not None and abs(float(rate) - fps) > 0.005:
        fitting.changes.append(f"{float(rate):.5g} frames a second brought to {fps:g}")
    if len(frames) < timing.total or timing.more:
        of = "" if timing.more else f" of {timing.total}"
        fitting.changes.append(f"the {'last' if end else 'first'} {len(frames)}{of} frames taken")
    if broken:
        fitting.changes.append(f"what should come after them is missing ({broken})")
    return Footage(frames=np.stack(frames), changes=tuple(fitting.changes))


def read_image(path: str | os.PathLike[str], *, height: int, width: int) -> Footage:
    """An image as one frame; a clip or an animation gives its first picture. Sizes are as for `read_clip`.

    Raises:
        OptionsError: the file cannot be read or used.
    """
    import av

    with _opened(path) as (container, stream):
        try:
            frame = next(container.decode(stream))
        except (StopIteration, av.FFmpegError) as error:
            raise OptionsError(
                f"image {str(path)!r} does not decode: {getattr(error, 'strerror', None) or 'no picture is whole'}"
            ) from error
        fitting = _Fitting(path, height, width, stream.sample_aspect_ratio or Fraction(1))
        return Footage(frames=fitting.fitted(frame)[None], changes=tuple(fitting.changes))


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[Any, Any]]:
    """The container and its first picture track."""
    import av

    name = Path(path)
    if not name.is_file():
        what = "is no file" if name.exists() else "does not exist"
        raise OptionsError(f"{str(path)!r} {what}; name a clip or an image")
    try:
        # Opened by descriptor: by name, FFmpeg takes a larger .jpg for one of a series, a format that FORMATS lacks.
        with open(os.open(name, os.O_RDONLY), "rb") as file, av.open(
            file, options={"max_pixels": str(MOST_PIXELS)},
            container_options={"format_whitelist": FORMATS, "protocol_whitelist": "none"},
        ) as container:
            if not container.streams.video:
                raise OptionsError(f"{str(path)!r} has no picture; name a clip or an image")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise OptionsError(f"{str(path)!r} has a coding that is unknown; convert it to H.264 or PNG")
            width, height = stream.codec_context.width, stream.codec_context.height
            if width * height > MOST_PIXELS:
                raise OptionsError(f"{str(path)!r} is {width}×{height}; {MOST_PIXELS} pixels are the most")
            stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}   # some headers lack the size
            yield container, stream
    except OptionsError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionsError(f"{str(path)!r} cannot be read as a clip or an image: {reason}") from error


def _decode(container: Any, stream: Any, timing: _Timing, fitting: _Fitting, skipped: float) -> str | None:
    """Decode from second ``skipped`` until ``timing`` has its frames; return the fault that ended it early, if any."""
    import av

    begin = float((stream.start_time or 0) * stream.time_base)
    if skipped > 0:
        with suppress(av.FFmpegError):   # a file without an index is decoded from the start
            container.seek(int((begin + skipped) / stream.time_base), stream=stream)
    frames = enumerate(container.decode(stream))
    while True:
        try:
            number, frame = next(frames)
        except StopIteration:
            return None
        except av.FFmpegError as error:
            return str(error.strerror or error)
        at = number / timing.fps if frame.time is None else frame.time - begin
        if not timing.take(at, float(frame.duration * frame.time_base), partial(fitting.fitted, frame)):
            return None


def _seconds(container: Any, stream: Any) -> float | None:
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / 1e6


class _Timing:
    """Takes the pictures shown at whole multiples of 1/fps: the last ``most`` of them, or the first."""

    def __init__(self, fps: float, most: int, end: bool) -> None:
        self.fps, self.most, self.end = fps, most, end
        self.total = 0
        """Number of frames up to the current picture, with those before the first one decoded."""
        self.more = False
        """Whether the frames are complete and later pictures were not decoded."""
        self._held: deque[NDArray[np.uint8]] = deque(maxlen=most)
        self._shown: tuple[float, Callable[[], NDArray[np.uint8]]] | None = None
        self._step = 1 / fps

    def take(self, at: float, lasts: float, picture: Callable[[], NDArray[np.uint8]]) -> bool:
        """Take ``picture()``, shown from second ``at`` on, for ``lasts`` seconds if it is the last.

        Returns whether another one is needed.
        """
        if self._shown is None:
            self.total = max(0, math.ceil(at * self.fps - 0.5))
        else:
            self._step = at - self._shown[0]
            self._show_until(at)
        self._step = max(self._step, lasts)
        self._shown = at, picture
        self.more = not self.end and len(self._held) == self.most
        return not self.more

    def frames(self) -> list[NDArray[np.uint8]]:
        """The frames, once every picture was taken."""
        if self._shown is not None and not self.more:
            self._show_until(self._shown[0] + max(self._step, 0.5 / self.fps))
        return list(self._held)

    def _show_until(self, end: float) -> None:
        """Hold the last picture for every multiple before second ``end``; half a frame counts as on time."""
        assert self._shown
        if self.end:   # frames that would be dropped are skipped: a clip may claim to last for years
            self.total = max(self.total, math.ceil(end * self.fps - 0.5) - self.most)
        shown = None
        while self.total < end * self.fps - 0.5 and (self.end or len(self._held) < self.most):
            shown = shown if shown is not None else self._shown[1]()
            self._held.append(shown)
            self.total += 1


@dataclass
class _Fitting:
    """Converts pictures to RGB frames of one size."""

    path: str | os.PathLike[str]
    height: int
    width: int
    pixel_aspect: Fraction
    """Width of a pixel divided by its height."""
    changes: list[str] = field(default_factory=list)
    """The conversions so far, each once."""

    def fitted(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        """The picture as RGB (height, width, 3)."""
        if (trc := HDR.get(int(frame.color_trc or 0))) is not None:
            raise OptionsError(
                f"{str(self.path)!r} is HDR ({trc}), whose light would need tone mapping; convert it to BT.709 first"
            )
        turns = round((frame.rotation or 0) / 90) % 4
        height, width = (self.width, self.height) if turns % 2 else (self.height, self.width)
        pixels = self._scaled(frame, *self._cover(frame, height, width))
        top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
        cut = np.rot90(pixels[top : top + height, left : left + width], turns)
        if turns:
            self._note(f"turned by {90 * turns} degrees, as the file says")
        return np.ascontiguousarray(cut)

    def _cover(self, frame: av.VideoFrame, height: int, width: int) -> tuple[int, int]:
        """The smallest size (rows, columns) in square pixels that covers ``height`` and ``width``."""
        shape = float(self.pixel_aspect * frame.width / frame.height)
        scaled = (height, round(height * shape)) if shape * height >= width else (round(width / shape), width)
        rows, columns = max(scaled[0], height), max(scaled[1], width)
        if max(rows, columns) > MOST_SIDE:
            raise OptionsError(
                f"{str(self.path)!r} is {frame.width}×{frame.height}, too long and thin to be cut to "
                f"{self.width}×{self.height}; cut a part out of it first"
            )
        if (rows, columns) != (frame.height, frame.width):
            self._note(f"{frame.width}×{frame.height} scaled to {columns}×{rows}")
        if (rows, columns) != (height, width):
            self._note(f"cut to {width}×{height}")
        return rows, columns

    def _scaled(self, frame: av.VideoFrame, rows: int, columns: int) -> NDArray[np.uint8]:
        from av.video.reformatter import Interpolation

        coloured = any(component.is_alpha for component in frame.format.components) or frame.format.name == "pal8"
        as_rgb = frame.format.is_rgb or frame.format.name == "pal8"
        full = as_rgb or int(frame.color_range) == FULL or frame.format.name.startswith("yuvj")
        untagged = BT601 if frame.height < SD_LINES else BT709
        smaller = rows * columns < frame.height * frame.width
        shown = frame.reformat(
            columns, rows, format="rgba" if coloured else "rgb24",
            src_colorspace=None if as_rgb else MATRICES.get(int(frame.colorspace), untagged),
            src_color_range=FULL if full else LIMITED, dst_color_range=FULL,
            interpolation=Interpolation.AREA if smaller else Interpolation.BICUBIC,
        )
        pixels = shown.to_ndarray().astype(np.uint8, copy=False)
        if coloured:
            alpha = pixels[..., 3:].astype(np.uint16)
            if (alpha < 255).any():
                self._note("transparent parts put on black")
            pixels = ((pixels[..., :3] * alpha + 127) // 255).astype(np.uint8)
        return pixels

    def _note(self, change: str) -> None:
        if change not in self.changes:
            self.changes.append(change)
