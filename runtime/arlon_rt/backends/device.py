"""The GPU of this machine, as far as choosing an engine needs it."""

from __future__ import annotations

from arlon_rt.bundle import FLAVOURS
from arlon_rt.errors import BackendError, MissingExtraError


def compute_capability(device: int = 0) -> str:
    """``"sm89"`` of the GPU with this number.

    Raises:
        MissingExtraError: cuda-core is not installed.
        BackendError: there is no such GPU, or its driver does not answer.
    """
    try:
        from cuda.core import Device
    except ImportError as error:
        raise MissingExtraError('asking for the GPU needs cuda-core: pip install "arlon-rt[cuda]"') from error
    try:
        major, minor = Device(device).compute_capability
    except Exception as error:  # cuda-core has one error type a library, none of them shared
        raise BackendError(f"GPU {device} does not tell its compute capability: {error}") from error
    return f"sm{major}{minor}"


BACKENDS = ("onnxruntime", *FLAVOURS)


def usual_device(backend: str) -> str:
    """Where a backend runs that is told nothing else."""
    return "cpu" if backend == "onnxruntime" else "cuda"


def device_parts(device: str) -> tuple[str, int]:
    """``("cuda", 1)`` of ``"cuda:1"``."""
    kind, colon, number = device.partition(":")
    if device == "cpu" or (kind == "cuda" and (not colon or (number.isascii() and number.isdigit()))):
        return kind, int(number or 0)
    raise BackendError(f"device is {device!r}; it must be 'cpu', 'cuda' or 'cuda:N'")


def device_number(device: str) -> int:
    """The GPU that ``"cuda"`` or ``"cuda:1"`` names."""
    kind, colon, number = device.partition(":")
    if kind != "cuda" or (colon and not (number.isascii() and number.isdigit())):
        raise BackendError(f"device is {device!r}; TensorRT needs 'cuda' or 'cuda:N'")
    return int(number or 0)
