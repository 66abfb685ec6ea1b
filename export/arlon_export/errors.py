"""The exporter's own error, a leaf of the tree in `arlon_rt.errors`."""

from __future__ import annotations

from arlon_rt.errors import ArlonError


class ExportError(ArlonError, RuntimeError):
    """An exported graph differs from its contract in graphs.py, or from the results of its torch module."""
