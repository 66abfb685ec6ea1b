"""The versions of what is installed."""

from __future__ import annotations


def installed_version(distribution: str = "arlon-rt") -> str:
    """The version of an installed distribution; ``"0+source"`` in a source folder that is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return "0+source"
