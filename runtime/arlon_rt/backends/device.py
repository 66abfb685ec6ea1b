"""The GPU of this machine, as far as choosing an engine needs it."""

from __future__ import annotations

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
