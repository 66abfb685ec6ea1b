"""The result as tables for a reader, and as one JSON file."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from arlon_rt.config import ModelConfig
from gpu.models import DECISIVE
from gpu.row import WAYS, Measurement, Row
from gpu.segment import estimate_segments, runs_of_a_segment
from gpu.video import VideoMeasurement, VideoRow

HEADS = {
    "eager": "torch eager", "session": "ONNX Runtime", "bound": "ORT bound once", "ort-graph": "ORT CUDA graph",
    "tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX",
    "compile": "torch.compile", "compile-graph": "compile + CUDA graph",
}
BACKENDS = {"onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}


def print_report(
    console: Console, setting: Mapping[str, Any], ceiling: Mapping[str, float], rows: Sequence[Row | VideoRow],
    random: ModelConfig, seconds: float,
) -> None:
    """Print the setting, the decisive graphs, the video, all graphs, then what failed or was skipped."""
    console.print()
    for name, value in setting.items():
        if isinstance(value, dict):
            between, after = ("; ", ": ") if name == "missing" else (", ", " ")
            value = between.join(f"{key}{after}{text}" for key, text in value.items()) or "nothing"
        console.print(f"{name}: {value}", highlight=False, markup=False, soft_wrap=True)
    if setting["smoke"]:
        console.print("a smoke run: figures mean nothing, and TensorRT is a stand-in whose engines are ONNX Runtime")
    console.print(
        f"the best rates of this device: matrix product {ceiling['fp16']:.3g} TFLOP/s fp16, {ceiling['fp32']:.3g} fp32 "
        f"({ceiling['ieee_fp32']:.3g} without TF32), copy {ceiling['copy_gb_s']:.4g} GB/s read + write",
        highlight=False,
    )
    console.print(f"the whole run: {seconds:.0f} s", highlight=False)
    graphs = [row for row in rows if isinstance(row, Row)]
    if lines := list(decisive(graphs)):
        console.print("\nthe graphs that take most of a video's time, of the random modules:")
        for line in lines:
            console.print(f"  {line}", highlight=False, soft_wrap=True)
    for line in segments(random, random_rows(graphs)):
        console.print(line, highlight=False, soft_wrap=True)
    for row in rows:
        if isinstance(row, VideoRow) and row.ways:
            console.print(_video_table(row))
    if any(row.ways for row in graphs):
        console.print(_graph_table(graphs))
    for line in complaints(rows):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def decisive(rows: Iterable[Row]) -> Iterable[str]:
    """A line for each `DECISIVE` graph and way: its time, and its rate as a part of the device's best."""
    for row in random_rows(rows):
        graph = row.name.split("/")[1]
        if graph not in DECISIVE:
            continue
        for way in (w for w in WAYS if w in row.ways):
            found = row.ways[way]
            if found.median_ms is None:
                continue
            rate = f"{found.tflop_s:.3g} TFLOP/s, {_part(found.product_fraction)} of the product"
            if found.tokens_s is not None:
                rate = f"{found.tokens_s:.4g} tokens/s, {_part(found.copy_fraction)} of the copy's bytes/s"
            if found.loop_tokens_s is not None:
                rate += f"; in a loop on the device {found.loop_tokens_s:.4g} tokens/s"
            yield f"{DECISIVE[graph]:<19}{HEADS[way]:<21}{found.median_ms:>9.4g} ms   {rate}"


def segments(model: ModelConfig, rows: Iterable[Row]) -> Iterable[str]:
    """A line for each way: how long a segment of the random modules would take."""
    if estimates := estimate_segments(model, rows):
        runs, video = runs_of_a_segment(model), model.video
        parts = ", ".join(f"{count} × {DECISIVE[graph].removeprefix('one ')}" for graph, count in runs.items())
        yield (
            f"\na segment of {video.segment_frames} frames, {video.segment_frames / video.fps:.2f} s to watch, "
            f"would take as the sum of {parts}:"
        )
        for way, found in estimates.items():
            yield (
                f"  {HEADS[way]:<21}{found.seconds:>9.3g} s, {found.real_time_factor:.3g} × real time; "
                f"{found.overlapped_real_time_factor:.3g} with lanes overlapped"
            )


