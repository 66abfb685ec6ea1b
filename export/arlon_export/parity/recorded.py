"""Compares exported graphs with recorded outputs of Open-Sora's own code.

A folder holds any number of families; their files are ``stdit3_*.json``, ``vae_io.npz`` and ``rflow_io.npz``. Each
family is exported to a bundle of its own, with the graphs of its network, and runs in ONNX Runtime.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from arlon_export.onnx_graphs.precision import FLOAT_TOLERANCE, RUNS_ON_CPU
from arlon_export.parity.cases import Family, Result
from arlon_rt.errors import BundleNotFoundError, OptionsError, OutputError


def run_parity(folder: Path, *, precision: str = "fp32", keep: Path | None = None) -> Iterator[Result]:
    """Compare every case in ``folder``, family by family.

    Args:
        precision: the precision set of the graphs; the recorded values are fp32.
        keep: a new folder for the bundles, one for each family; ``None`` keeps none.

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
    """The families in ``folder``; the errors are those of `run_parity`."""
    from arlon_export.parity.dit import dit_family
    from arlon_export.parity.flow import flow_family
    from arlon_export.parity.vae import vae_family

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
