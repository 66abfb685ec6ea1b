"""A prompt's embedding, and how several become the rows of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Text:
    """T5's last hidden state of one prompt at its true length."""

    hidden: NDArray[Any]
    """(1, length, d_model), no padding."""

    def __eq__(self, other: object) -> bool:
        """Whether the embeddings are equal, encoded once or twice."""
        return isinstance(other, Text) and np.array_equal(self.hidden, other.hidden)


def stacked(texts: Sequence[Text]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Rows of one batch, padded with zeros on the right: hidden (row, longest, d_model) and its mask (row, longest)."""
    lengths = [t.hidden.shape[1] for t in texts]
    longest = max(lengths)
    hidden = [np.pad(t.hidden, ((0, 0), (0, longest - n), (0, 0))) for t, n in zip(texts, lengths, strict=True)]
    return np.concatenate(hidden), np.arange(longest) < np.array(lengths)[:, None]


def guidance_weights(scale: float, rows: int) -> NDArray[np.float32]:
    """Weights (row,) of the guided sum: (s, 1-s) for prompt and negative, or (1,) without guidance."""
    return np.array([1.0] if rows == 1 else [scale, 1 - scale], np.float32)
