"""The rectified flow: timesteps, masks, and whole trajectories against Open-Sora's own sampler."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arlon_rt.config import FlowConfig
from arlon_rt.networks import denoise, flow

PUBLISHED = FlowConfig()


class ToyDiT:
    """The ``dit`` graph around the reference's toy velocity: guidance, noising and Euler update as graphs.py says."""

    def __init__(self, matrix: np.ndarray, bonus: float) -> None:
        self.matrix, self.bonus = matrix, bonus

    def velocity(self, z: np.ndarray, t: float, frame_mask: np.ndarray, constant: float) -> np.ndarray:
        mixed = np.einsum("ij,bjthw->bithw", self.matrix, np.tanh(z))
        return mixed + t / 1000 * z * 0.1 + constant + self.bonus * frame_mask[None, None, :, None, None]

    def run(self, feed: Mapping[str, Any], hold: Collection[str] = ()) -> dict[str, Any]:
        def frames(name: str) -> np.ndarray:
            return feed[name][None, None, :, None, None]

        z, t = feed["latents"], feed["timestep"][0]
        z = np.where(frames("noise_mask"), (1 - t / 1000) * z + t / 1000 * feed["noise"], z)
        rows = [self.velocity(z, t, feed["frame_mask"], c) for c in (0.3, -0.1)]
        v = sum(w * row for w, row in zip(feed["guidance_weights"], rows, strict=False))
        return {"latents_out": np.where(frames("frame_mask"), z + feed["step_size"][0] * v, z).astype(np.float32)}

    def close(self) -> None:
        """Nothing to free."""


@pytest.mark.parametrize(
    ("n", "size", "expected"),
    [
        (5, (512, 512, 68), [1000, 947.1, 870.3, 748.8, 527.9]),
        (10, (512, 512, 68), [1000, 975.8, 947.1, 912.5, 870.3, 817.3, 748.8, 657.1, 527.9, 332.0]),
        (4, (512, 512, 1), [1000, 750, 500, 250]),
        (2, (240, 426, 51), [1000, 707.5]),   # r = 2.4187
    ],
)
def test_timesteps_are_those_of_the_specification(n: int, size: tuple[int, int, int], expected: list[float]) -> None:
    assert flow.timesteps(n, *size, PUBLISHED) == pytest.approx(expected, abs=0.06)


def test_a_large_long_video_ends_on_strong_noise() -> None:
    assert flow.timesteps(30, 720, 1280, 102, PUBLISHED)[-1] == pytest.approx(261.5, abs=0.1)


def test_without_the_transform_timesteps_are_evenly_spaced() -> None:
    assert flow.timesteps(4, 64, 64, 68, FlowConfig(use_timestep_transform=False)).tolist() == [1000, 750, 500, 250]


@pytest.mark.parametrize("size", [(64, 64, 17), (64, 64, 68), (48, 48, 34), (240, 426, 51), (720, 1280, 102)])
def test_the_first_timestep_is_pure_noise_and_never_above(size: tuple[int, int, int]) -> None:
    assert flow.timesteps(7, *size, PUBLISHED)[0] == 1000


def test_steps_add_up_to_the_whole_way() -> None:
    steps = flow.schedule(flow.timesteps(7, 64, 64, 68, PUBLISHED), np.ones(20), PUBLISHED)
    assert sum(s.step_size for s in steps) == pytest.approx(1)


def test_without_kept_frames_all_take_part_and_none_is_noised_again() -> None:
    for step in flow.schedule([1000, 600, 200], np.ones(5), PUBLISHED):
        assert step.frame_mask.all()
        assert not step.noise_mask.any()


def test_kept_frames_never_take_part() -> None:
    mask = np.array([0, 0, 1, 1])
    for step in flow.schedule([1000, 600, 200], mask, PUBLISHED):
        assert step.frame_mask.tolist() == [False, False, True, True]
        assert not step.noise_mask.any()


def test_a_partly_kept_frame_joins_once_the_noise_has_fallen_to_its_level() -> None:
    steps = flow.schedule([1000, 600, 200], np.array([0.7, 1, 0.2]), PUBLISHED)
    assert [s.frame_mask.tolist() for s in steps] == [[False, True, False], [True, True, False], [True, True, True]]
    assert [s.noise_mask.tolist() for s in steps] == [[False] * 3, [True, False, False], [False, False, True]]


def test_trajectories_equal_those_of_open_sora(reference: Path) -> None:
    recorded = np.load(reference / "rflow_io.npz")
    for case in sorted({name.split(".")[0] for name in recorded.files if "." in name}):
        def of(name: str, case: str = case) -> np.ndarray:
            return recorded[f"{case}.{name}"]

        n, scale, size = int(of("steps")), float(of("cfg")), of("hwf").tolist()
        times = flow.timesteps(n, *size, PUBLISHED)
        assert times == pytest.approx(of("timesteps"), rel=1e-5)

        masked = f"{case}.mask" in recorded.files
        mask = of("mask")[0] if masked else np.ones(of("z0").shape[2])
        # the recorded timesteps, because float32 rounding can lift the first above 1000, which moves the mask
        steps = flow.schedule(of("timesteps"), mask, PUBLISHED)
        weights = np.array([scale, 1 - scale], np.float32)
        out = denoise(
            ToyDiT(recorded["A"], bonus=0.05 if masked else 0), of("z0"), steps,
            lambda step: of("noises")[step], {"guidance_weights": weights},
        )
        error = np.linalg.norm(out - of("out")) / np.linalg.norm(of("out"))
        assert error < 1e-5, f"case {case}"
