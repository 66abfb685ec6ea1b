"""A video file read back, as `arlon_rt.video.writer` wrote it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from arlon_rt.errors import OutputError
from arlon_rt.video.encoding import BT709, FULL, LIMITED

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
