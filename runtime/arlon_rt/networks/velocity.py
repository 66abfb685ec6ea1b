"""Steps of the flow taken with the velocity of an earlier one, while it is expected to have changed little."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np

from arlon_rt.backends import Array, Handle, Session

OF_A_STEP = frozenset({"latents", "timestep", "step_size", "frame_mask", "noise", "noise_mask"})
"""Inputs of the ``dit`` graph that are fed anew at each step; the others are the conditions."""


class ReusedVelocity:
    """The ``dit`` graph for the steps of one segment, which are handed to `run` in order; not all of them run it.

    The velocity of a run is read from its latents, v = (latents_out - latents) / step_size. The last two runs tell how
    much it changes: |v - v_before| / |v| for each unit of flow time between them. A step is taken with the last
    velocity where the change from that run to the end of the step is expected to stay below ``threshold``.
    Together with the run's own step that is one longer Euler step, whose end is chosen by what is seen in the video.

    A velocity says nothing once other frames take part or other conditions hold, and cannot be read where frames join:
    from there on two steps are run first, as at the start.
    """

    def __init__(self, dit: Session, threshold: float) -> None:
        self._dit, self._threshold = dit, threshold
        self._feed: Mapping[str, Array | Handle] = {}
        self._velocity: Array | None = None
        self._length = 0.0
        """How far the velocity has been taken, in flow time."""
        self._change = math.inf
        """Of the velocity in a unit of flow time, relative."""

    def run(self, feed: Mapping[str, Array | Handle], hold: Collection[str] = ()) -> dict[str, Array | Handle]:
        """One step. Its latents come back as an array, whatever ``hold`` says: the next step may need them here."""
        latents, size = _array(feed["latents"]), _array(feed["step_size"])
        joining = bool(_array(feed["noise_mask"]).any())
        if joining or not _alike(feed, self._feed):
            self._velocity, self._change = None, math.inf
        self._feed, length = feed, self._length + float(size[0])
        if self._velocity is not None and self._change * length < self._threshold:
            self._length = length
            return {"latents_out": latents + size * self._velocity}
        made = _array(self._dit.run(feed)["latents_out"])
        if not joining:
            self._learn(latents, made, size)
        return {"latents_out": made}

    def _learn(self, latents: Array, made: Array, size: Array) -> None:
        with np.errstate(all="ignore"):   # what is no number is below no threshold: every step after it is run
            velocity = (made - latents) / size
            if self._velocity is not None:
                change = np.linalg.norm(velocity - self._velocity) / np.linalg.norm(velocity)
                self._change = float(change) / self._length
        self._velocity, self._length = velocity, float(size[0])


def _array(value: Array | Handle) -> Array:
    return value if isinstance(value, np.ndarray) else value.numpy()


def _alike(feed: Mapping[str, Array | Handle], before: Mapping[str, Array | Handle]) -> bool:
    """Whether the same frames take part under the same conditions."""
    return (
        feed.keys() == before.keys()
        and all(feed[name] is before[name] for name in feed.keys() - OF_A_STEP)
        and np.array_equal(_array(feed["frame_mask"]), _array(before["frame_mask"]))
    )
