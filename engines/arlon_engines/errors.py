"""The builder's own error, a leaf of the tree in `arlon_rt.errors`."""

from __future__ import annotations

from arlon_rt.errors import ArlonError


class BuildError(ArlonError, RuntimeError):
    """No correct engine of a graph can be built; the message names the graph."""
