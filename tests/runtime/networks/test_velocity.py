"""Steps taken with the velocity of an earlier one: which are run, which are not, and where the latents end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arlon_rt import GenerateOptions, Pipeline
from arlon_rt.backends import open_session
from arlon_rt.bundle import Bundle
from arlon_rt.errors import BackendError
from arlon_rt.graphs import graph_specs
from arlon_rt.networks import Networks, denoise, schedule
from arlon_rt.networks.flow import Step
from arlon_rt.networks.velocity import ReusedVelocity
from watched import Watched, watched

PROMPT = "a red circle moves right"
OPTIONS = GenerateOptions(num_frames=119, seed=3, num_inference_steps=8)   # two segments
TIMES = [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100]
ANY = float("inf")
CONDITIONS = {"fps": np.array([24], np.float32)}


class Drifting:
    """The ``dit`` graph of a velocity that is ``1 + t / 1000`` in every value."""

    def __init__(self, velocity: Callable[[float], float] = lambda t: 1 + t / 1000) -> None:
        self.velocity = velocity
        self.timesteps: list[int] = []

    def run(self, feed: Mapping[str, Any], hold: Collection[str] = ()) -> dict[str, Any]:
        def frames(name: str) -> np.ndarray:
            return feed[name][None, None, :, None, None]

        t = float(feed["timestep"][0])
        self.timesteps.append(round(t))
        z = np.where(frames("noise_mask"), (1 - t / 1000) * feed["latents"] + t / 1000 * feed["noise"], feed["latents"])
        moved = z + feed["step_size"][0] * np.float32(self.velocity(t))
        return {"latents_out": np.where(frames("frame_mask"), moved, z).astype(np.float32)}


def latents(frames: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(1, 2, frames, 3, 3)).astype(np.float32)


def denoised(dit: Any, steps: list[Step], conditions: Any = CONDITIONS, **more: Any) -> np.ndarray:
    start = latents(len(steps[0].frame_mask))
    return denoise(dit, start, steps, lambda step: np.full_like(start, step), conditions, **more)


def run_at(threshold: float, steps: list[Step], conditions: Any = CONDITIONS) -> list[int]:
    """The timesteps at which the graph is run."""
    toy = Drifting()
    denoised(ReusedVelocity(toy, threshold), steps, conditions)
    return toy.timesteps


def test_steps_taken_with_the_old_velocity_are_one_longer_step() -> None:
    steps = schedule(TIMES, np.array([1, 0, 1]))
    longer = [steps[0], dataclasses.replace(steps[1], step_size=0.9)]
    made, expected = denoised(ReusedVelocity(Drifting(), ANY), steps), denoised(Drifting(), longer)
    assert made == pytest.approx(expected, abs=1e-5)
    assert np.array_equal(made[:, :, 1], latents(3)[:, :, 1]), "frames that are kept stay as they are"
    assert not np.allclose(made, denoised(Drifting(), steps), atol=0.1)


@pytest.mark.parametrize(("threshold", "expected"), [
    (0, TIMES),
    # v = 1.9 at 900 and 2 at 1000: 0.53 for each unit of time, so it may go 0.38 far; from 600 0.32, from 300 0.26
    (0.2, [1000, 900, 600, 300, 100]),
    (0.12, [1000, 900, 700, 500, 400, 300, 200, 100]),
    (ANY, [1000, 900]),
])
def test_a_velocity_is_taken_as_far_as_it_is_expected_to_hold(threshold: float, expected: list[int]) -> None:
    assert run_at(threshold, schedule(TIMES, np.ones(3))) == expected


def test_at_threshold_0_the_latents_are_the_same_to_the_last_bit() -> None:
    steps = schedule(TIMES, np.array([1, 0.5, 0]))
    assert np.array_equal(denoised(ReusedVelocity(Drifting(), 0), steps), denoised(Drifting(), steps))


def test_a_step_at_which_frames_join_and_two_after_it_are_run() -> None:
    assert run_at(ANY, schedule(TIMES, np.array([1, 0.5]))) == [1000, 900, 500, 400, 300]
    steps = schedule(TIMES, np.ones(2))
    steps[5] = dataclasses.replace(steps[5], noise_mask=np.array([False, True]))
    assert run_at(ANY, steps) == [1000, 900, 500, 400, 300], "noised again, though it took part before"


def test_two_steps_are_run_once_other_frames_take_part() -> None:
    steps = schedule(TIMES, np.ones(2))
    fewer = [dataclasses.replace(step, frame_mask=np.array([True, False])) for step in steps[5:]]
    assert run_at(ANY, [*steps[:5], *fewer]) == [1000, 900, 500, 400]


def test_two_steps_are_run_once_other_conditions_hold() -> None:
    others = {"fps": np.array([24], np.float32)}
    steps = schedule(TIMES, np.ones(2))
    assert run_at(ANY, steps, lambda step: CONDITIONS if step < 5 else others) == [1000, 900, 500, 400]


def test_every_step_is_reported() -> None:
    seen: list[tuple[int, int]] = []
    steps = schedule(TIMES, np.ones(2))
    denoised(ReusedVelocity(Drifting(), ANY), steps, on_step=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, 10) for i in range(10)]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_velocity_that_is_no_number_is_never_reused(broken: float) -> None:
    toy = Drifting(lambda t: broken)
    with pytest.raises(BackendError, match="not finite"):
        denoised(ReusedVelocity(toy, 100), schedule(TIMES, np.ones(2)))
    assert toy.timesteps == TIMES


# -- as an option -----------------------------------------------------------------------------------------------------


class Noting(Watched):
    """A session that remembers where latents were when they were fed, and what was held."""

    def __init__(self, session: Any) -> None:
        super().__init__(session, [])
        self.notes: list[tuple[bool, list[str]]] = []

    def run(self, feed: Mapping[str, Any], hold: Collection[str] = ()) -> dict[str, Any]:
        self.notes.append((isinstance(feed["latents"], np.ndarray), list(hold)))
        return super().run(feed, hold)


def test_left_out_every_step_is_run_and_latents_stay_on_the_device(folder: Path) -> None:
    bundle = Bundle.open(folder)
    sessions: dict[str, Any] = {name: open_session(bundle, name, threads=1) for name in graph_specs(bundle.model)}
    sessions["dit"] = dit = Noting(sessions["dit"])
    with Pipeline(bundle, Networks.of(bundle, sessions, "fp32")) as pipeline:
        pipeline.generate(PROMPT, OPTIONS)
    segment = [(True, ["latents_out"]), *[(False, ["latents_out"])] * 7]
    assert dit.notes == segment * 2


def test_fewer_steps_are_run_and_frames_are_the_same_in_every_order(folder: Path, overlap: bool) -> None:
    pipeline, calls = watched(folder)
    with pipeline:
        usual = pipeline.generate(PROMPT, OPTIONS).frames
        assert len(calls["dit"]) == 16
        every_step = pipeline.generate(PROMPT, dataclasses.replace(OPTIONS, reuse_velocity=0), overlap=overlap).frames
        assert len(calls["dit"]) == 32
        options = dataclasses.replace(OPTIONS, reuse_velocity=100)
        fewer = pipeline.generate(PROMPT, options, overlap=overlap).frames
        assert len(calls["dit"]) == 32 + 4, "two runs a segment"
        assert np.array_equal(fewer, pipeline.generate(PROMPT, options).frames)
    assert np.array_equal(every_step, usual)
    assert not np.array_equal(fewer, usual)


def test_two_steps_are_run_where_guidance_ends(folder: Path) -> None:
    pipeline, calls = watched(folder)
    options = dataclasses.replace(OPTIONS, guidance_scale=3, guided_steps=3, reuse_velocity=100)
    with pipeline:
        pipeline.generate(PROMPT, options)
    assert [len(call["guidance_weights"]) for call in calls["dit"]] == [2, 2, 1, 1] * 2
