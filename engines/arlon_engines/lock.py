"""One build at a time in a folder of engines: the second waits until the first is done, or is gone."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path

from arlon_rt.errors import OutputError

LOCK = ".lock"


@contextlib.contextmanager
def building_in(folder: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of ``folder``, which is made if need be; the system lets go of it when a process ends.

    Raises:
        OutputError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("ab")
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written ({error.strerror}); engines of a bundle that cannot be written go to the "
            f"user's cache: set XDG_CACHE_HOME to a folder that can"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
