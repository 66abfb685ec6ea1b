"""A video's tokens: the token model's state between two segments, and a whole grid from the caller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from arlon_rt.errors import OptionsError


@dataclass(frozen=True, kw_only=True)
class TokenState:
    """The token model's state between two segments: enough to fill its caches again by the same calls."""

    codes: tuple[int, ...]
    """The newest codes, row-major; they include the whole window."""
    dropped: int
    """How many codes came before them."""
    window: int
    """Index in the video of the window's first code."""
    context: int
    """How many codes were fed together when the window was opened."""
    fed: int
    """How many entries of the window's sequence, BOS first, are in the caches; 0 before a new window."""

    @classmethod
    def of(cls, tokens: NDArray[np.int64]) -> Self:
        """The state after these tokens (1, code_frame, height, width), with empty caches."""
        return cls(codes=tuple(tokens.flatten().tolist()), dropped=0, window=0, context=0, fed=0)


class TokenGrid:
    """All tokens of a video, from the caller: they may be another video's, or written by hand."""

    def __init__(self, tokens: NDArray[np.integer], code_frames: int, height: int, width: int, num_codes: int) -> None:
        """From ``tokens`` (code_frame, height, width), checked against the video.

        Raises:
            OptionsError: they are no whole numbers, do not cover the video, or are not all codes.
        """
        grid = np.asarray(tokens)
        if not np.issubdtype(grid.dtype, np.integer):
            raise OptionsError(f"tokens are {grid.dtype}; whole numbers are expected")
        if grid.ndim != 3 or grid.shape[1:] != (height, width) or len(grid) < code_frames:
            raise OptionsError(f"tokens has shape {grid.shape}; ({code_frames} or more, {height}, {width}) is needed")
        if grid.min() < 0 or grid.max() >= num_codes:
            raise OptionsError(f"tokens go from {grid.min()} to {grid.max()}; codes are 0 .. {num_codes - 1}")
        self.codes = grid.astype(np.int64)
        """(code_frame, height, width)."""

    def window(self, code_frames: range) -> NDArray[np.int64]:
        """The tokens (1, code_frame, height, width) of these code-frames."""
        return np.ascontiguousarray(self.codes[None, code_frames.start : code_frames.stop])
