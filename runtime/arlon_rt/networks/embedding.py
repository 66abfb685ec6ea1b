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

    @property
    def length(self) -> int:
        return int(self.hidden.shape[1])


def same_texts(some: Sequence[Text], others: Sequence[Text]) -> bool:
    """Whether two lists of prompts have equal embeddings, encoded once or twice."""
    if len(some) != len(others):
        return False
    return all(a is b or np.array_equal(a.hidden, b.hidden) for a, b in zip(some, others, strict=True))


def stacked(texts: Sequence[Text]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Rows of one batch, padded with zeros on the right: hidden (row, longest, d_model) and its mask (row, longest)."""
    longest = max(t.length for t in texts)
    hidden = [np.pad(t.hidden, ((0, 0), (0, longest - t.length), (0, 0))) for t in texts]
    mask = np.arange(longest) < np.array([[t.length] for t in texts])
    return np.concatenate(hidden), mask


def guidance_weights(scale: float, rows: int) -> NDArray[np.float32]:
    """Weights (row,) of the guided sum: (s, 1-s) for prompt and negative, or (1,) without guidance."""
    return np.array([1.0] if rows == 1 else [scale, 1 - scale], np.float32)
