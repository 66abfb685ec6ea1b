"""Each graph and a whole video on a GPU, by every installed backend, beside PyTorch eager and torch.compile.

    cd benchmarks && python -m gpu                     # needs CUDA, torch, and a backend
    cd benchmarks && python -m gpu --only '*/dit/*'    # some rows
    cd benchmarks && python -m gpu --list              # the names of all rows
    cd benchmarks && python -m gpu --smoke             # everything on a CPU, small: its figures mean nothing

**This has not been executed on a GPU yet.** ``--smoke`` runs all of it except `CudaDevice`, CUDA graphs and
`gpu.backends.Engines`. Its TensorRT is the stand-in of the tests (tests/fake_gpu.py), whose engines are ONNX Runtime.

The backends are onnxruntime-gpu, tensorrt and tensorrt-rtx. Each that is installed and serves the GPU is measured.
Engines are built during the run, in a folder of the run, and the build time is a figure of its own. The rows are:

* the graphs of a bundle, and a video of it from prompt to frames;
* in fp16, the graphs of full-size modules with random weights: STDiT3-XL/2 at 512x512 and 68 frames, the 17-frame chunk
  of the 393 M video autoencoder, the 323 M token model, and two layers of T5 XXL.

Inputs and outputs are on the device, and caches are updated in place. Parity comes first: the relative error to PyTorch
in exact float32 with the same weights, and for the video the difference to the frames of the CPU. A row that fails it
gets no time. The time is the median of repeats with its range, and as TFLOP/s and bytes/s it stands beside a matrix
product and a device copy of the same run.

PyTorch runs with static shapes, ONNX graphs with dynamic ones. PyTorch's token model copies its caches at every step,
as the module is written; the others update them in place. A time limit ends the run between two measurements, and an
engine that takes too long to build is skipped. The most important rows come first.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import importlib.metadata
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from full_size_weights import FULL
from rich.console import Console

from arlon_rt.backends import BACKENDS
from arlon_rt.backends.ort import installed_runtimes
from arlon_rt.bundle import FLAVOURS, Bundle, demo_bundle_path
from arlon_rt.errors import ArlonError, BundleNotFoundError
from gpu.backends import Backend, OnnxRuntime, find_backends
from gpu.device import CpuDevice, CudaDevice, Device, ceilings
from gpu.models import SMALL, BundleSubject, RandomSubject, StandInSubject, Subject
from gpu.report import print_report, write_json
from gpu.row import COMPILED, WAYS, Effort, Measurement, Row, error_text, measure_row
from gpu.stand_in import StandInEngines, StandInGpu
from gpu.video import VideoRow, measure_video

RESULTS = Path(__file__).parents[1] / "results"
VIDEO = "video"
"""The name of the row that is a whole video instead of a graph."""


@dataclass(frozen=True)
class Entry:
    """A row to measure, in some of the ways to run it."""

    subject: Subject
    graph: str
    """The name of a graph, or `VIDEO`."""
    precision: str
    ways: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.subject.name}/{self.graph}/{self.precision}"


def main() -> int:
    """Run the benchmark. Returns 2 if it cannot begin, 1 if a row failed, else 0."""
    began = time.monotonic()
    args = parse_arguments()
    console = Console(width=None if sys.stdout.isatty() else 160)
    with tempfile.TemporaryDirectory(prefix="arlon-gpu-") as name:
        folder = Path(name)
        use_folders_in(folder)
        try:
            device, backends, missing = find_device(args, folder)
            subjects = find_subjects(args, folder, device, console)
        except (ArlonError, NothingToRunError) as error:
            print(f"gpu: {error}", file=sys.stderr)
            return 2
        plan = make_plan(subjects, args.only, args.ways)
        if args.list:
            print("\n".join(dict.fromkeys(entry.name for entry in plan)))
            return 0
        if not plan:
            print(f"gpu: --only {' '.join(args.only)} matches no row; --list names them", file=sys.stderr)
            return 2
        setting = describe_run(device, subjects, backends, missing)
        ceiling = ceilings(device, args.smoke)
        rows = measure_plan(plan, args, backends, device, ceiling, began, console)
    seconds = time.monotonic() - began
    random = SMALL if args.smoke else FULL
    print_report(console, setting, ceiling, rows, random, seconds)
    path = write_json(args.out, {**setting, "seconds": round(seconds, 1)}, ceiling, rows, random, args.smoke)
    console.print(f"written to {path}", highlight=False, soft_wrap=True)
    failed = any(way.status in ("error", "parity failed") for row in rows for way in row.ways.values())
    return int(failed or any(row.status == "error" for row in rows))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m gpu", description="Measure each graph and a whole video on a GPU, by every installed backend."
    )
    parser.add_argument("--smoke", action="store_true", help="run everything on the CPU at small sizes")
    parser.add_argument("--bundle", type=Path, help="the bundle to measure (default: the demo bundle)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON (default: benchmarks/results)")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="rows to run, e.g. 'full/dit/*'")
    parser.add_argument("--list", action="store_true", help="print the names of the rows and stop")
    parser.add_argument("--ways", default=",".join(WAYS), help="ways to run a row (default: %(default)s)")
    parser.add_argument(
        "--limit-s", type=float, default=480.0, help="skip what has not begun after this many seconds (default: 480)"
    )
    parser.add_argument(
        "--build-limit-s", type=float, default=150.0, help="skip an engine that takes longer to build (default: 150)"
    )
    parser.add_argument("--threads", type=int, help="CPU threads of one operator (default: all; 1 with --smoke)")
    args = parser.parse_args()
    args.ways = args.ways.split(",")
    if unknown := set(args.ways) - set(WAYS):
        parser.error(f"--ways has {', '.join(sorted(unknown))}; known are {', '.join(WAYS)}")
    if args.threads is not None and args.threads < 1:
        parser.error(f"--threads is {args.threads}; it must be 1 or more")
    if args.smoke:
        args.threads = args.threads or 1
        torch.set_num_threads(args.threads)
    return args


class NothingToRunError(RuntimeError):
    """This machine has no GPU, or no backend for it."""


def use_folders_in(folder: Path) -> None:
    """Put the user folders of arlon-rt, which hold the record of engines and TensorRT's timing cache, into ``folder``.

    So a run gains nothing from an earlier one and leaves nothing behind.
    """
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        os.environ[name] = str(folder / name.lower())


def find_device(args: argparse.Namespace, folder: Path) -> tuple[Device, dict[str, Backend], dict[str, str]]:
    """The device, the backends that run on it, and the reasons why the others do not.

    Raises:
        NothingToRunError: the machine has no GPU, or no backend for it.
    """
    if args.smoke:
        gpu = StandInGpu()
        stand_ins: dict[str, Backend] = {flavour: StandInEngines(flavour, gpu) for flavour in FLAVOURS}
        return CpuDevice(gpu), {"onnxruntime": OnnxRuntime("cpu", args.threads), **stand_ins}, {}
    if not torch.cuda.is_available():
        raise NothingToRunError(
            f"torch {torch.__version__} sees no CUDA GPU; run this on a machine with "
            "one and a CUDA build of torch, or on the CPU with --smoke"
        )
    device = CudaDevice()
    backends, missing = find_backends(device.name, folder, args.threads)
    check_any(backends, missing)
    return device, backends, missing


def check_any(backends: Mapping[str, Backend], missing: Mapping[str, str]) -> None:
    """Raise `NothingToRunError`, with all reasons, unless a backend runs on this machine."""
    if not backends:
        reasons = "; ".join(f"{name}: {missing[name]}" for name in BACKENDS)
        raise NothingToRunError(f"none of onnxruntime-gpu, tensorrt and tensorrt-rtx runs on this machine. {reasons}")


def find_subjects(args: argparse.Namespace, folder: Path, device: Device, console: Console) -> list[Subject]:
    """The bundle, and the random modules: full-size ones, or small ones with ``--smoke``. Prints which bundle it is."""
    name, model = ("small", SMALL) if args.smoke else ("full", FULL)
    random = RandomSubject(name, model, folder / name, device.name)
    try:
        bundle = Bundle.open(args.bundle or demo_bundle_path())
        console.print(f"bundle: {bundle.path} ({bundle.hash[:12]})", highlight=False, soft_wrap=True)
    except BundleNotFoundError:
        if args.bundle:
            raise
        if not args.smoke:
            console.print("bundle: the demo bundle is not installed: its rows are skipped; --bundle names another")
            return [random]
        console.print("bundle: the demo bundle is not installed: graphs of small random networks stand in for it")
        return [StandInSubject("bundle", SMALL, folder / "bundle", device.name), random]
    return [BundleSubject(bundle), random]


def make_plan(subjects: Sequence[Subject], only: Sequence[str], ways: Sequence[str]) -> list[Entry]:
    """All rows, or those that match a pattern. The most important ones come first, in case time runs out.

    These are the bundle's graphs and its video in fp16; then the full-size modules; then fp32, and torch.compile of the
    bundle's small graphs.
    """
    plain = tuple(way for way in ways if way not in COMPILED)
    compiled = tuple(way for way in ways if way in COMPILED)
    bundles = [s for s in subjects if s.name == "bundle"]
    small = [Entry(s, graph, precision, plain) for s in bundles for graph, precision in s.rows()]
    videos = [
        Entry(s, VIDEO, p, plain) for s in bundles if isinstance(s, BundleSubject)
        for p in ("fp16", "fp32") if p in s.bundle.precisions
    ]
    full = [Entry(s, g, p, tuple(ways)) for s in subjects if s not in bundles for g, p in s.rows()]
    plan = [
        *(entry for entry in (*small, *videos) if entry.precision == "fp16"), *full,
        *(entry for entry in (*small, *videos) if entry.precision != "fp16"),
        *(replace(entry, ways=compiled) for entry in small if compiled),
    ]
    return [entry for entry in plan if not only or any(fnmatch.fnmatch(entry.name, pattern) for pattern in only)]


def measure_plan(
    plan: Sequence[Entry], args: argparse.Namespace, backends: Mapping[str, Backend], device: Device,
    ceiling: Mapping[str, float], began: float, console: Console,
) -> list[Row | VideoRow]:
    """The measured rows. A failed row is reported, and the next one follows. Past the time limit rows are skipped."""
    effort = Effort(
        warmup=1 if args.smoke else 5, repeats=3 if args.smoke else 30, seconds=1.0 if args.smoke else 4.0,
        small=args.smoke, deadline=began + args.limit_s, build_seconds=args.build_limit_s, threads=args.threads,
    )
    rows: dict[str, Row | VideoRow] = {}
    for entry in plan:
        new = VideoRow(name=entry.name) if entry.graph == VIDEO else Row(name=entry.name)
        row = rows.setdefault(entry.name, new)
        before, started = set(row.ways), time.monotonic()
        if started > effort.deadline:
            skip(row, entry, f"the limit of {args.limit_s:g} s was reached")
            continue
        try:
            if isinstance(row, VideoRow):
                assert isinstance(entry.subject, BundleSubject)
                measure_video(row, entry.subject.bundle, entry.precision, entry.ways, backends, device, effort)
            else:
                measure_row(
                    row, entry.subject, entry.graph, entry.precision, entry.ways, backends, device, ceiling, effort
                )
        except Exception as error:  # one row that fails must not lose the others
            row.status, row.detail = "error", error_text(error)
        states = ", ".join(f"{way} {found.status}" for way, found in row.ways.items() if way not in before)
        line = f"{entry.name}: {time.monotonic() - started:.1f} s; {states or row.detail}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return list(rows.values())


def skip(row: Row | VideoRow, entry: Entry, why: str) -> None:
    """Mark a row as skipped, or the further ways of a row that is measured already."""
    if isinstance(row, Row) and row.ways:
        row.ways |= {way: Measurement(status="skipped", detail=why) for way in entry.ways}
    else:
        row.status, row.detail = "skipped", why


def describe_run(
    device: Device, subjects: Sequence[Subject], backends: Mapping[str, Backend], missing: Mapping[str, str]
) -> dict[str, Any]:
    """What the figures depend on: device, driver, versions, date, command and bundle."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxscript", "numpy")}
    bundles = [s.bundle for s in subjects if isinstance(s, BundleSubject)]
    return {
        **device.describe(), "smoke": device.name == "cpu",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "gpu", *sys.argv[1:]]), "python": sys.version.split()[0],
        "versions": {**versions, **installed_runtimes(), **{f: backends[f].version for f in FLAVOURS if f in backends}},
        "missing": dict(missing), "torch_compile": device.inductor,
        "bundle": bundles[0].hash if bundles else "none",
    }


if __name__ == "__main__":
    sys.exit(main())
