"""Recorded outputs of Open-Sora's own code against the graphs that ship: checkpoint -> bundle -> ONNX Runtime.

A folder holds any number of families, known by their file names: ``stdit3_*.json``, ``vae_io.npz``, ``rflow_io.npz``.
Each becomes a bundle of its own through `arlon_export.export`, with only the graphs of its network.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arlon_export.precision import FLOAT_TOLERANCE, RUNS_ON_CPU
from arlon_rt.errors import BundleError, BundleNotFoundError, OptionsError, OutputError

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


def run_parity(folder: Path, *, precision: str = "fp32", keep: Path | None = None) -> Iterator[Result]:
    """Compare every case below ``folder``, family by family.

    Args:
        precision: the precision set of the graphs; the recorded values are fp32.
        keep: a new folder for the bundles, one a family; without it they are temporary.

    Raises:
        BundleNotFoundError: the folder holds no known file.
        BundleError: a family is incomplete or damaged.
    """
    if precision not in RUNS_ON_CPU:
        raise OptionsError(f"precision is {precision!r}; it must be one of {', '.join(RUNS_ON_CPU)}")
    if keep is not None and keep.exists():
        raise OutputError(f"{keep} exists; remove it or choose another name")
    found = families(folder)
    with tempfile.TemporaryDirectory() as scratch:
        for family in found:
            yield from family.compare((keep or Path(scratch)) / family.name, precision, FLOAT_TOLERANCE[precision])


def families(folder: Path) -> list[Family]:
    """What there is to compare below ``folder``; see `run_parity` for what it raises."""
    from arlon_export.parity_dit import dit_family
    from arlon_export.parity_flow import flow_family
    from arlon_export.parity_vae import vae_family

    if not folder.is_dir():
        raise BundleNotFoundError(f"{folder} is not a folder")
    found = [dit_family(path) for path in sorted(folder.glob("stdit3_*.json"))]
    if (folder / "vae_io.npz").is_file():
        found.append(vae_family(folder))
    if (folder / "rflow_io.npz").is_file():
        found.append(flow_family(folder / "rflow_io.npz"))
    if not found:
        raise BundleNotFoundError(f"{folder} has no recorded case: no stdit3_*.json, vae_io.npz or rflow_io.npz")
    return found


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
