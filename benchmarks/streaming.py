"""Measures how soon the first frames come, what overlap and savings gain, and whether memory grows with length.

    python benchmarks/streaming.py [--bundle DIR] [--only first,overlap,savings,approximate,memory]

Compared sides take turns in one run; results are medians of ``--rounds``. A player at the video's rate that starts
``startup_seconds`` late never waits for a frame.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from arlon_rt.backends import Array, Handle, Session
from arlon_rt.bundle import Bundle, demo_bundle_path
from arlon_rt.generation import Chunk, Work
from arlon_rt.networks import Networks, Text, TextEncoder, VAEDecoder, VAEEncoder
from arlon_rt.options import GenerateOptions
from arlon_rt.pipeline import Pipeline
from arlon_rt.request import Request

PROMPT = "a red circle moves right on a black background"
RESULTS = Path(__file__).parent / "results"
SECTIONS = ("first", "overlap", "savings", "approximate", "memory")
SAMPLE_SECONDS = 0.2


@dataclass
class Timed:
    """When each chunk of a video came, in seconds from the start, and how many frames it had."""

    fps: float
    at: list[float] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)

    @property
    def wall(self) -> float:
        return self.at[-1]

    @property
    def startup(self) -> float:
        """How late a player must start to never wait: each chunk must have come when its first frame is due."""
        due = np.concatenate([[0], np.cumsum(self.frames)[:-1]]) / self.fps
        return float(max(0.0, (np.array(self.at) - due).max()))

    @property
    def real_time_factor(self) -> float:
        """Seconds of video per second of work."""
        return sum(self.frames) / self.fps / self.wall


def timed(chunks: Iterator[Chunk], fps: float) -> Timed:
    begun, found = time.perf_counter(), Timed(fps)
    for chunk in chunks:
        found.at.append(time.perf_counter() - begun)
        found.frames.append(len(chunk.frames))
    return found


def first_frames(pipeline: Pipeline, rounds: int) -> dict[str, Any]:
    """Seconds until the first chunk, with a short and a usual first segment, and until the usual one is decoded."""
    fps, options = pipeline.bundle.model.video.fps, GenerateOptions(num_frames=68 + 51)
    usual, short = [], []
    for seed in range(rounds):
        asked = replace(options, seed=seed)
        usual.append(timed(pipeline.stream(PROMPT, asked), fps))
        short.append(timed(pipeline.stream(PROMPT, replace(asked, first_segment_frames=17)), fps))
    segment = statistics.median(t.at[3] for t in usual)
    first, shorter = (statistics.median(t.at[0] for t in side) for side in (usual, short))
    return {
        "whole_segment_seconds": segment, "first_chunk_seconds": first, "first_chunk_short_seconds": shorter,
        "first_chunk_of_segment": first / segment, "first_chunk_short_of_segment": shorter / segment,
    }


def overlap(bundle: Bundle, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """The same video in sequence and overlapped, for each number of threads a lane."""
    fps, rows = bundle.model.video.fps, []
    options = GenerateOptions(num_frames=round(seconds * fps))
    for threads in range(1, (os.cpu_count() or 1) + 1):
        sides: dict[bool, list[Timed]] = {False: [], True: []}
        with Pipeline.open(bundle, threads=threads) as pipeline:
            for _ in range(rounds + 1):
                for side, found in sides.items():
                    found.append(timed(pipeline.stream(PROMPT, options, overlap=side), fps))
        for side, found in sides.items():
            kept = found[1:]   # the first round warms up
            rows.append({
                "threads": threads, "overlap": side, "wall_seconds": statistics.median(t.wall for t in kept),
                "real_time_factor": statistics.median(t.real_time_factor for t in kept),
                "first_chunk_seconds": statistics.median(t.at[0] for t in kept),
                "startup_seconds": statistics.median(t.startup for t in kept),
            })
    return rows


class Remembering:
    """A session that counts its runs and can repeat the last one."""

    def __init__(self, session: Session) -> None:
        self.session, self.runs = session, 0
        self.last: tuple[Mapping[str, Array | Handle], Collection[str]] = {}, ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, feed: Mapping[str, Array | Handle], hold: Collection[str] = ()) -> dict[str, Array | Handle]:
        self.last, self.runs = (feed, hold), self.runs + 1
        return self.session.run(feed, hold)

    def again(self) -> None:
        if self.last[0]:
            self.session.run(*self.last)


class Laborious:
    """The transformer's session, run as by a loop without savings."""

    def __init__(self, session: Session, each_step: list[Remembering], both_rows: bool) -> None:
        self.session, self._each_step, self._both_rows = session, each_step, both_rows
        self._rows: dict[int, NDArray[Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, feed: Mapping[str, Array | Handle], hold: Collection[str] = ()) -> dict[str, Array | Handle]:
        for other in self._each_step:
            other.again()
        if self._both_rows:
            kv, mask = feed["caption_kv"], feed["text_mask"]
            if id(kv) not in self._rows:
                whole = kv if isinstance(kv, np.ndarray) else kv.numpy()
                self._rows = {id(kv): np.repeat(whole, 2, axis=2)}
            mask = mask if isinstance(mask, np.ndarray) else mask.numpy()
            feed = {
                **feed, "caption_kv": self._rows[id(kv)], "text_mask": np.repeat(mask, 2, axis=0),
                "guidance_weights": np.array([1.0, 0.0], np.float32),
            }
        return self.session.run(feed, hold)


class WholeDecoder:
    """Also decodes, in each later segment, the latents that the segment before it has shown already."""

    def __init__(self, decoder: VAEDecoder) -> None:
        self._decoder, self._segments = decoder, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def decode_chunk(self, latents: NDArray[np.float32], chunk: int, num_frames: int) -> NDArray[np.uint8]:
        if chunk == 0:
            self._segments += 1
            if self._segments > 1:
                self._decoder.decode_chunk(latents, 0, num_frames)
        return self._decoder.decode_chunk(latents, chunk, num_frames)


class WholeEncoder:
    """Encodes a whole segment, of which the last chunk would do."""

    def __init__(self, encoder: VAEEncoder) -> None:
        self._encoder = encoder

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        for _ in range(3):   # the segment's other chunks
            self._encoder.encode(frames)
        return self._encoder.encode(frames)


class ForgetfulTextEncoder:
    """Encodes a prompt at each call, without a cache."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode(self, prompt: str) -> Text:
        self._encoder._encoded.cache_clear()
        return self._encoder.encode(prompt)


SAVINGS = {
    "decode": "decode only new latents", "encode": "encode only the 17 kept frames",
    "semantic": "features once a segment", "caption": "caption keys and values once a prompt",
    "rows": "no unconditional row at guidance 1", "text": "prompt embeddings cached",
}


def savings(pipeline: Pipeline, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Times of the pipeline, of it without each exact saving, and of it without all savings; they take turns."""
    sides = [(), *((name,) for name in SAVINGS), tuple(SAVINGS)]
    options = GenerateOptions(num_frames=round(seconds * pipeline.bundle.model.video.fps))
    walls: dict[tuple[str, ...], list[float]] = {side: [] for side in sides}
    frames: dict[tuple[str, ...], NDArray[np.uint8]] = {}
    for _ in range(rounds + 1):
        for side in sides:
            chunks, begun = [], time.perf_counter()
            for chunk in laborious(pipeline, pipeline._requests.checked(PROMPT, options, None), side):
                chunks.append(chunk.frames)
            walls[side].append(time.perf_counter() - begun)
            frames[side] = np.concatenate(chunks)
    usual = statistics.median(walls[()][1:])
    rows = []
    for side in sides[1:]:
        wall = statistics.median(walls[side][1:])
        off = np.abs(frames[side].astype(np.int16) - frames[()])
        rows.append({
            "saving": SAVINGS[side[0]] if len(side) == 1 else "all of them", "with_seconds": usual,
            "without_seconds": wall, "ratio": wall / usual, "largest_difference": int(off.max()),
        })
    return rows


def laborious(pipeline: Pipeline, request: Request, without: Collection[str]) -> Iterator[Chunk]:
    """The request's chunks, without the savings named in ``without``."""
    opened = pipeline._networks
    caption, semantic = Remembering(opened.sessions["caption"]), Remembering(opened.sessions["semantic"])
    each_step = [s for s, name in ((caption, "caption"), (semantic, "semantic")) if name in without]
    sessions: dict[str, Any] = {**opened.sessions, "caption": caption, "semantic": semantic}
    sessions["dit"] = Laborious(opened.sessions["dit"], each_step, "rows" in without)
    networks: Any = Networks.of(pipeline.bundle, sessions, opened.precision)
    if "decode" in without:
        networks = replace(networks, vae_decoder=WholeDecoder(networks.vae_decoder))
    if "encode" in without:
        networks = replace(networks, vae_encoder=WholeEncoder(networks.vae_encoder))
    if "text" in without:
        networks = replace(networks, text_encoder=ForgetfulTextEncoder(networks.text_encoder))
    return Work(networks, pipeline.bundle.model, request, _quiet).reported(contextlib.nullcontext())


TEN, THIRTY = (GenerateOptions(num_inference_steps=steps) for steps in (10, 30))
GUIDED = replace(TEN, guidance_scale=2.5)
APPROXIMATE = {
    "guidance in 3 of 10 steps": (GUIDED, replace(GUIDED, guided_steps=3)),
    "latents reused": (TEN, replace(TEN, reuse_latents=True)),
    "7 steps in place of 10": (TEN, replace(TEN, num_inference_steps=7)),
    "7 steps in place of 30": (THIRTY, replace(THIRTY, num_inference_steps=7)),
}
"""Each beside what it approximates; fewer steps are what an approximation has to be better than."""


def approximate(pipeline: Pipeline, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Time, runs of the transformer and mean difference of frames of each approximation, against the exact run.

    ``cpu_ratio`` compares the process's own CPU time, which other processes hardly change.
    """
    networks, rows = pipeline._networks, []
    for name, sides in APPROXIMATE.items():
        times: tuple[list[tuple[float, float]], ...] = [], []
        frames, runs = [np.zeros(0, np.uint8)] * 2, [0, 0]
        for _ in range(rounds + 1):
            for side, options in enumerate(sides):
                asked = replace(options, num_frames=round(seconds * pipeline.bundle.model.video.fps))
                request, dit = pipeline._requests.checked(PROMPT, asked, None), Remembering(networks.sessions["dit"])
                sessions: dict[str, Any] = {**networks.sessions, "dit": dit}
                counted = Networks.of(pipeline.bundle, sessions, networks.precision)
                begun = time.perf_counter(), time.process_time()
                chunks = Work(counted, pipeline.bundle.model, request, _quiet).reported(contextlib.nullcontext())
                frames[side] = np.concatenate([chunk.frames for chunk in chunks])
                times[side].append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
                runs[side] = dit.runs
        exact, approximated = (np.median(found[1:], axis=0) for found in times)
        rows.append({
            "approximation": name, "exact_seconds": float(exact[0]), "seconds": float(approximated[0]),
            "ratio": float(approximated[0] / exact[0]), "cpu_ratio": float(approximated[1] / exact[1]),
            "exact_runs": runs[0], "runs": runs[1],
            "mean_difference": float(np.abs(frames[1].astype(np.int16) - frames[0]).mean()),
        })
    return rows


def _quiet(event: object) -> None:
    pass


def memory(bundle: Path, minutes: Collection[int]) -> list[dict[str, Any]]:
    """For each length, run in a process of its own: peak memory, threads, open files, and bytes on the disk."""
    rows = []
    for length in minutes:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "out.mp4"
            command = [sys.executable, "-m", "arlon_rt.cli", "generate", PROMPT, "-o", str(output)]
            command += ["--bundle", str(bundle), "--seconds", str(60 * length), "--quiet"]
            begun, seen = time.perf_counter(), []
            with subprocess.Popen(command) as process:
                while process.poll() is None:
                    if sample := _sample(process.pid, output.parent, output.name):
                        seen.append(sample)
                    time.sleep(SAMPLE_SECONDS)
            if process.returncode:
                raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
            half = len(seen) // 2
            rows.append({
                "minutes": length, "wall_seconds": time.perf_counter() - begun,
                "peak_rss_mb": max(s["rss"] for s in seen) / 1e6,
                **{f"{name}_{part}": max(s[name] for s in samples) for name in ("threads", "files", "beside")
                   for part, samples in (("first_half", seen[:half]), ("second_half", seen[half:]))},
                "output_mb": output.stat().st_size / 1e6,
            })
    return rows


def _sample(pid: int, folder: Path, output: str) -> dict[str, int] | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        beside = sum(p.stat().st_size for p in folder.iterdir() if p.name not in (output, f"{output}.part"))
        return {
            "rss": int(fields["VmHWM"].split()[0]) * 1024, "threads": int(fields["Threads"]),
            "files": len(os.listdir(f"/proc/{pid}/fd")), "beside": beside,
        }
    except (OSError, KeyError):   # the process has just ended
        return None


def show(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", type=Path, default=demo_bundle_path(), help="default: the demo model")
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=15, help="length of the compared videos (default: 15)")
    parser.add_argument("--threads", type=int, help="CPU threads, except in the section overlap")
    parser.add_argument("--minutes", type=int, nargs=2, default=(1, 10), help="compared lengths (default: 1 10)")
    parser.add_argument("--out", type=Path, default=RESULTS / "streaming.json")
    args = parser.parse_args()
    console = Console(width=140)
    bundle = Bundle.open(args.bundle)
    result: dict[str, Any] = {
        **machine("onnxruntime", "numpy", "av"), "bundle": bundle.hash,
        "command": " ".join(["python", "benchmarks/streaming.py", *sys.argv[1:]]),
    }
    sections: dict[str, Callable[[Pipeline], Any]] = {
        "first": lambda pipeline: [first_frames(pipeline, args.rounds)],
        "overlap": lambda pipeline: overlap(bundle, args.rounds, args.seconds),
        "savings": lambda pipeline: savings(pipeline, args.rounds, args.seconds),
        "approximate": lambda pipeline: approximate(pipeline, args.rounds, args.seconds),
        "memory": lambda pipeline: memory(args.bundle, args.minutes),
    }
    with Pipeline.open(bundle, threads=args.threads) as pipeline:
        for name in args.only.split(","):
            result[name] = sections[name](pipeline)
            show(console, name, result[name])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"written: {args.out}")


if __name__ == "__main__":
    main()
