"""Measures how fast frames are encoded, by size and effort, and which share the conversion from RGB takes.

    python benchmarks/video_out.py [--seconds 4]

Everything runs on one thread, as in the command. A graph that returned planes (I420) would save the last column at
most. The picture has texture, motion and grain, so it is harder to encode than the demo model's.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
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
    """Frames (frame, height, width, 3) of moving waves with grain."""
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
    """Seconds to write ``frames`` to a file, a segment at a time, and the file's size in bytes."""
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
    """Seconds to convert ``frames`` to planes, as the writer does."""
    begun = time.perf_counter()
    for i, frame in enumerate(even(frames)):
        yuv(frame, i)
    return time.perf_counter() - begun


def measured(seconds: float) -> list[dict[str, Any]]:
    """One row for each size, kind of file and effort."""
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
    parser.add_argument("--seconds", type=float, default=4, help="length of the videos (default: 4)")
    parser.add_argument("--out", type=Path, default=RESULTS / "video_out.json")
    args = parser.parse_args()
    rows = measured(args.seconds)
    command = " ".join(["python", "benchmarks/video_out.py", *sys.argv[1:]])
    result = {**machine("numpy", "av"), "command": command, "rows": rows}
    table = Table(*(name.replace("_", " ") for name in rows[0]))
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=140).print(table)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
