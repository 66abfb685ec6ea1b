"""Where a user's own files lie, as the XDG base directory specification says."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def cache_folder() -> Path:
    """What can be deleted and made again, such as engines of bundles that cannot be written."""
    return _base("XDG_CACHE_HOME", ".cache")


def state_folder() -> Path:
    """What is kept between runs, such as the record of engines built here."""
    return _base("XDG_STATE_HOME", ".local/state")


def _base(variable: str, default: str) -> Path:
    named = Path(os.environ.get(variable, ""))
    return (named if named.is_absolute() else Path.home() / default) / "arlon-rt"


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``path`` through a temporary file beside it, so that a reader sees the old content or the new."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # not every file system lets a folder be synced
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def digest_chunks(path: Path, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
    """The content of ``path`` piece by piece."""
    with path.open("rb") as file:
        while chunk := file.read(chunk_bytes):
            yield chunk
