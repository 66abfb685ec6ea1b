"""How long a segment of the full-size model would take in each way, from the times of the decisive graphs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from arlon_rt.config import ModelConfig
from arlon_rt.graphs import graph_specs
from arlon_rt.options import OPTIONS
from gpu.row import WAYS, Row


@dataclass(frozen=True, kw_only=True)
class SegmentEstimate:
    """The time of a segment in one way, without copies, the host, and graphs that run once a prompt or segment."""

    seconds: float
    real_time_factor: float
    """Seconds of video generated in a second, with lanes one after the other."""
    overlapped_real_time_factor: float
    """The same with lanes overlapped, which takes as long as the slowest lane."""


def runs_of_a_segment(model: ModelConfig) -> dict[str, int]:
    """Decisive graph -> its runs in a segment: one for each denoising step, chunk of frames, or token."""
    runs = {
        "dit": int(OPTIONS["num_inference_steps"].default),
        "vae_decoder": math.ceil(model.video.segment_frames / model.vae.chunk_frames),
    }
    if model.ar and model.vq:
        codes = graph_specs(model)["vq_decoder"]
        runs["ar_step"] = math.prod(codes.axis(f"code_{axis}").opt for axis in ("frame", "height", "width"))
    return runs


def estimate_segments(model: ModelConfig, rows: Iterable[Row]) -> dict[str, SegmentEstimate]:
    """Way -> its estimate, for ways that were measured for all decisive graphs. ``rows`` are those of ``model``."""
    graphs = {row.name.split("/")[1]: row for row in rows}
    found = {}
    for way in WAYS:
        lanes = []
        for graph, runs in runs_of_a_segment(model).items():
            measured = graphs[graph].ways.get(way) if graph in graphs else None
            if measured and measured.median_ms is not None:
                lanes.append(runs * measured.median_ms / 1e3)
        if len(lanes) == len(runs_of_a_segment(model)):
            video = model.video.segment_frames / model.video.fps
            found[way] = SegmentEstimate(
                seconds=sum(lanes), real_time_factor=video / sum(lanes),
                overlapped_real_time_factor=video / max(lanes),
            )
    return found
