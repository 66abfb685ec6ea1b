"""The result: one table for people, one JSON for everything else."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_row import WAYS, Measurement, Row
from rich.console import Console
from rich.table import Table

HEADS = {
    "eager": "torch eager", "session": "arlon_rt session", "bound": "ORT bound once", "ort-graph": "ORT CUDA graph",
    "compile": "torch.compile", "compile-graph": "compile + CUDA graph",
}


def print_report(
    console: Console, setting: Mapping[str, Any], ceiling: Mapping[str, float], rows: Sequence[Row]
) -> None:
    """The setting, one table with a row a graph, then what failed or was skipped."""
    for name, value in setting.items():
        console.print(f"{name}: {value}", highlight=False)
    console.print(
        f"ceilings measured here: product {ceiling['fp16']:.3g} TFLOP/s fp16, {ceiling['fp32']:.3g} fp32 "
        f"({ceiling['ieee_fp32']:.3g} without TF32), copy {ceiling['copy_gb_s']:.4g} GB/s read + write",
        highlight=False,
    )
    table = Table(
        title="median ms ± half range · TFLOP/s (% of product) · GB/s (% of copy) · relative error to exact fp32"
    )
    ways = [w for w in WAYS if any(w in r.ways for r in rows)]
    table.add_column("graph", no_wrap=True)
    for head in ("needs", *(HEADS[w] for w in ways)):
        table.add_column(head, overflow="fold")
    for row in rows:
        if row.ways:
            needs = f"{row.tflop:.3g} TFLOP\n{row.gbytes:.3g} GB" if row.tflop and row.gbytes else ""
            table.add_row(_words(row), needs, *(_cell(row.ways.get(w)) for w in ways))
    console.print(table)
    for row in rows:
        if row.status != "ok":
            console.print(f"{row.name}: {row.status}: {row.detail}", highlight=False, markup=False)
        for way, found in row.ways.items():
            if found.status != "ok":
                console.print(f"{row.name} {way}: {found.status}: {found.detail}", highlight=False, markup=False)


def _words(row: Row) -> str:
    nodes = ", ".join(f"{count} {name.removesuffix('ExecutionProvider')}" for name, count in row.nodes.items())
    return f"{row.name}\n{nodes} nodes" if nodes else row.name


def _cell(found: Measurement | None) -> str:
    if found is None:
        return "–"
    if found.median_ms is None or found.min_ms is None or found.max_ms is None:
        return found.status
    lines = [f"{found.median_ms:.4g} ± {(found.max_ms - found.min_ms) / 2:.2g} ms"]
    lines.append(f"{found.tflop_s:.3g} TFLOP/s ({found.product_fraction:.0%})")
    lines.append(f"{found.gb_s:.4g} GB/s ({found.copy_fraction:.0%})")
    if found.tokens_s is not None:
        lines.append(f"{found.tokens_s:.4g} tokens/s")
    lines.append(f"error {found.relative_error:.0e}")
    return "\n".join(lines)


def write_json(
    folder: Path, setting: Mapping[str, Any], ceiling: Mapping[str, float], rows: Sequence[Row], smoke: bool
) -> Path:
    """Write the whole result; the name holds the device and the date, or says that it is a smoke run."""
    folder.mkdir(parents=True, exist_ok=True)
    device = re.sub(r"[^a-z0-9]+", "-", str(setting["device"]).lower()).strip("-")
    day = str(setting["date"])[:19].replace(":", "").replace("T", "-")
    path = folder / ("gpu-smoke.json" if smoke else f"gpu-{device}-{day}.json")
    result = {**setting, "ceilings": ceiling, "rows": [dataclasses.asdict(row) for row in rows]}
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path
