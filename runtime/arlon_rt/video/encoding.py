"""Encoders: x264 for MP4, VP9 for WebM, PNG for single frames. The same frames always give the same bytes.

Colour is BT.709 in limited range, and the tags say so.
"""

from __future__ import annotations

import re
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
"""The file in which Linux lists the instructions of the processor."""
BT709 = 1
"""The number of BT.709 in all three tables of ITU-T H.273: primaries, transfer and matrix."""
LIMITED, FULL = 1, 2
"""FFmpeg's AVColorRange: luma in 16..235, or 0..255."""
COLOUR_TAGS = {"color_primaries": BT709, "color_trc": BT709, "colorspace": BT709, "color_range": LIMITED}
SECONDS_A_KEYFRAME = 2
EFFORTS = ("fast", "usual", "small")
"""How long an encoder works: the longer, the smaller the file."""
PRESETS = {"fast": "veryfast", "usual": "medium", "small": "slow"}
"""Effort -> preset of x264."""
CPU_USED = {"fast": "8", "usual": "4", "small": "1"}
"""Effort -> ``cpu-used`` of VP9; higher is faster."""


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


def new_encoder(kind: str, height: int, width: int, fps: Fraction, quality: Quality) -> av.VideoCodecContext:
    """An encoder for one segment of a file with this suffix; an odd height or width, in pixels, is made even."""
    import av

    if kind == ".mp4":
        codec, crf, options = "libx264", 18, {"preset": PRESETS[quality.effort], **_instructions()}
    else:
        codec, crf = "libvpx-vp9", 24
        options = {"b": "0", "deadline": "good", "cpu-used": CPU_USED[quality.effort], "row-mt": "0"}
    context = av.CodecContext.create(codec, "w")
    assert isinstance(context, av.VideoCodecContext)
    context.height, context.width, context.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
    context.framerate, context.time_base = fps, 1 / fps
    context.options = {**options, "crf": str(crf if quality.crf is None else quality.crf)}
    context.flags |= av.codec.context.Flags.global_header
    context.thread_count = 1   # x264's output depends on the number of threads
    context.gop_size = round(SECONDS_A_KEYFRAME * fps)
    for name, value in COLOUR_TAGS.items():
        setattr(context, name, value)
    return context


def png(frame: NDArray[np.uint8]) -> bytes:
    """The content of a PNG file with one RGB frame (height, width, 3); lossless."""
    import av

    context = av.CodecContext.create("png", "w")
    assert isinstance(context, av.VideoCodecContext)
    context.height, context.width, context.pix_fmt = frame.shape[0], frame.shape[1], "rgb24"
    context.time_base = Fraction(1, 1)
    shown = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    return b"".join(bytes(packet) for packet in [*context.encode(shown), *context.encode(None)])


def _instructions() -> dict[str, str]:
    """x264's options for processor instructions: AVX2 alone where `CPU` lists it, else those x264 finds itself.

    The AVX-512 code of x264 (core 165 in av 18.1) is no faster. In most runs of a process that also runs ONNX Runtime
    it gave other bytes for the same frames; with AVX2 1,100 runs gave the same.
    """
    has_avx2 = CPU.is_file() and re.search(r"^flags\b.*\bavx2\b", CPU.read_text(encoding="utf-8"), re.MULTILINE)
    return {"x264-params": "asm=AVX2"} if has_avx2 else {}


def even(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frames with the last row and column repeated where the size is odd: 4:2:0 needs even sizes."""
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(frames)


def yuv(frame: NDArray[np.uint8], number: int) -> av.VideoFrame:
    """One RGB frame (height, width, 3) as BT.709 4:2:0 in limited range; it is frame ``number`` of the video."""
    import av

    rgb = av.VideoFrame.from_ndarray(frame, format="rgb24")
    yuv = rgb.reformat(format="yuv420p", dst_colorspace=BT709, src_color_range=FULL, dst_color_range=LIMITED)
    yuv.pts = number
    return yuv
