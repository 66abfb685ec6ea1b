"""Where a user's own files lie, as the XDG base directory specification says."""

from __future__ import annotations

import os
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
