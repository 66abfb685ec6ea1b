"""The diffusion transformer's steps: which are run, and where the latents are between them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from arlon_rt import GenerateOptions, Pipeline
from arlon_rt.backends import open_session
from arlon_rt.bundle import Bundle
from arlon_rt.graphs import graph_specs
from arlon_rt.networks import Networks
from watched import Watched


class Noting(Watched):
    """A session that remembers whether it was fed latents from the host, and which outputs were held."""

    def __init__(self, session: Any) -> None:
        super().__init__(session, [])
        self.notes: list[tuple[bool, list[str]]] = []

    def run(self, feed: Mapping[str, Any], hold: Collection[str] = ()) -> dict[str, Any]:
        self.notes.append((isinstance(feed["latents"], np.ndarray), list(hold)))
        return super().run(feed, hold)


def test_every_step_is_run_and_latents_stay_on_the_device_between_them(folder: Path) -> None:
    bundle = Bundle.open(folder)
    sessions: dict[str, Any] = {name: open_session(bundle, name, threads=1) for name in graph_specs(bundle.model)}
    sessions["dit"] = dit = Noting(sessions["dit"])
    with Pipeline(bundle, Networks.of(bundle, sessions, "fp32")) as pipeline:
        pipeline.generate("a red circle moves right", GenerateOptions(num_frames=119, num_inference_steps=8))
    segment = [(True, ["latents_out"]), *[(False, ["latents_out"])] * 7]
    assert dit.notes == segment * 2
