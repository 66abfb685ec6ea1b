"""What takes long to build is built once a test session, though several workers (pytest-xdist) ask for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

Build = Callable[[Path], object]


def built_once(factory: pytest.TempPathFactory, name: str, build: Build) -> Path:
    """The folder ``name`` that ``build`` filled; whoever comes first builds, the others wait. Nobody writes into it."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # each worker has its own folder in that of the session
    folder, partial = base / name, base / f"{name}.partial"
    with FileLock(base / f"{name}.lock"):
        if not folder.exists():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            build(partial)
            partial.rename(folder)
    return folder
