"""A user's folders, files that are replaced in one step, locks, and hashes of files."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

NAME = "arlon-rt"
"""Of this project's folder among those of a user."""
READ_BYTES = 1 << 20


def cache_folder() -> Path:
    """The folder of what can be deleted and built again, such as engines of bundles that cannot be written."""
    from platformdirs import user_cache_path

    return user_cache_path(NAME, appauthor=False)


def state_folder() -> Path:
    """The folder of what is kept between runs, such as the record of the engines that this user built."""
    from platformdirs import user_state_path

    return user_state_path(NAME, appauthor=False)


@contextlib.contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` in one step: a reader sees the old content or the new.

    It is written under the name ``temporary``, by default a random one beside ``path``. After an error ``path`` is as
    it was, and the new file is gone.
    """
    def create(name: str, flags: int) -> int:
        return os.open(name, flags, 0o644)   # others may read it, unless the umask says no; its owner alone may write

    temporary = temporary or path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        with open(temporary, "wb", opener=create) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):   # the error under way is the one to report
            temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # not every file system lets a folder be synced
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` as `replacing` does."""
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def locked(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock that the file ``path`` stands for; the file stays, and the system frees it when a process ends.

    Where another process holds the lock, ``on_wait`` is called first; what it raises ends the wait.
    """
    from filelock import FileLock, Timeout

    # Without flock no other kind of lock is tried: a process that is killed would leave it locked.
    lock = FileLock(path, fallback_to_soft=False)
    with contextlib.suppress(Timeout):
        lock.acquire(blocking=False)
    if not lock.is_locked:
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def file_sha256(path: Path, *, start: int = 0, on_progress: Callable[[int], None] | None = None) -> str:
    """The SHA-256 of ``path`` from byte ``start`` on, in hexadecimal digits.

    ``on_progress`` is called with the number of bytes hashed so far, after each piece.
    """
    digest, hashed = hashlib.sha256(), 0
    with path.open("rb") as file:
        file.seek(start)
        while piece := file.read(READ_BYTES):
            digest.update(piece)
            hashed += len(piece)
            if on_progress:
                on_progress(hashed)
    return digest.hexdigest()
