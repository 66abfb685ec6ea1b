"""Position tables: where each patch stands, and what the published bfloat16 run made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from arlon_rt.networks import position_table, rotary_tables
from arlon_rt.networks.tables import round_to_bfloat16


def table(rows: int = 3, columns: int = 5, size: int = 16, *, published_bf16: bool = False) -> np.ndarray:
    made = position_table(rows, columns, size, height=48, width=80, input_sq_size=64, published_bf16=published_bf16)
    return made.reshape(rows, columns, size)


def test_the_first_half_of_the_channels_tells_the_column_and_the_second_the_row() -> None:
    grid = table()
    assert (grid[:, :, :8] == grid[:1, :, :8]).all()
    assert (grid[:, :, 8:] == grid[:, :1, 8:]).all()
    assert grid.dtype == np.float32


def test_each_half_is_sines_then_cosines_of_the_scaled_coordinate() -> None:
    column = 4 / (math.sqrt(48 * 80) / 64) * (round(math.sqrt(15)) / 5)
    frequencies = np.array([10_000 ** (-2 * j / 8) for j in range(4)])
    expected = np.concatenate([np.sin(column * frequencies), np.cos(column * frequencies)])
    np.testing.assert_allclose(table()[0, 4, :8], expected, atol=1e-6)


def test_the_requested_size_in_pixels_counts_not_the_one_rounded_to_patches() -> None:
    odd = position_table(3, 5, 16, height=47, width=79, input_sq_size=64)
    assert np.abs(odd - table().reshape(15, 16)).max() > 1e-3


def test_rotary_angles_are_frame_times_frequency() -> None:
    cos, sin = rotary_tables(4, 6, 100.0)
    angles = np.arange(4)[:, None] * 100.0 ** (-np.arange(3) / 3)
    np.testing.assert_allclose(cos, np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(sin, np.sin(angles), atol=1e-6)


def test_a_checkpoints_own_rotary_frequencies_replace_those_of_theta() -> None:
    cos, _ = rotary_tables(3, 4, 100.0, frequencies=(0.5, -0.25))
    np.testing.assert_allclose(cos[2], np.cos([1.0, -0.5]), atol=1e-6)


@pytest.mark.parametrize(("value", "nearest"), [
    (854.0, 856.0), (975.76, 976.0), (947.06, 948.0), (1 + 2**-8, 1.0), (1 + 3 * 2**-8, 1 + 2**-6),
    (-0.1, -0.10009765625),
])
def test_bfloat16_rounds_to_nearest_and_ties_to_even(value: float, nearest: float) -> None:
    assert round_to_bfloat16(value) == np.float32(nearest)


@pytest.mark.parametrize(("frames", "largest_error"), [(15, 0.041), (20, 0.055), (30, 0.082), (120, 0.443)])
def test_published_rotary_angles_are_off_by_what_the_bfloat16_run_was(frames: int, largest_error: float) -> None:
    # The largest errors of the published module's angles (docs/spec.md 5.4); a chord is shorter than its angle.
    exact = np.arctan2(*reversed(rotary_tables(frames, 72, 10_000.0)))
    published = np.arctan2(*reversed(rotary_tables(frames, 72, 10_000.0, published_bf16=True)))
    turned = np.abs((published - exact + np.pi) % (2 * np.pi) - np.pi)
    assert turned.max() == pytest.approx(largest_error, abs=0.006)


def test_the_published_position_table_is_bfloat16_all_through() -> None:
    published = table(published_bf16=True)
    assert (round_to_bfloat16(published) == published).all()
    assert 0 < np.abs(published - table()).max() < 0.05


def test_too_few_frequencies_are_refused() -> None:
    with pytest.raises(ValueError, match="frequencies has 1 entries"):
        rotary_tables(2, 4, 100.0, frequencies=(1.0,))