def random_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows of the random modules."""
    return [row for row in rows if not row.name.startswith("bundle/")]


def complaints(rows: Iterable[Row | VideoRow]) -> Iterable[str]:
    """A line for each row or way that is not ok, or was not compared, with the reason."""
    for row in rows:
        if row.status != "ok":
            yield f"{row.name}: {row.status}: {row.detail}"
        for way, found in row.ways.items():
            if found.detail:
                yield f"{row.name} {way}: {found.status}: {found.detail}"


def _graph_table(rows: Iterable[Row]) -> Table:
    table = Table(title="graphs: median of the repeats, inputs and outputs on the device", box=box.SIMPLE_HEAD)
    table.add_column("graph, and what a run needs", no_wrap=True)
    table.add_column("by", no_wrap=True)
    for head in ("ms", "±", "× eager", "TFLOP/s", "of product", "GB/s", "of copy", "error", "build s", "open s"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        titles = [row.name, *_needs(row)]
        ways = [way for way in WAYS if way in row.ways]
        for place in range(max(len(titles), len(ways)) if ways else 0):
            title = titles[place] if place < len(titles) else ""
            cells = _cells(row, ways[place]) if place < len(ways) else []
            table.add_row(title, *cells)
        table.add_section()
    return table


def _needs(row: Row) -> Iterable[str]:
    if row.tflop and row.gbytes:
        yield f"  {_amount(row.tflop, 'TFLOP')}, {_amount(row.gbytes, 'GB')}"
    if row.nodes:
        nodes = ", ".join(f"{count} {name.removesuffix('ExecutionProvider')}" for name, count in row.nodes.items())
        yield f"  ONNX nodes: {nodes}"


def _amount(value: float, unit: str) -> str:
    """An amount with its unit, or with the next smaller unit if it is below 0.1."""
    smaller = {"TFLOP": "GFLOP", "GB": "MB"}
    return f"{value:.3g} {unit}" if value >= 0.1 else f"{1e3 * value:.3g} {smaller[unit]}"


def _cells(row: Row, way: str) -> list[str]:
    found = row.ways[way]
    cells = [HEADS[way]]
    if found.median_ms is None or found.min_ms is None or found.max_ms is None:
        return [*cells, found.status]
    eager = row.ways["eager"].median_ms if "eager" in row.ways else None
    return [
        *cells, f"{found.median_ms:.4g}", f"{(found.max_ms - found.min_ms) / 2 / found.median_ms:.0%}",
        f"{eager / found.median_ms:.2f}" if eager else "–",
        f"{found.tflop_s:.3g}", _part(found.product_fraction), f"{found.gb_s:.4g}", _part(found.copy_fraction),
        f"{found.relative_error:.0e}", _seconds(found), f"{found.open_seconds:.1f}",
    ]


def _video_table(row: VideoRow) -> Table:
    cpu = f"; {row.cpu_seconds:.1f} s on the CPU in fp32, opening included" if row.cpu_seconds else ""
    table = Table(
        title=f"{row.name}: {row.video_seconds:.2f} s of video ({row.num_frames} frames of {row.width}x{row.height}, "
        f"{row.num_inference_steps} steps){cpu}", box=box.SIMPLE_HEAD,
    )
    table.add_column("by", no_wrap=True)
    for head in ("s", "±", "× real time", "first frames s", "MB", "levels off", "build s", "open s"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("s of each network")
    for backend, found in row.ways.items():
        table.add_row(BACKENDS[backend], *_video_cells(found))
    return table


def _video_cells(found: VideoMeasurement) -> list[str]:
    if found.seconds is None or found.min_seconds is None or found.max_seconds is None:
        return [found.status]
    networks = ", ".join(f"{name} {s:.2g}" for name, s in found.network_seconds.items() if s > found.seconds / 100)
    return [
        f"{found.seconds:.3g}", f"{(found.max_seconds - found.min_seconds) / 2 / found.seconds:.0%}",
        f"{found.real_time_factor:.3g}",
        f"{found.first_frame_seconds:.2g}", "–" if found.peak_memory_mb is None else f"{found.peak_memory_mb:.0f}",
        "–" if found.mean_levels is None else f"{found.mean_levels:.2f}", _seconds(found),
        f"{found.open_seconds:.1f}", networks,
    ]


def _part(fraction: float | None) -> str:
    if fraction is None:
        return "–"
    return f"{fraction:.0%}" if fraction >= 0.1 else f"{fraction:.1%}"


def _seconds(found: Measurement | VideoMeasurement) -> str:
    return "–" if found.build_seconds is None else f"{found.build_seconds:.1f}"


def write_json(
    folder: Path, setting: Mapping[str, Any], ceiling: Mapping[str, float], rows: Sequence[Row | VideoRow],
    random: ModelConfig, smoke: bool,
) -> Path:
    """Write the whole result to a file named after device and date, or gpu-smoke.json. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    device = re.sub(r"[^a-z0-9]+", "-", str(setting["device"]).lower()).strip("-")
    day = str(setting["date"])[:19].replace(":", "").replace("T", "-")
    path = folder / ("gpu-smoke.json" if smoke else f"gpu-{device}-{day}.json")
    graphs = [row for row in rows if isinstance(row, Row)]
    estimates = estimate_segments(random, random_rows(graphs))
    result = {
        **setting, "ceilings": ceiling,
        "segments": {way: dataclasses.asdict(found) for way, found in estimates.items()},
        "videos": [dataclasses.asdict(row) for row in rows if isinstance(row, VideoRow)],
        "rows": [dataclasses.asdict(row) for row in graphs],
    }
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path
