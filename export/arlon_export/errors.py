"""What the exporter raises on purpose, under the tree of `arlon_rt.errors`."""

from __future__ import annotations

from arlon_rt.errors import ArlonError


class ExportError(ArlonError, RuntimeError):
    """An exported graph is not what graphs.py promises, or does not compute what its torch module computes."""
