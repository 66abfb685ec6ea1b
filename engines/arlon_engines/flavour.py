"""What differs between the two TensorRTs: a protocol, which standard.py and rtx.py implement."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol

from arlon_rt.bundle import MODULES
from arlon_rt.bundle import Flavour as FlavourName
from arlon_rt.errors import MissingExtraError


class Flavour(Protocol):
    """One TensorRT; the rest of the Python API is the same in both."""

    @property
    def trt(self) -> Any:
        """Its Python module."""

    def check_gpu(self, gpu: str) -> None:
        """Raise `BuildError` unless engines for ``gpu`` can be built on this machine."""

    def set_gpu(self, config: Any, gpu: str) -> None:
        """Make the builder configuration ``config`` compile for ``gpu``."""

    def load_timings(self, config: Any, gpu: str) -> None:
        """Load the kernel timings of earlier builds into ``config``, if this TensorRT measures any."""

    def save_timings(self, config: Any, gpu: str) -> None:
        """Save the kernel timings of this build."""


def open_flavour(name: FlavourName) -> Flavour:
    """Import the TensorRT called ``name``.

    Raises:
        MissingExtraError: its module or one of its libraries is not installed.
    """
    try:
        trt = import_module(MODULES[name])
    except ImportError as error:
        raise MissingExtraError(
            f"building for {name} needs {MODULES[name]}, which cannot be imported ({error}): "
            f"pip install 'arlon-rt[{name}]'"
        ) from error
    if name == "tensorrt":
        from arlon_engines.standard import Standard

        return Standard(trt)
    from arlon_engines.rtx import RTX

    return RTX(trt)
