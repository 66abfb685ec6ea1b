"""TODO."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arlon_rt.errors import BundleError

Array = NDArray[Any]
Cases = dict[str, dict[str, Array]]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One comparison."""

    case: str
    """Family and number, e.g. ``stdit3_a 1``."""
    what: str
    error: float
    """‖a−b‖/‖b‖."""
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


@dataclass(frozen=True, kw_only=True)
class Family:
    """One set of recorded cases and how they are compared."""

    name: str
    compare: Callable[[Path, str, float], Iterator[Result]]
    """(bundle to write, precision, tolerance) -> results."""


def read_cases(path: Path) -> Cases:
    """The arrays of an .npz file, grouped by what stands before the first dot of their names, in natural order."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            cases: Cases = {}
            for name in arrays.files:
                case, _, field = name.partition(".")
                cases.setdefault(case, {})[field] = arrays[name]
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    return {case: cases[case] for case in sorted(cases, key=_natural)}


def field(cases_of: Path, case: str, arrays: dict[str, Array], name: str) -> Array:
    """The array ``{case}.{name}``, or an error that names it."""
    if name not in arrays:
        raise BundleError(f"{cases_of} has no {case}.{name}; it has {', '.join(f'{case}.{n}' for n in arrays)}")
    return arrays[name]


def _natural(name: str) -> list[tuple[str, int]]:
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]
