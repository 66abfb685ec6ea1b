"""Open-Sora's named sizes and the sizes of their graphs: the tables of docs/spec.md 2, 5.6 and 7."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from arlon_rt import GenerateOptions, OptionsError, Pipeline
from arlon_rt.cli.resolutions import SIZES, size_of
from arlon_rt.config import VideoConfig
from arlon_rt.graphs import latent_length
from arlon_rt.networks import position_table
from arlon_rt.segments import plan
from tiny_bundle import TINY, write_tiny_bundle
from watched import Calls, watched

assert TINY.ar
assert TINY.vq
PUBLISHED = dataclasses.replace(
    TINY,
    video=VideoConfig(height=32, width=32, max_height=720, max_width=1280),
    vq=dataclasses.replace(TINY.vq, stride=(4, 8, 8)),
    ar=dataclasses.replace(TINY.ar, grid=(6, 12, 20), max_length=1510),
)
"""Tiny networks with the sizes that decide grids: strides, patches and chunks as published."""


@dataclass(frozen=True)
class Row:
    """One resolution in the specification's tables, sizes as (height, width)."""

    name: str
    pixels: tuple[int, int]
    latents: tuple[int, int]
    codes: tuple[int, int]
    patches: int
    num_codes: tuple[int, ...]
    """At the lengths `LENGTHS`."""

    @property
    def frames(self) -> tuple[int, int]:
        return 8 * self.latents[0], 8 * self.latents[1]


LENGTHS = 51, 68, 102, 204, 408, 731
ROWS = (
    Row("240p", (240, 426), (30, 53), (4, 7), 405, (112, 140, 224, 420, 840, 1512)),
    Row("360p", (360, 640), (45, 80), (6, 10), 920, (240, 300, 480, 900, 1800, 3240)),
    Row("480p", (480, 854), (60, 106), (8, 14), 1590, (448, 560, 896, 1680, 3360, 6048)),
    Row("512", (512, 512), (64, 64), (8, 8), 1024, (256, 320, 512, 960, 1920, 3456)),
    Row("720p", (720, 1280), (90, 160), (12, 20), 3600, (960, 1200, 1920, 3600, 7200, 12960)),
)
EACH_ROW = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pipeline, Calls]]:
    folder = write_tiny_bundle(tmp_path_factory.mktemp("published"), model=PUBLISHED, precisions=["fp32"])
    pipeline, calls = watched(folder)
    with pipeline:
        yield pipeline, calls


@EACH_ROW
def test_an_image_of_each_size_goes_through_every_graph(published: tuple[Pipeline, Calls], row: Row) -> None:
    pipeline, calls = published
    for fed in calls.values():
        fed.clear()
    height, width = size_of(row.name)
    assert (height, width) == row.pixels
    video = pipeline.generate("a red circle", GenerateOptions(
        height=height, width=width, num_frames=1, num_inference_steps=2, guidance_scale=1
    ))
    assert video.frames.shape == (1, *row.frames, 3)
    assert calls["vq_decoder"][0]["tokens"].shape == (1, 1, *row.codes)
    assert calls["semantic"][0]["coarse"].shape[2:] == (1, *row.latents)
    first, second = calls["dit"]
    assert first["latents"].shape == (1, 4, 1, *row.latents)
    assert first["position"].shape == (row.patches, PUBLISHED.dit.hidden_size)
    # what the transformer is told is the size asked for, 426 pixels and not the 424 that come out
    rows, columns = (math.ceil(n / 2) for n in row.latents)
    told = position_table(rows, columns, PUBLISHED.dit.hidden_size, height=height, width=width, input_sq_size=512)
    np.testing.assert_array_equal(first["position"], told)
    ratio = math.sqrt(height * width) / 512
    assert second["timestep"][0] == pytest.approx(1000 * ratio / (1 + ratio), rel=1e-5)   # halfway, one frame


@EACH_ROW
@pytest.mark.parametrize("column", range(len(LENGTHS)), ids=lambda column: f"{LENGTHS[column]} frames")
def test_codes_of_each_size_and_length_are_as_many_as_specified(row: Row, column: int) -> None:
    code_frames = plan(LENGTHS[column], PUBLISHED)[-1].code_frames(4).stop
    assert code_frames * math.prod(row.codes) == row.num_codes[column]


@pytest.mark.parametrize(
    ("num_frames", "latents"), [(51, 15), (68, 20), (102, 30), (204, 60), (408, 120), (816, 240), (731, 215)]
)
def test_a_length_has_the_latents_specified(num_frames: int, latents: int) -> None:
    assert latent_length(PUBLISHED, num_frames) == latents
    assert plan(num_frames, PUBLISHED)[-1].latents.stop == latents


@pytest.mark.parametrize(("num_frames", "latents"), [(1, 1), (4, 1), (5, 2), (16, 4), (17, 5), (18, 6), (35, 11)])
def test_frames_beyond_whole_chunks_take_one_latent_for_each_four_begun(num_frames: int, latents: int) -> None:
    assert latent_length(PUBLISHED, num_frames) == latents


@pytest.mark.parametrize(
    ("resolution", "landscape", "square"),
    [
        ("144p", (144, 256), None), ("240p", (240, 426), 320), ("360p", (360, 640), 480), ("480p", (480, 854), 640),
        ("512", None, 512), ("720p", (720, 1280), 960), ("1080p", (1080, 1920), None),
    ],
)
def test_each_resolution_comes_in_the_shapes_specified(
    resolution: str, landscape: tuple[int, int] | None, square: int | None
) -> None:
    shapes = {} if landscape is None else {"16:9": landscape, "9:16": landscape[::-1]}
    if square is not None:
        shapes["1:1"] = square, square
    assert SIZES[resolution] == shapes
    assert size_of(resolution) == (landscape or (square, square))


@pytest.mark.parametrize(
    ("resolution", "aspect_ratio", "problem"),
    [
        ("4k", None, "resolution is '4k'; it must be one of 144p, .*1080p.*height and width"),
        ("480", "16:9", "resolution is '480'"),
        ("480p", "4:3", "aspect_ratio is '4:3'; 480p comes in 16:9, 9:16, 1:1 .*height and width"),
        ("512", "16:9", "aspect_ratio is '16:9'; 512 comes in 1:1 "),
        ("144p", "1:1", "aspect_ratio is '1:1'; 144p comes in 16:9, 9:16 "),
    ],
)
def test_a_size_that_has_no_name_is_refused_with_those_that_have(
    resolution: str, aspect_ratio: str | None, problem: str
) -> None:
    with pytest.raises(OptionsError, match=problem):
        size_of(resolution, aspect_ratio)
