"""Numbers and sizes in bytes as text, and text as a size in bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from arlon_rt.errors import OptionsError

THOUSANDS = ("", "K", "M", "G", "T", "P")
UNITS: Mapping[str, int] = {
    "": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
}
"""Unit -> bytes. ``16G`` and ``16GiB`` are the memory of a GPU of "16 GB"; ``16GB`` is 16 · 10⁹ bytes."""


def scaled(number: float) -> str:
    """A number in thousands, millions and so on: ``1234567`` gives ``1.23 M``."""
    unit = 0
    while number >= 999.5 and unit < len(THOUSANDS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.3g} {THOUSANDS[unit]}"


def parse_bytes(value: int | str) -> int:
    """A memory budget in bytes, from a number of bytes or from text such as ``"16G"``.

    Raises:
        OptionsError: the value is neither, or is not above 0.
    """
    if isinstance(value, str):
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?B)?", value.strip().upper(), re.ASCII)
        if found is None or (found[3] == "IB" and not found[2]):
            raise OptionsError(f"vram_budget is {value!r:.40}; a size is expected, e.g. 16G, 16GiB or 800M")
        unit = found[2] + ("B" if found[3] == "B" and found[2] else "")
        size = int(float(found[1]) * UNITS[unit])
    elif type(value) is int:
        size = value
    else:
        raise OptionsError(f"vram_budget is {value!r:.40}; bytes or a size such as '16G' are expected")
    if not 0 < size < 1 << 60:
        raise OptionsError(f"vram_budget is {value!r:.40}; it must be above 0, e.g. 16G, and less than 2^60 bytes")
    return size


def mebibytes(size: float) -> str:
    """A size in bytes as text: ``"9.08 GiB"``, ``"12.3 MiB"``."""
    if size >= 1 << 30:
        return f"{size / (1 << 30):.2f} GiB"
    return f"{math.ceil(size / (1 << 20) * 10) / 10:.1f} MiB"
