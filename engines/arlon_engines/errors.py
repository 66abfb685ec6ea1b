"""What the builder raises on purpose, under the tree of `arlon_rt.errors`."""

from __future__ import annotations

from arlon_rt.errors import ArlonError


class BuildError(ArlonError, RuntimeError):
    """A graph cannot become an engine that computes what it should; the message names the graph."""
