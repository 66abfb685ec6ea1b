"""One build at a time in a folder of engines: the second waits until the first is done, or is gone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from arlon_rt.errors import OutputError
from arlon_rt.files import locked

LOCK = ".lock"


@contextlib.contextmanager
def building_in(folder: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of ``folder``, which is created if need be; ``on_wait`` is called where another build holds it.

    Raises:
        OutputError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK).touch()
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written ({error.strerror}); engines of a bundle that cannot be written go to the "
            f"user's cache: set XDG_CACHE_HOME to a folder that can"
        ) from error
    with locked(folder / LOCK, on_wait):
        yield
