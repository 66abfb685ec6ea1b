"""Each graph through ONNX Runtime on a GPU, beside PyTorch eager and torch.compile of the same module, in one run.

    python benchmarks/gpu.py                          # needs CUDA, torch, onnxruntime-gpu
    python benchmarks/gpu.py --only 'full/ar_*'       # some rows; --list names them all
    python benchmarks/gpu.py --smoke                  # the whole script on a CPU, small: figures mean nothing

**This has not been executed on a GPU yet**; the CPU run goes through everything but CudaDevice and CUDA graphs.

Measured are the graphs of a bundle and those of full-size modules with random weights (STDiT3-XL/2 at 512x512 and 68
frames, the 393 M video autoencoder's 17-frame chunk, the 323 M token model, two layers of T5 XXL), in fp16. Inputs and
outputs lie on the device and caches are updated in place. Parity comes first: the relative error to PyTorch in exact
float32 with the same weights; where it fails, the time is withheld. Then median and range of repeats, as TFLOP/s and
bytes/s beside a matrix product and a device copy measured in the same run.

PyTorch runs with static shapes; the ONNX graphs are dynamic in theirs. PyTorch's token model copies its caches at every
step, as the module is written; ONNX Runtime updates them in place. A time limit ends the run between measurements.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import importlib.metadata
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from gpu_device import CpuDevice, CudaDevice, Device, ceilings
from gpu_models import FULL, SMALL, BundleSubject, RandomSubject, StandInSubject, Subject
from gpu_report import print_report, write_json
from gpu_row import WAYS, Effort, Row, error_text, measure_row
from rich.console import Console

from arlon_rt.backends.ort import installed_runtimes
from arlon_rt.bundle import Bundle, demo_bundle_path
from arlon_rt.errors import ArlonError, BundleNotFoundError

RESULTS = Path(__file__).parent / "results"

Plan = list[tuple[str, Subject, str, str]]
"""(row name, subject, graph, precision)."""


def main() -> int:
    """Run the benchmark; 2 where it cannot begin, 1 where a row failed, else 0."""
    began = time.monotonic()
    args = parse_arguments()
    console = Console(width=None if sys.stdout.isatty() else 180)
    device = open_device(args.smoke)
    if isinstance(device, str):
        print(device, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="arlon-gpu-") as folder:
        try:
            subjects = find_subjects(args, Path(folder), device, console)
        except ArlonError as error:
            print(f"gpu.py: {error}", file=sys.stderr)
            return 2
        plan = make_plan(subjects, args.only)
        if args.list:
            print("\n".join(name for name, *_ in plan))
            return 0
        if not plan:
            print(f"gpu.py: --only {' '.join(args.only)} matches no row; --list names them", file=sys.stderr)
            return 2
        setting = describe(device, subjects)
        ceiling = ceilings(device, args.smoke)
        rows = measure_plan(plan, args, device, ceiling, began, console)
    print_report(console, setting, ceiling, rows)
    path = write_json(args.out, setting, ceiling, rows, args.smoke)
    console.print(f"written to {path}", highlight=False, soft_wrap=True)
    failed = any(w.status in ("error", "parity failed") for r in rows for w in r.ways.values())
    return int(failed or any(r.status == "error" for r in rows))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Each graph through ONNX Runtime and PyTorch on a GPU.")
    parser.add_argument("--smoke", action="store_true", help="run everything on the CPU at small sizes")
    parser.add_argument("--bundle", type=Path, help="the bundle to measure (default: the demo bundle)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON (default: benchmarks/results)")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="rows to run, e.g. 'full/dit/*'")
    parser.add_argument("--list", action="store_true", help="print the names of the rows and stop")
    parser.add_argument("--ways", default=",".join(WAYS), help="ways to run a row (default: %(default)s)")
    parser.add_argument(
        "--limit-s", type=float, default=480.0, help="skip what has not begun after this many seconds (default: 480)"
    )
    parser.add_argument("--threads", type=int, help="CPU threads of an operator (default: all, with --smoke 1)")
    args = parser.parse_args()
    args.ways = args.ways.split(",")
    if unknown := set(args.ways) - set(WAYS):
        parser.error(f"--ways has {', '.join(sorted(unknown))}; known are {', '.join(WAYS)}")
    if args.threads is not None and args.threads < 1:
        parser.error(f"--threads is {args.threads}; it must be 1 or more")
    if args.smoke:
        torch.set_num_threads(args.threads or 1)
    return args


def open_device(smoke: bool) -> Device | str:
    """The device, or why there is none."""
    if smoke:
        return CpuDevice()
    if not torch.cuda.is_available():
        return (
            f"gpu.py: torch {torch.__version__} sees no CUDA GPU; run it where there is one, "
            "with a CUDA build of torch, or run it with --smoke on the CPU"
        )
    if "onnxruntime-gpu" not in (runtimes := installed_runtimes()) or len(runtimes) > 1:
        return (
            f"gpu.py: onnxruntime-gpu alone is needed, installed is {', '.join(runtimes) or 'none'}; "
            'run: pip uninstall onnxruntime, then pip install "arlon-rt[gpu,export]"'
        )
    return CudaDevice()


def find_subjects(args: argparse.Namespace, folder: Path, device: Device, console: Console) -> list[Subject]:
    """The full-size (with ``--smoke`` small) random modules and the bundle; says which bundle that is."""
    name, model = ("small", SMALL) if args.smoke else ("full", FULL)
    subjects: list[Subject] = [RandomSubject(name, model, folder / name, device.name)]
    try:
        bundle = Bundle.open(args.bundle or demo_bundle_path())
        console.print(f"bundle: {bundle.path} ({bundle.hash[:12]})", highlight=False, soft_wrap=True)
    except BundleNotFoundError:
        if args.bundle:
            raise
        if not args.smoke:
            console.print("bundle: the demo bundle is not installed: its rows are left out; --bundle names another")
            return subjects
        console.print("bundle: the demo bundle is not installed: graphs of small random networks stand in for it")
        return [*subjects, StandInSubject("bundle", SMALL, folder / "bundle", device.name)]
    return [*subjects, BundleSubject(bundle)]


def make_plan(subjects: list[Subject], only: list[str]) -> Plan:
    """All rows, or those that match a pattern."""
    plan = [(f"{s.name}/{g}/{p}", s, g, p) for s in subjects for g, p in s.rows()]
    return [row for row in plan if not only or any(fnmatch.fnmatch(row[0], pattern) for pattern in only)]


def measure_plan(
    plan: Plan, args: argparse.Namespace, device: Device, ceiling: dict[str, float], began: float, console: Console
) -> list[Row]:
    """Every row in turn. One that fails says so and the next one follows; past the limit they are skipped."""
    effort = Effort(
        warmup=1 if args.smoke else 5, repeats=3 if args.smoke else 30, seconds=1.0 if args.smoke else 4.0,
        small=args.smoke, deadline=began + args.limit_s, threads=args.threads or (1 if args.smoke else None),
    )
    rows = []
    for name, subject, graph, precision in plan:
        row = Row(name=name)
        rows.append(row)
        if time.monotonic() > effort.deadline:
            row.status, row.detail = "skipped", f"the limit of {args.limit_s:g} s was reached"
            continue
        started = time.monotonic()
        try:
            measure_row(row, subject, graph, precision, args.ways, device, ceiling, effort)
        except Exception as error:  # the other rows are worth having
            row.status, row.detail = "error", error_text(error)
        states = ", ".join(f"{way} {found.status}" for way, found in row.ways.items()) or row.detail
        line = f"{name}: {time.monotonic() - started:.1f} s; {states}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return rows


def describe(device: Device, subjects: list[Subject]) -> dict[str, Any]:
    """What the figures depend on: device, driver, versions, date, command, bundle."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxscript", "numpy")}
    bundles = [s.bundle for s in subjects if isinstance(s, BundleSubject)]
    return {
        **device.describe(), "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]), "python": sys.version.split()[0],
        "versions": {**versions, **installed_runtimes()}, "torch_compile": device.inductor,
        "bundle": bundles[0].hash if bundles else "none",
    }


if __name__ == "__main__":
    sys.exit(main())
