"""A pipeline that records the inputs of its graphs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from arlon_rt import Pipeline
from arlon_rt.backends import open_session
from arlon_rt.bundle import Bundle
from arlon_rt.graphs import graph_specs
from arlon_rt.networks import Networks

Calls = dict[str, list[dict[str, Any]]]
"""Graph -> the inputs of each of its runs."""


class Watched:
    """A session that records the inputs of each run."""

    def __init__(self, session: Any, calls: list[dict[str, Any]]) -> None:
        self._session, self._calls = session, calls
        self.spec, self.float_dtype = session.spec, session.float_dtype

    def run(self, feed: Mapping[str, Any], hold: Collection[str] = ()) -> dict[str, Any]:
        self._calls.append({n: v if isinstance(v, np.ndarray) else v.numpy() for n, v in feed.items()})
        return self._session.run(feed, hold)

    def upload(self, name: str, array: np.ndarray) -> Any:
        return self._session.upload(name, array)

    def close(self) -> None:
        self._session.close()


def watched(folder: Path) -> tuple[Pipeline, Calls]:
    """A pipeline of the bundle in ``folder``, and the inputs of its graphs, recorded while it runs."""
    bundle = Bundle.open(folder)
    calls: Calls = {name: [] for name in graph_specs(bundle.model)}
    sessions = {name: Watched(open_session(bundle, name, threads=1), calls[name]) for name in calls}
    return Pipeline(bundle, Networks.of(bundle, sessions, "fp32")), calls
