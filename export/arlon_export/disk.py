"""Room on the disk: asked for before an export starts, and a full disk as one clear error."""

from __future__ import annotations

import contextlib
import errno
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from arlon_export.network import Network
from arlon_rt.errors import OutputError

GRAPH_BYTES = 8 << 20
"""An .onnx file without its weights; the published transformer's has 2 MB."""


def largest_size(network: Network, graphs: int, precisions: Sequence[str]) -> int:
    """Bytes that exporting ``network`` may take at most.

    A weight that its file holds in 16 bits is stored once; of one in fp32 only its values tell, so every set counts.
    """
    whole = sum(4 if precision == "fp32" else 2 for precision in precisions)
    weights = sum(
        math.prod(stored.shape) * (2 if stored.dtype.itemsize == 2 else whole) for stored in network.tensors.values()
    )
    return weights + graphs * len(precisions) * GRAPH_BYTES


def free_bytes(folder: Path) -> int:
    """Bytes that can still be written to the disk of ``folder``."""
    return shutil.disk_usage(folder).free


def require_room(sizes: Iterable[int], folder: Path, free: int) -> None:
    """Raise `OutputError` unless ``free`` bytes hold files of these sizes."""
    needed = sum(sizes)
    if needed > free:
        raise OutputError(
            f"the export needs up to {needed / 1e9:.2f} GB in {folder}, {free / 1e9:.2f} GB are free; make room, "
            "choose another disk with --output, or export fewer graphs (--only) or precision sets (--precision)"
        )


@contextlib.contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Turns the system's error on a full disk into an `OutputError` that says where and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OutputError(
            f"the disk of {folder} is full ({free_bytes(folder) / 1e9:.2f} GB free); make room and run the same "
            "command again"
        ) from error
