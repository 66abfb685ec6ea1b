"""Names of backends and devices, and the kind of this machine's GPU."""

from __future__ import annotations

from arlon_rt.bundle import FLAVOURS
from arlon_rt.errors import BackendError, MissingExtraError

BACKENDS = ("onnxruntime", *FLAVOURS)


def compute_capability(device: int = 0) -> str:
    """The kind of the GPU with this number, e.g. ``"sm89"``.

    Raises:
        MissingExtraError: cuda-core is not installed.
        BackendError: no GPU has this number, or its driver does not answer.
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


def usual_device(backend: str) -> str:
    """The device of a backend where the caller names none."""
    return "cpu" if backend == "onnxruntime" else "cuda"


def device_parts(device: str) -> tuple[str, int]:
    """Kind and number of a device: ``("cuda", 1)`` of ``"cuda:1"``, 0 where it has no number."""
    kind, colon, number = device.partition(":")
    if device == "cpu" or (kind == "cuda" and (not colon or (number.isascii() and number.isdigit()))):
        return kind, int(number or 0)
    raise BackendError(f"device is {device!r}; it must be 'cpu', 'cuda' or 'cuda:N'")
