"""Seeded noise: named streams that are reproducible and independent."""

from __future__ import annotations

import numpy as np

from arlon_rt.networks import noise

SHAPE = (1, 4, 5, 8, 8)
NORMAL = [-0.3807747960090637, -1.7893470525741577, -1.0804699659347534]
UNIFORM = 0.7826279401779175


def test_the_same_name_gives_the_same_noise() -> None:
    assert np.array_equal(noise.normal(1, "latents", 2, SHAPE), noise.normal(1, "latents", 2, SHAPE))


def test_seed_purpose_and_index_each_change_the_noise() -> None:
    samples = [noise.normal(*name, (8,)).tobytes() for name in [(1, "a", 0), (2, "a", 0), (1, "b", 0), (1, "a", 1)]]
    assert len(set(samples)) == 4


def test_the_streams_stay_what_they_were() -> None:
    """A seed must mean the same video in every version: these numbers are part of the contract."""
    assert noise.normal(7, "latents", 0, (3,)).tolist() == NORMAL
    assert noise.uniform(7, "token", 5) == UNIFORM


def test_noise_is_standard_normal() -> None:
    values = noise.normal(3, "latents", 0, (100_000,))
    assert values.dtype == np.float32
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02


def test_uniforms_are_exact_float32_numbers_below_one_and_spread_evenly() -> None:
    values = np.array([noise.uniform(0, "token", i) for i in range(2000)])
    assert np.array_equal(values, values.astype(np.float32))
    assert values.min() >= 0
    assert values.max() < 1
    assert np.histogram(values, bins=10, range=(0, 1))[0].min() > 150


def test_a_seed_may_be_as_large_as_63_bits() -> None:
    assert noise.uniform(2**63 - 1, "token", 0) != noise.uniform(2**63 - 2, "token", 0)
