"""Sizes are read as they are written, and shown rounded up."""

from __future__ import annotations

import math

import pytest

from arlon_rt import OptionsError
from arlon_rt.units import mebibytes, parse_bytes

GIB = 1 << 30


@pytest.mark.parametrize(("text", "size"), [
    ("16G", 16 * GIB), ("16GiB", 16 * GIB), ("16gb", 16 * 10**9), ("800M", 800 << 20), ("1.5 G", 3 * GIB // 2),
    ("123", 123), (456, 456), ("1T", 1 << 40),
])
def test_sizes_read_as_they_are_written(text: int | str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "G", "16X", "-1G", "1e3", "16 G B", "iB", 0, "0", -5, True, 1.5, "9" * 30, "١G"])
def test_what_is_no_size_is_named_with_an_example(text: object) -> None:
    with pytest.raises(OptionsError, match=r"vram_budget is .*(16G|2\^60)"):
        parse_bytes(text)  # type: ignore[arg-type]


def test_figures_are_rounded_up() -> None:
    assert mebibytes(1) == "0.1 MiB"
    assert mebibytes(GIB) == "1.00 GiB"
    assert math.isclose(float(mebibytes(800 << 20).split()[0]), 800)
