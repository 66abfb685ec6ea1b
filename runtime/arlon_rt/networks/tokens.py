"""Where a video's tokens come from: the token model (ar.py), or a grid that is there already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from arlon_rt.errors import OptionsError
from arlon_rt.networks.embedding import Text

OnToken = Callable[[int, int], None]
"""Called with (done, total) after each token."""


@dataclass(frozen=True, kw_only=True)
class TokenState:
    """A token grid between two segments: what it takes to fill the caches again by the very same calls."""

    codes: tuple[int, ...]
    """The newest ones, row-major, the window's all among them."""
    dropped: int
    """How many came before them."""
    window: int
    """Index in the whole video of the window's first code."""
    context: int
    """Codes that were fed together when the window was opened."""
    fed: int
    """Entries of the window's sequence, BOS first, that are in the caches; 0: a new window is about to be opened."""


class TokenSource(Protocol):
    """Where a video's tokens come from."""

    @property
    def guided(self) -> bool:
        """Whether `extend` takes a null prompt after the prompt."""

    def extend(
        self, texts: Sequence[Text], code_frames: range, on_token: OnToken = ...
    ) -> NDArray[np.int64]:
        """The tokens (1, code_frame, height, width) of these code-frames."""

    def state(self) -> TokenState | None:
        """Where `extend` has got to; ``None``: nothing depends on it."""

    def restore(self, state: TokenState, texts: Sequence[Text]) -> None:
        """Go on from ``state`` of a source like this one, whose last `extend` had these ``texts``."""


class GivenTokens:
    """A video's tokens that are there already: another video's, or ones made by hand."""

    guided = False

    def __init__(self, tokens: NDArray[np.integer], code_frames: int, height: int, width: int, num_codes: int) -> None:
        """Check ``tokens`` (code_frame, height, width) against the video they are for.

        Raises:
            OptionsError: they are no whole numbers, do not cover it, or are not all codes.
        """
        given = np.asarray(tokens)
        if not np.issubdtype(given.dtype, np.integer):
            raise OptionsError(f"tokens are {given.dtype}; whole numbers are expected")
        if given.ndim != 3 or given.shape[1:] != (height, width) or len(given) < code_frames:
            raise OptionsError(f"tokens has shape {given.shape}; ({code_frames} or more, {height}, {width}) is needed")
        if given.min() < 0 or given.max() >= num_codes:
            raise OptionsError(f"tokens go from {given.min()} to {given.max()}; codes are 0 .. {num_codes - 1}")
        self.tokens = given.astype(np.int64)
        """(code_frame, height, width)."""

    def extend(
        self, texts: Sequence[Text], code_frames: range, on_token: OnToken = lambda done, total: None
    ) -> NDArray[np.int64]:
        """The tokens (1, code_frame, height, width) of these code-frames; the prompt has no say in them."""
        return np.ascontiguousarray(self.tokens[None, code_frames.start : code_frames.stop])

    def state(self) -> None:
        """There is none."""
        return None

    def restore(self, state: TokenState, texts: Sequence[Text]) -> None:
        """Nothing is to be done."""
