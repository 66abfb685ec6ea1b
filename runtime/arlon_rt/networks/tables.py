"""Position tables of the diffusion transformer, computed on the host: sin-cos in space, rotary in time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

POSITION_PERIOD = 10_000.0


def round_to_bfloat16(values: npt.ArrayLike) -> Float32:
    """The nearest bfloat16 of each finite value (ties to even), returned as float32."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    lowest_kept = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + lowest_kept) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def position_table(
    grid_height: int, grid_width: int, hidden_size: int, *,
    height: float, width: float, input_sq_size: int, published_bf16: bool = False,
) -> Float32:
    """The 2-D sin-cos table added to the patches of every frame: (grid_height * grid_width, hidden_size), row-major.

    Open-Sora v1.2: with ``scale = sqrt(height * width) / input_sq_size`` and ``base = round(sqrt(patches))``,
    column c stands at ``c / scale * base / grid_width`` and row r at ``r / scale * base / grid_height``. The first
    half of the channels is [sin, cos] of the column, the second half of the row, over ``hidden_size / 4`` frequencies.

    Args:
        grid_height, grid_width: patches along each side.
        hidden_size: channels; a multiple of 4.
        height, width: the requested video size in pixels, before any rounding to whole patches.
        input_sq_size: side in pixels at which ``scale`` is 1.
        published_bf16: frequencies, pixel sizes and table rounded as in the published bfloat16 run (docs/spec.md 5.4).
    """
    half = hidden_size // 2
    frequencies = (POSITION_PERIOD ** -(np.arange(0, half, 2) / half)).astype(np.float32)
    if published_bf16:
        frequencies = round_to_bfloat16(frequencies)
        height, width = (float(size) for size in round_to_bfloat16([height, width]))
    scale = math.sqrt(height * width) / input_sq_size
    base = round(math.sqrt(grid_height * grid_width))
    columns = _sin_cos(np.arange(grid_width) / scale * base / grid_width, frequencies)
    rows = _sin_cos(np.arange(grid_height) / scale * base / grid_height, frequencies)
    shape = (grid_height, grid_width, half)
    table = np.concatenate([np.broadcast_to(columns[None], shape), np.broadcast_to(rows[:, None], shape)], axis=-1)
    table = table.reshape(grid_height * grid_width, hidden_size)
    return round_to_bfloat16(table) if published_bf16 else table


def rotary_tables(
    frames: int, head_dim: int, theta: float, *,
    frequencies: Sequence[float] | None = None, published_bf16: bool = False,
) -> tuple[Float32, Float32]:
    """Cosine and sine of ``frame * theta^(-2j / head_dim)``, each (frames, head_dim / 2).

    Element j turns the interleaved pair of channels (2j, 2j + 1). Frames count from 0 in every segment (docs/spec.md
    5.3).

    Args:
        frames: latent frames of the segment.
        head_dim: width of one attention head; even.
        theta: base of the frequencies, 10,000 in Open-Sora v1.2.
        frequencies: radians a frame, head_dim / 2 of them, in place of those theta gives (`DiTConfig.rope_freqs`).
        published_bf16: frequencies, their products with the frame number, cosines and sines rounded as in
            the published bfloat16 run (docs/spec.md 5.4).
    """
    if frequencies is None:
        turns = (theta ** -(np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
    else:
        turns = np.asarray(frequencies, np.float32)
        if turns.size != (half := head_dim // 2):
            raise ValueError(f"frequencies has {turns.size} entries; head_dim {head_dim} needs {half}")
    positions = np.arange(frames, dtype=np.float32)[:, None]
    if not published_bf16:
        angles = positions * turns
        return np.cos(angles), np.sin(angles)
    angles = round_to_bfloat16(round_to_bfloat16(positions) * round_to_bfloat16(turns))
    return round_to_bfloat16(np.cos(angles)), round_to_bfloat16(np.sin(angles))


def _sin_cos(coordinates: npt.NDArray[np.float64], frequencies: Float32) -> Float32:
    angles = coordinates.astype(np.float32)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
