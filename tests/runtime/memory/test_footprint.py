"""The bytes of what a request holds besides weights are exact."""

from __future__ import annotations

import dataclasses

from full_size_weights import FULL_SIZE

from arlon_rt.graphs import graph_specs
from arlon_rt.memory.footprint import buffers, held, needed_graphs
from demands import PUBLISHED, SMALL
from tiny_bundle import TINY


def test_what_is_held_is_counted_from_the_axes() -> None:
    found = {name.partition(",")[0]: size for name, size in held(FULL_SIZE, PUBLISHED, "fp16").items()}
    tokens, mask, weights = 2 * 56 * 2 * 2 * 16 * 300 * 72, 2 * 300, 2 * 4
    assert found == {
        "caption keys and values": 2 * (tokens + mask + weights),
        "latents before and after a step": 2 * 4 * (4 * 20 * 64 * 64),
        "position tables": 4 * (1024 * 1152 + 2 * 20 * 36 + 1),
        "injected features": 2 * (14 * 20 * 1024 * 3 * 1152),
        "caches of the token model": 2 * (2 * 24 * 1264 * 1024),
    }


def test_guidance_of_the_tokens_doubles_their_caches_and_fp32_all_floats() -> None:
    guided = dataclasses.replace(PUBLISHED, ar_guided=True)
    caches = [
        held(FULL_SIZE, demand, precision)["caches of the token model"]
        for demand, precision in ((PUBLISHED, "fp16"), (guided, "fp16"), (PUBLISHED, "fp32"))
    ]
    assert caches == [caches[0], 2 * caches[0], 2 * caches[0]]


def test_an_engine_s_inputs_and_outputs_count_where_they_are_not_held() -> None:
    specs = graph_specs(PUBLISHED.narrowed(FULL_SIZE))
    frames = 20 * 512 * 512 * 3
    assert buffers(specs["vae_decoder"], PUBLISHED, "fp16") == 4 * 4 * 5 * 64 * 64 + 8 * 20 + 2 * frames
    hidden = 2 * 2 * 300 * 4096
    assert buffers(specs["caption"], PUBLISHED, "fp16") == 2 * hidden + 2, "its keys and values are held"
    assert buffers(specs["ar_step"], PUBLISHED, "fp16") < 130_000, "its caches are held"


def test_a_request_without_injection_needs_no_token_model() -> None:
    plain = dataclasses.replace(SMALL, inject=False)
    names = {spec.name for spec in needed_graphs(TINY, plain)}
    assert names == {"text_encoder", "caption", "dit", "vae_decoder", "vae_encoder"}
    assert not any("caches" in name for name in held(TINY, plain, "fp16"))
