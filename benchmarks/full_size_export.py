"""Export networks of the published sizes from random weights: time, peak memory, disk, and the speed of `verify`.

    python benchmarks/full_size_export.py --folder BIG_DISK/full-size

It needs about 40 GB in that folder, which it deletes at the end; ``--keep`` keeps the weights and the bundle.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
from full_size_weights import FULL_SIZE, published, write_folder
from machine import machine

from arlon_export.checkpoints.published import read_published
from arlon_export.onnx_graphs.check import check_graph
from arlon_rt.bundle import Bundle

SAMPLE_SECONDS = 0.1
PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "safetensors", "numpy")
RESULTS = Path(__file__).parent / "results"


class Measured:
    """A child process that has ended: its wall time, and the largest memory of each kind in its status file."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.peaks = {"VmHWM": 0, "RssAnon": 0, "RssFile": 0}
        start = time.perf_counter()
        with log.open("w") as output:
            child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            watcher = threading.Thread(target=self._watch, args=(child,))
            watcher.start()
            self.code = child.wait()
            watcher.join()
        self.seconds = time.perf_counter() - start

    def _watch(self, child: subprocess.Popen[bytes]) -> None:
        while child.poll() is None:
            try:
                lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
            except OSError:
                return
            for line in lines:
                name, _, value = line.partition(":")
                if name in self.peaks and value.endswith("kB"):
                    self.peaks[name] = max(self.peaks[name], int(value.split()[0]) * 1024)
            time.sleep(SAMPLE_SECONDS)

    def figures(self) -> dict[str, Any]:
        peaks = {f"peak_{name}_gb": round(value / 1e9, 3) for name, value in self.peaks.items()}
        return {"seconds": round(self.seconds, 1), **peaks}


def main() -> int:
    args = arguments()
    folder: Path = args.folder
    folder.mkdir(parents=True, exist_ok=True)
    result = machine(*PACKAGES) | {"command": " ".join(["python", "benchmarks/full_size_export.py", *sys.argv[1:]])}
    try:
        result["weights"], options = make_weights(folder / "weights")
        bundle = folder / "full.bundle"
        command = [sys.executable, "-m", "arlon_rt.cli", "export", *options, "-o", str(bundle)]
        command += ["--precision", args.precision]
        exported = Measured(command, folder / "export.log")
        log = (folder / "export.log").read_text()
        print(log, flush=True)
        if exported.code:
            return exported.code
        result["export"] = exported.figures() | {"precision": args.precision, "log": log.splitlines()}
        result["disk_gb"] = {name: round(size(folder / name) / 1e9, 2) for name in ("weights", "full.bundle")}
        verified = Measured([sys.executable, "-m", "arlon_rt.cli", "verify", str(bundle)], folder / "verify.log")
        speed = round(size(bundle) / 1e9 / verified.seconds, 2)
        result["verify"] = verified.figures() | {"code": verified.code, "gb_per_second": speed}
        if args.full_depth:
            result["dit_at_full_depth"] = full_depth(folder / "weights", bundle)
        write(result, args.out)
    finally:
        if not args.keep:
            shutil.rmtree(folder)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="a new folder on a disk with 40 GB free")
    parser.add_argument("--precision", default="fp32,fp16", help="as for arlon-rt export (default: fp32,fp16)")
    parser.add_argument("--full-depth", action="store_true", help="also compare the whole fp32 transformer with torch")
    parser.add_argument("--keep", action="store_true", help="keep the weights and the bundle")
    parser.add_argument("--out", type=Path, default=RESULTS / "full_size_export.json")
    return parser.parse_args()


def make_weights(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Write every network. Returns the figures, and the options that name the networks to ``arlon-rt export``."""
    figures: dict[str, Any] = {}
    options: list[str] = []
    for weights in published(FULL_SIZE):
        start = time.perf_counter()
        place = folder / weights.network
        written = write_folder(weights, place, theta=FULL_SIZE.dit.rope_theta)
        figures[weights.network] = {
            "parameters": weights.parameters, "dtype": str(weights.dtype).removeprefix("torch."),
            "gb": round(written / 1e9, 3), "seconds": round(time.perf_counter() - start, 1),
        }
        print(weights.network, figures[weights.network], flush=True)
        options += [weights.option, str(place)]
    (folder / "text" / "spiece.model").write_bytes(b"stands in for T5's tokenizer, which the export copies")
    return figures, options


def full_depth(weights: Path, bundle: Path) -> dict[str, Any]:
    """The errors of one step of the fp32 transformer of all 28 block pairs, at small resolutions, against torch."""
    start = time.perf_counter()
    network = read_published(
        dit=weights / "dit", vae=weights / "vae", text_encoder=weights / "text", ar=weights / "ar", vq=weights / "vq",
        injection=weights / "injection",
    ).network("dit")
    opened = Bundle.open(bundle)
    names = network.tensors.keys() & ir.load(opened.graph_file("dit", "fp32")).graph.initializers.keys()
    agreement = check_graph(opened, opened.spec("dit"), network.loaded(names), "fp32")
    return {"relative_errors": dict(agreement.errors), "seconds": round(time.perf_counter() - start, 1)}


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write(result: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {out}")


if __name__ == "__main__":
    sys.exit(main())
