"""What the tests of a GPU run on: why there may be nothing, and a backend as they see it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from arlon_rt import Pipeline
from arlon_rt.backends import Session, compute_capability, open_sessions
from arlon_rt.backends.ort import available_providers
from arlon_rt.bundle import MODULES, Bundle
from arlon_rt.errors import ArlonError


def missing() -> str | None:
    """Why there is nothing to run here."""
    try:
        compute_capability(0)
    except ArlonError as error:
        return str(error)
    return None


WHY = missing()
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(WHY is not None, reason=f"no GPU to run on: {WHY}")]
"""The ``pytestmark`` of every file in tests/gpu."""


def backend_missing(name: str) -> str | None:
    """Why a backend does not run on this machine's GPU."""
    if name == "onnxruntime":
        providers = available_providers()
        return None if "CUDAExecutionProvider" in providers else f"this ONNX Runtime has {', '.join(providers)}"
    return None if importlib.util.find_spec(MODULES[name]) else f"{MODULES[name]} is not installed"


@dataclass(frozen=True)
class UnderTest:
    """One backend with a bundle, built for it where that needs to be."""

    name: str
    device: str
    bundle: Bundle
    used_bytes: Callable[[], int]
    """Memory of the device that is in use now."""
    slack_bytes: int
    """What may stay in use that no leak is."""
    precision: str = "fp16"

    def sessions(self, *graphs: str) -> dict[str, Session]:
        return open_sessions(
            self.bundle, graphs, backend=self.name, device=self.device, precision=self.precision
        )

    def pipeline(self) -> Pipeline:
        return Pipeline.open(self.bundle, backend=self.name, device=self.device, precision=self.precision)


def gpu_used_bytes() -> int:
    """Of GPU 0, by whomever."""
    from cuda.bindings import driver
    from cuda.core import Device

    Device(0).set_current()
    error, free, total = driver.cuMemGetInfo()
    assert error == driver.CUresult.CUDA_SUCCESS, error
    return int(total) - int(free)


def graphs_of(bundle: Bundle) -> Sequence[str]:
    """Every graph, by name."""
    return tuple(bundle.manifest.graphs)
