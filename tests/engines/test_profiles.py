"""Profiles are the ranges of graphs.py, narrowed to the sizes that are asked for."""

from __future__ import annotations

import dataclasses

import pytest

from arlon_engines.profiles import Size, parse_size, profile_name, profiles_of, shape
from arlon_rt.bundle import Bundle, demo_bundle_path
from arlon_rt.config import ModelConfig
from arlon_rt.errors import OptionsError
from arlon_rt.graphs import graph_specs

DEMO = Bundle.open(demo_bundle_path()).model
LARGE = dataclasses.replace(DEMO, video=dataclasses.replace(DEMO.video, max_width=1280, max_height=720))


def ranges(model: ModelConfig, graph: str, *sizes: str) -> list[dict[str, tuple[int, int, int]]]:
    return [dict(p.ranges) for p in profiles_of(model, graph, [parse_size(size, model) for size in sizes])]


@pytest.mark.parametrize("graph", graph_specs(LARGE))
def test_without_sizes_everything_that_the_contract_allows_is_covered(graph: str) -> None:
    (first, *rest) = ranges(LARGE, graph)
    assert {name: (low, high) for name, (low, _, high) in first.items()} == {
        axis.name: (axis.min, axis.max) for axis in graph_specs(LARGE)[graph].axes
    }
    assert len(rest) == (graph == "ar_step")


def test_a_size_fixes_the_picture_and_leaves_the_length_a_range() -> None:
    (only,) = ranges(LARGE, "dit", "640x360x34")
    assert only["latent_width"] == (80, 80, 80)
    assert only["latent_height"] == (45, 45, 45)
    assert only["patches"] == (40 * 23, 40 * 23, 40 * 23)
    assert only["frame"] == (1, 10, 10)
    assert only["batch"] == (1, 2, 2)


def test_a_size_is_width_times_height_times_frames_in_every_graph() -> None:
    (decoder,) = ranges(LARGE, "vae_decoder", "1280x720x68")
    assert (decoder["width"], decoder["height"]) == ((1280,) * 3, (720,) * 3)
    (codes,) = ranges(LARGE, "vq_decoder", "1280x720x68")
    assert (codes["code_width"], codes["coarse_width"]) == ((80,) * 3, (160,) * 3)
    assert codes["code_frame"] == (1, 10, 11)


def test_several_sizes_are_several_profiles_of_one_engine() -> None:
    found = profiles_of(LARGE, "dit", [parse_size(s, LARGE) for s in ("512x512x68", "256x256x68")])
    assert [p.name for p in found] == ["512x512x68", "256x256x68"]
    assert [p.ranges["patches"][1] for p in found] == [1024, 256]


def test_graphs_that_do_not_see_the_picture_have_one_profile_for_all_sizes() -> None:
    sizes = ("512x512x68", "256x256x68")
    assert len(ranges(LARGE, "text_encoder", *sizes)) == 1
    assert [r["length"] for r in ranges(LARGE, "ar_step", *sizes)] == [(1, 128, 256), (1, 1, 1)]


def test_an_image_is_a_segment_of_one_frame() -> None:
    (only,) = ranges(LARGE, "semantic", "512x512x1")
    assert only["frame"] == (1, 1, 1)


def test_an_identity_names_the_same_sizes_in_any_order_the_same() -> None:
    small, large = (Size(width=w, height=w, frames=68) for w in (256, 512))
    assert profile_name([large, small, large]) == profile_name([small, large]) == "256x256x68_512x512x68"
    assert profile_name([]) == "any"


def test_a_tensors_shape_follows_from_the_profile() -> None:
    (only,) = profiles_of(LARGE, "dit", [parse_size("512x256x68", LARGE)])
    latents = graph_specs(LARGE)["dit"].inputs[0]
    assert shape(latents, only, "min") == (1, 4, 1, 32, 64)
    assert shape(latents, only, "max") == (1, 4, 20, 32, 64)


@pytest.mark.parametrize(("text", "said"), [
    ("512x512", "WIDTHxHEIGHTxFRAMES is expected"), ("512X512X68", "WIDTHxHEIGHTxFRAMES is expected"),
    ("0x512x68", "16x16 to 1280x720 pixels"), ("1281x512x68", "16x16 to 1280x720 pixels"),
    ("512x512x0", "1 to 68 frames"), ("512x512x204", "longer video is made of segments"),
])
def test_a_size_that_cannot_be_is_an_error_that_says_what_can(text: str, said: str) -> None:
    with pytest.raises(OptionsError, match=said):
        parse_size(text, LARGE)
