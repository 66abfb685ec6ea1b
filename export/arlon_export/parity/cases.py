"""Recorded cases, the results of comparing them, and the families they belong to."""

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
"""Case -> field -> array."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One comparison of an output with its recorded value."""

    case: str
    """The family's name and the case's, e.g. ``stdit3_a 1``."""
    what: str
    error: float
    """Relative error ‖actual−recorded‖/‖recorded‖."""
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


@dataclass(frozen=True, kw_only=True)
class Family:
    """A set of recorded cases, and the function that compares them."""

    name: str
    compare: Callable[[Path, str, float], Iterator[Result]]
    """(path of the bundle to write, precision, tolerance) -> results."""


def read_cases(path: Path) -> Cases:
    """The cases of an .npz file in natural order. Arrays belong to the case before the dot of their names."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            cases: Cases = {}
            for name in arrays.files:
                case, _, field = name.partition(".")
                cases.setdefault(case, {})[field] = arrays[name]
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    return {case: cases[case] for case in sorted(cases, key=_natural)}


def field(path: Path, case: str, arrays: dict[str, Array], name: str) -> Array:
    """The array ``{case}.{name}`` of the file ``path``; a `BundleError` names a missing one."""
    if name not in arrays:
        raise BundleError(f"{path} has no {case}.{name}; it has {', '.join(f'{case}.{n}' for n in arrays)}")
    return arrays[name]


def _natural(name: str) -> list[tuple[str, int]]:
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]
