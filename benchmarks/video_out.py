"""How fast frames leave: encoders by effort and size, and what the way from RGB to planes takes of it.

    python benchmarks/video_out.py [--seconds 4]

All on one thread, as the command encodes. A graph that gave planes (I420) in place of RGB would save the last column at
most. The picture is textured, moves and has grain: harder to encode than the demo's.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from arlon_rt.video import EFFORTS, Quality, VideoWriter, even, yuv

RESULTS = Path(__file__).parent / "results"
SIZES = ((512, 512), (480, 848), (720, 1280))
"""Height and width."""
FPS, SEGMENT = 24, 51


def picture(num_frames: int, height: int, width: int) -> NDArray[np.uint8]:
    """Frames (frame, height, width, 3): waves that travel, with grain."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for i in range(num_frames):
        waves = np.sin((x + 2 * i) / 23) + np.sin((y - i) / 31) + np.sin((x + y + 3 * i) / 7) / 2
        grain = rng.normal(0, 3, (height, width))
        for channel, gain in enumerate((40, 30, 20)):
            frames[i, ..., channel] = np.clip(128 + gain * waves + grain, 0, 255)
    return frames


def encoded(frames: NDArray[np.uint8], ending: str, effort: str) -> tuple[float, int]:
    """Seconds to write all ``frames`` to a file, a segment at a time, and its bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"out{ending}"
        begun = time.perf_counter()
        height, width = frames.shape[1:3]
        with VideoWriter(path, fps=FPS, height=height, width=width, quality=Quality(effort=effort)) as writer:
            for start in range(0, len(frames), SEGMENT):
                writer.write(frames[start : start + SEGMENT])
                writer.end_segment()
        return time.perf_counter() - begun, path.stat().st_size


def converted(frames: NDArray[np.uint8]) -> float:
    """Seconds to turn all ``frames`` into planes, as the writer does."""
    begun = time.perf_counter()
    for i, frame in enumerate(even(frames)):
        yuv(frame, i)
    return time.perf_counter() - begun


def measured(seconds: float) -> list[dict[str, Any]]:
    rows = []
    for height, width in track(SIZES, description="sizes"):
        frames = picture(round(seconds * FPS), height, width)
        conversion = min(converted(frames) for _ in range(3))
        for ending, efforts in ((".mp4", EFFORTS), (".webm", ("fast",))):
            for effort in efforts:
                took, size = encoded(frames, ending, effort)
                rows.append({
                    "size": f"{width}x{height}", "file": ending, "effort": effort,
                    "frames_per_second": round(len(frames) / took, 1), "megabits_per_second": round(
                        size * 8 / 1e6 / (len(frames) / FPS), 1),
                    "conversion_share": round(conversion / took, 3),
                })
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=4, help="length of the videos")
    parser.add_argument("--out", type=Path, default=RESULTS / "video_out.json")
    args = parser.parse_args()
    rows = measured(args.seconds)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    result = {
        "date": datetime.date.today().isoformat(), "device": f"{cpu}, {len(os.sched_getaffinity(0))} cores",
        "python": platform.python_version(), "command": " ".join(["python", "benchmarks/video_out.py", *sys.argv[1:]]),
        "versions": {name: version(name) for name in ("numpy", "av")}, "rows": rows,
    }
    table = Table(*(name.replace("_", " ") for name in rows[0]))
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=140).print(table)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
