"""What a segment of the full-size model would take by each way, reckoned from the times of the graphs that decide."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from arlon_rt.config import ModelConfig
from arlon_rt.graphs import graph_specs
from arlon_rt.options import OPTIONS
from gpu.row import WAYS, Row


@dataclass(frozen=True, kw_only=True)
class Reckoned:
    """A segment by one way. Graphs that run once a prompt or a segment, copies and the host are left out."""

    seconds: float
    real_time_factor: float
    """Seconds of video made in a second, stages one after the other; overlapped they take as long as the longest."""
    overlapped_real_time_factor: float


def runs_of_a_segment(model: ModelConfig) -> dict[str, int]:
    """How often each graph that decides runs: once a token, a denoising step, a chunk of the video autoencoder."""
    runs = {
        "dit": int(OPTIONS["num_inference_steps"].default),
        "vae_decoder": math.ceil(model.video.segment_frames / model.vae.chunk_frames),
    }
    if model.ar and model.vq:
        codes = graph_specs(model)["vq_decoder"]
        runs["ar_step"] = math.prod(codes.axis(f"code_{axis}").opt for axis in ("frame", "height", "width"))
    return runs


def reckon(model: ModelConfig, rows: Iterable[Row]) -> dict[str, Reckoned]:
    """For each way that was measured in all of the graphs that decide. ``rows`` are those of ``model``."""
    graphs = {row.name.split("/")[1]: row for row in rows}
    found = {}
    for way in WAYS:
        stages = []
        for graph, runs in runs_of_a_segment(model).items():
            measured = graphs[graph].ways.get(way) if graph in graphs else None
            if measured and measured.median_ms is not None:
                stages.append(runs * measured.median_ms / 1e3)
        if len(stages) == len(runs_of_a_segment(model)):
            video = model.video.segment_frames / model.video.fps
            found[way] = Reckoned(
                seconds=sum(stages), real_time_factor=video / sum(stages),
                overlapped_real_time_factor=video / max(stages),
            )
    return found
