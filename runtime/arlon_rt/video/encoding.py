"""Frames to packets: x264 for MP4, VP9 for WebM, PNG for single frames; always the same bytes for the same frames.

Colour is BT.709, limited range, and tagged so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from arlon_rt.errors import OptionsError

if TYPE_CHECKING:
    import av
    from numpy.typing import NDArray

CPU = Path("/proc/cpuinfo")
"""Where Linux lists what the processor can do."""
BT709 = 1
"""Its number in all three tables of ITU-T H.273: primaries, transfer and matrix."""
LIMITED, FULL = 1, 2
"""FFmpeg's AVColorRange: luma in 16..235, or 0..255."""
COLOUR_TAGS = {"color_primaries": BT709, "color_trc": BT709, "colorspace": BT709, "color_range": LIMITED}
SECONDS_A_KEYFRAME = 2
EFFORTS = ("fast", "usual", "small")
"""What an encoder spends time on: little, or more for a smaller file."""
PRESETS = {"fast": "veryfast", "usual": "medium", "small": "slow"}
"""Of x264."""
CPU_USED = {"fast": "8", "usual": "4", "small": "1"}
"""Of VP9: higher is faster."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How frames are encoded."""

    crf: int | None = None
    """Constant rate factor, 0 to 51, lower is better; ``None``: near-transparent, 18 for x264 and 24 for VP9."""
    effort: str = "usual"
    """One of `EFFORTS`."""

    def __post_init__(self) -> None:
        if self.effort not in EFFORTS:
            raise OptionsError(f"effort is {self.effort!r:.80}; it must be one of {', '.join(EFFORTS)}")
        if self.crf is not None and not (type(self.crf) is int and 0 <= self.crf <= 51):
            raise OptionsError(f"crf is {self.crf!r:.80}; it must be 0 to 51, lower is better (18 is usual)")


DEFAULT_QUALITY = Quality()


def x264(height: int, width: int, fps: Fraction, quality: Quality) -> av.VideoCodecContext:
    """For one segment of an MP4."""
    crf = 18 if quality.crf is None else quality.crf
    options = {"preset": PRESETS[quality.effort], "crf": str(crf), **_instructions(CPU)}
    return _encoder("libx264", height, width, fps, options)


def vp9(height: int, width: int, fps: Fraction, quality: Quality) -> av.VideoCodecContext:
    """For one segment of a WebM."""
    crf = 24 if quality.crf is None else quality.crf
    options = {"crf": str(crf), "b": "0", "deadline": "good", "cpu-used": CPU_USED[quality.effort], "row-mt": "0"}
    return _encoder("libvpx-vp9", height, width, fps, options)


Encoder = Callable[[int, int, Fraction, Quality], "av.VideoCodecContext"]
ENCODERS: Mapping[str, Encoder] = {".mp4": x264, ".webm": vp9}
"""By the name's ending."""


def _encoder(
    codec: str, height: int, width: int, fps: Fraction, options: Mapping[str, str]
) -> av.VideoCodecContext:
    """Height and width in pixels; odd ones are made even."""
    import av

    context = av.CodecContext.create(codec, "w")
    assert isinstance(context, av.VideoCodecContext)
    context.height, context.width, context.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
    context.framerate, context.time_base = fps, 1 / fps
    context.options = dict(options)
    context.flags |= av.codec.context.Flags.global_header
    context.thread_count = 1   # x264's output depends on the number of threads
    context.gop_size = round(SECONDS_A_KEYFRAME * fps)
    for name, value in COLOUR_TAGS.items():
        setattr(context, name, value)
    return context


def png(frame: NDArray[np.uint8]) -> bytes:
    """One RGB frame (height, width, 3) as a PNG file, lossless."""
    import av

    context = av.CodecContext.create("png", "w")
    assert isinstance(context, av.VideoCodecContext)
    context.height, context.width, context.pix_fmt = frame.shape[0], frame.shape[1], "rgb24"
    context.time_base = Fraction(1, 1)
    shown = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    return b"".join(bytes(packet) for packet in [*context.encode(shown), *context.encode(None)])


def _instructions(cpu: Path) -> dict[str, str]:
    """Which processor instructions x264 may use: AVX2 where ``cpu`` names it, else what x264 finds itself.

    Its AVX-512 code (x264 core 165 in av 18.1) is no faster, and makes other bytes of the same frames in most runs of
    a process that runs ONNX Runtime beside it; with AVX2 there were none in 1,100 runs.
    """
    has_avx2 = cpu.is_file() and re.search(r"^flags\b.*\bavx2\b", cpu.read_text(encoding="utf-8"), re.MULTILINE)
    return {"x264-params": "asm=AVX2"} if has_avx2 else {}


def even(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Repeat the last row and column of odd sizes: 4:2:0 needs even ones."""
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(frames)


def yuv(frame: NDArray[np.uint8], number: int) -> av.VideoFrame:
    """One RGB frame (height, width, 3) as BT.709 limited-range 4:2:0, to be shown as frame ``number``."""
    import av

    rgb = av.VideoFrame.from_ndarray(frame, format="rgb24")
    yuv = rgb.reformat(format="yuv420p", dst_colorspace=BT709, src_color_range=FULL, dst_color_range=LIMITED)
    yuv.pts = number
    return yuv
