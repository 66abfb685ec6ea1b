"""The estimate of a full-size segment, and the lines that show it."""

from __future__ import annotations

import pytest
from full_size_weights import FULL
from gpu.report import decisive, segments
from gpu.row import Measurement, Row
from gpu.segment import estimate_segments, runs_of_a_segment

MS = {"dit": 100.0, "ar_step": 1.0, "vae_decoder": 50.0}


def row(graph: str, way: str = "tensorrt", ms: float | None = None) -> Row:
    found = Measurement(
        status="ok", median_ms=ms or MS[graph], tflop_s=300.0, product_fraction=0.42, gb_s=1000.0, copy_fraction=0.5,
        tokens_s=1000.0 if graph == "ar_step" else None,
    )
    return Row(name=f"full/{graph}/fp16", ways={way: found})


def test_a_segment_has_as_many_runs_as_the_paper_s() -> None:
    assert runs_of_a_segment(FULL) == {"dit": 10, "vae_decoder": 4, "ar_step": 5 * 8 * 8}


def test_the_times_of_the_graphs_add_up() -> None:
    found = estimate_segments(FULL, [row(graph) for graph in MS])["tensorrt"]
    assert found.seconds == pytest.approx(1.0 + 0.2 + 0.32)
    video = 68 / FULL.video.fps
    assert found.real_time_factor == pytest.approx(video / 1.52)
    assert found.overlapped_real_time_factor == pytest.approx(video / 1.0)


def test_a_way_that_was_not_measured_everywhere_is_left_out() -> None:
    rows = [row("dit"), row("ar_step"), row("vae_decoder", way="eager")]
    assert estimate_segments(FULL, rows) == {}
    assert list(segments(FULL, rows)) == []


def test_the_lines_say_what_part_of_the_device_a_time_is() -> None:
    rows = [row(graph) for graph in MS]
    lines = list(decisive(rows))
    assert any("one token" in line and "1000 tokens/s, 50% of the copy's bytes/s" in line for line in lines)
    assert any("one denoising step" in line and "300 TFLOP/s, 42% of the product" in line for line in lines)
    assert any("one VAE chunk" in line and "50 ms" in line for line in lines)
    heading, line = segments(FULL, rows)
    assert "68 frames, 2.83 s to watch" in heading
    assert "10 × denoising step, 4 × VAE chunk, 320 × token" in heading
    assert "TensorRT" in line
    assert "1.52 s, 1.86 × real time; 2.83 with lanes overlapped" in line
