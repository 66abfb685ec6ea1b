"""What of a request decides how much memory it takes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from arlon_rt import GenerateOptions, OptionsError
from arlon_rt.bundle import Bundle
from arlon_rt.graphs import graph_specs, latent_length
from arlon_rt.memory import Budget, Demand
from demands import SMALL
from tiny_bundle import TINY


def test_a_request_s_length_size_and_guidance_decide(folder: Path) -> None:
    bundle = Bundle.open(folder)
    whole = Demand.of(GenerateOptions(), bundle)
    assert whole.latents == latent_length(TINY, TINY.video.segment_frames), "a length that is left out may be any"
    assert Demand.of(GenerateOptions(num_frames=17), bundle).latents == 5
    assert Demand.of(GenerateOptions(num_frames=1), bundle).latents == 1
    assert Demand.of(GenerateOptions(num_frames=500), bundle) == whole
    assert not Demand.of(GenerateOptions(guidance_scale=1), bundle).guided
    assert Demand.of(GenerateOptions(guided_steps=1), bundle).also_unguided
    smaller = Demand.of(GenerateOptions(num_frames=17, height=31), bundle)
    assert (smaller.height, smaller.width) == (24, 32)
    Budget(size=1, demand=whole).check(smaller)
    with pytest.raises(OptionsError, match=r"for 32x24, segments of 5 .*takes more \(height, latents\); .*sized_for"):
        Budget(size=1, demand=smaller).check(whole)


@pytest.mark.parametrize("latents", [1, 5, 10, 15, 20])
def test_axes_are_narrowed_to_the_request(latents: int) -> None:
    demand = dataclasses.replace(SMALL, latents=latents, height=24)
    for spec in graph_specs(demand.narrowed(TINY)).values():
        sizes = demand.sizes(spec)
        assert sizes.get("frame", latents) == latents
        assert sizes.get("latent_height", 3) == 3
