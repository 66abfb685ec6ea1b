"""``arlon-rt doctor``: check this machine, and name the command that installs what is missing.

It imports no backend but ONNX Runtime.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from arlon_rt.bundle import Bundle, demo_bundle_path
from arlon_rt.cli.arguments import open_bundle
from arlon_rt.errors import ArlonError, BackendError, BundleError, OptionsError
from arlon_rt.graphs import graph_specs
from arlon_rt.version import installed_version

if TYPE_CHECKING:
    from arlon_rt.backends.ort import Placement

OLDEST_PYTHON = (3, 11)
OLDEST_RUNTIME = (1, 31)
"""The first ONNX Runtime on whose opset-24 cache and attention operators the tests run."""

REQUIRED = ("numpy", "sentencepiece", "av", "rich", "safetensors", "ftfy", "filelock", "platformdirs")
"""Distributions and their modules. Without one of them no video can be generated."""
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version"), Path("/dev/dxg")
"""One of these paths exists if Linux, or Linux in Windows, has an NVIDIA GPU with its driver."""


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    status: Literal["ok", "warning", "error"]
    """``warning``: this machine could do more. ``error``: no video can be generated until it is repaired."""
    message: str
    command: str | None = None
    """The command that repairs it."""


def examine() -> list[Check]:
    """The checks of Python, the packages, ONNX Runtime, the devices and the demo bundle."""
    return [
        check_python(sys.version_info[:3]),
        *map(check_package, REQUIRED),
        *check_runtime(),
        check_demo_bundle(demo_bundle_path),
    ]


def check_python(version: tuple[int, ...]) -> Check:
    """Whether Python is new enough; the message also names the machine."""
    message = f"{'.'.join(map(str, version))} on {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    if version[:2] < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        return Check("python", "error", f"{message}; {oldest} or newer is needed")
    return Check("python", "ok", message)


def check_package(name: str) -> Check:
    """Whether a package that every installation needs is installed; its module has the same name."""
    if importlib.util.find_spec(name) is None:
        return Check(name, "error", "not installed", f"pip install {name}")
    return Check(name, "ok", installed_version(name))


def check_runtime() -> list[Check]:
    """The checks of the installed ONNX Runtime and of the devices it can use."""
    from arlon_rt.backends.ort import available_providers, installed_runtimes

    found = installed_runtimes()
    checks = [check_runtimes(found)]
    if found:
        try:
            checks.append(check_devices(found, available_providers(), has_gpu=any(p.exists() for p in NVIDIA_DRIVER)))
        except ArlonError as error:
            checks.append(Check("devices", "error", str(error), _INSTALL_RUNTIME))
    return checks


def check_runtimes(found: Mapping[str, str]) -> Check:
    """Whether one ONNX Runtime alone is installed, and is new enough; ``found``: distribution -> version."""
    listed = ", ".join(f"{name} {version}" for name, version in found.items())
    if not found:
        return Check("onnxruntime", "error", "not installed", _INSTALL_RUNTIME)
    if len(found) > 1:
        extra = "gpu" if "onnxruntime-gpu" in found else "cpu"
        return Check(
            "onnxruntime", "error",
            f"{listed} are installed together; they share one folder and overwrite each other",
            f'pip uninstall -y {" ".join(found)} && pip install "arlon-rt[{extra}]"',
        )
    ((name, version),) = found.items()
    if _release(version) < OLDEST_RUNTIME:
        oldest = ".".join(map(str, OLDEST_RUNTIME))
        repair = f'pip install "{name}>={oldest}"'
        return Check("onnxruntime", "error", f"{listed}; {oldest} or newer is needed", repair)
    return Check("onnxruntime", "ok", listed)


def check_devices(found: Mapping[str, str], providers: Sequence[str], *, has_gpu: bool) -> Check:
    """Which devices ``--device`` may name: those that ONNX Runtime was built for and the machine has."""
    gpu = "an NVIDIA GPU" if has_gpu else "no NVIDIA GPU"
    if "CUDAExecutionProvider" in providers:
        devices = "cpu, cuda" if has_gpu else "cpu"
        return Check("devices", "ok", f"{devices} ({gpu}; ONNX Runtime has CUDA)")
    if has_gpu or "onnxruntime-gpu" in found:
        repair = f'pip uninstall -y {" ".join(found)} && pip install "arlon-rt[gpu]"'
        return Check("devices", "warning", f"cpu ({gpu}; {', '.join(found)} has no CUDA)", repair)
    return Check("devices", "ok", f"cpu ({gpu})")


def check_demo_bundle(find: Callable[[], Path]) -> Check:
    """Whether the bundle that is used when none is named opens, and every file has its hash."""
    try:
        path = find()
        errors = [f for f in Bundle.open(path).verify() if f.severity == "error"]
    except BundleError as error:
        return Check("demo bundle", "error", str(error), _REINSTALL)
    if errors:
        message = f"{path} has {len(errors)} faults, the first: {errors[0].where}: {errors[0].message}"
        return Check("demo bundle", "error", message, _REINSTALL)
    return Check("demo bundle", "ok", f"{path}, verified")


def check_graphs(bundle: Bundle, device: str) -> list[Check]:
    """How long each graph of ``bundle`` takes in ONNX Runtime on ``device``, in the device's default precision.

    A node that moves much data on the CPU is named in a warning. A fault that all graphs share is listed once.
    """
    from arlon_rt.backends.ort import place_graph, providers_of
    from arlon_rt.networks import usual_precision

    try:
        providers_of(device)
    except BackendError as error:
        return [Check(device, "error", str(error), _INSTALL_CUDA)]
    precision = usual_precision(bundle, device)
    checks: list[Check] = []
    faults = set()
    for graph in graph_specs(bundle.model):
        try:
            checks.append(check_placement(place_graph(bundle, graph, device=device, precision=precision)))
        except ArlonError as error:
            fault = str(error).replace(graph, "")
            if fault not in faults:
                faults.add(fault)
                repair = _CUDA_LIBRARIES if isinstance(error, BackendError) and device != "cpu" else None
                checks.append(Check(graph, "error", str(error), repair))
    return checks


def check_placement(placement: Placement) -> Check:
    """How long a graph ran, and which of its nodes ran on the CPU."""
    on_gpu = sum(node.on_gpu for node in placement.nodes)
    large = ", ".join(f"{node.name} ({node.op}, {node.bytes / 1024:.1f} KB)" for node in placement.large_on_cpu)
    message = (
        f"{placement.precision}, {placement.milliseconds:.2f} ms, {on_gpu} nodes on the GPU, "
        f"{len(placement.nodes) - on_gpu} on the CPU; of those over 4 KB: {large or 'none'}"
    )
    return Check(placement.graph, "warning" if large else "ok", message)


_INSTALL_RUNTIME = 'pip install "arlon-rt[cpu]"   # with an NVIDIA GPU: "arlon-rt[gpu]"'
_INSTALL_CUDA = 'pip uninstall -y onnxruntime && pip install "arlon-rt[gpu]"   # on a machine with an NVIDIA GPU'
_CUDA_LIBRARIES = 'pip install "onnxruntime-gpu[cuda,cudnn]"   # the driver is the system\'s; nvidia-smi shows it'
_REINSTALL = "pip install --force-reinstall --no-deps arlon-rt"


def _release(version: str) -> tuple[int, ...]:
    """(major, minor) of a version, or (0, 0) if it has another form."""
    parts = version.split(".")[:2]
    return tuple(int(p) for p in parts) if len(parts) == 2 and all(p.isdigit() for p in parts) else (0, 0)


class Doctor:
    """The command; see `arlon_rt.cli.main.Command`."""

    help = "Check this machine: what it can run, and the command that installs what is missing."

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object (default: off)")
        parser.add_argument(
            "--gpu", action="store_true",
            help="also run every graph with ONNX Runtime on CUDA: how long each takes, and which nodes stay on the CPU "
                 "with more than 4 KB (default: off)",
        )
        parser.add_argument(
            "--bundle", type=Path, metavar="DIR", help="the bundle whose graphs --gpu runs (default: the demo model)"
        )

    def run(self, args: argparse.Namespace) -> int:
        if args.bundle is not None and not args.gpu:
            raise OptionsError(f"bundle is {str(args.bundle)!r}, but without --gpu no graph runs; add --gpu")
        checks = examine()
        if args.gpu:
            checks += check_graphs(open_bundle(args), "cuda")
        if args.json:
            print(json.dumps([dataclasses.asdict(check) for check in checks], ensure_ascii=False, indent=2))
        else:
            width = max(len(check.name) for check in checks)
            for check in checks:
                print(f"{check.status:<7}  {check.name:<{width}}  {check.message}")
                if check.command:
                    print(f"{'':<7}  {'':<{width}}  -> {check.command}")
        return 1 if any(check.status == "error" for check in checks) else 0


doctor = Doctor()
