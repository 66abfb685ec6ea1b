"""All random numbers of a generation: Philox streams on the host, so that a seed gives the same on every backend."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def stream(seed: int, purpose: str, index: int) -> np.random.Generator:
    """The random stream for one purpose and index (a segment, a step, a token), independent of all others."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    key = np.frombuffer(digest[:16], dtype="<u8")
    return np.random.Generator(np.random.Philox(key=key))


def normal(seed: int, purpose: str, index: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal float32 values of ``shape``."""
    return stream(seed, purpose, index).standard_normal(shape, dtype=np.float32)


def uniform(seed: int, purpose: str, index: int) -> float:
    """One number in [0, 1) that float32 holds exactly, so that a graph sees the same number."""
    return float(stream(seed, purpose, index).random(dtype=np.float32))
