"""Builds one engine: configures TensorRT, compiles the network and writes the file.

network.py says how variables that hold TensorRT's objects are named.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from arlon_engines.errors import BuildError
from arlon_engines.events import EngineProgress, OnEvent
from arlon_engines.flavour import Flavour, open_flavour
from arlon_engines.gate import check_warnings
from arlon_engines.network import Lines, open_log, parse
from arlon_engines.profiles import shape
from arlon_rt.bundle import (
    HEADER_BYTES,
    Bundle,
    EngineEntry,
    EngineHeader,
    EngineProfile,
    Identity,
    encode_header,
    source_hash,
)
from arlon_rt.errors import BundleError, OutputError
from arlon_rt.files import file_sha256, replacing
from arlon_rt.graphs import GraphSpec
from arlon_rt.version import installed_version

EVENT_SECONDS = 0.1
"""The least time between two reports of progress; TensorRT counts thousands of steps."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One engine to build."""

    bundle: Path
    graph: str
    identity: Identity
    profiles: tuple[EngineProfile, ...]
    target: Path


def build_engine(job: Job, on_event: OnEvent) -> EngineEntry:
    """Build one engine and write it to ``job.target``; a failed build leaves no file.

    Raises:
        BuildError: TensorRT rejects the graph, or the parsed network is not what the graph needs.
        OutputError: the engine could not be written.
    """
    begun = time.monotonic()
    bundle, identity = Bundle.open(job.bundle), job.identity
    check_files(bundle, job.graph, identity.precision)
    flavour = open_flavour(identity.flavour)
    trt, lines = flavour.trt, Lines()
    log = open_log(trt, lines)
    builder = trt.Builder(log)
    network, counts = parse(trt, builder, log, lines, bundle, job.graph, identity.precision)
    config = _configuration(flavour, builder, bundle.spec(job.graph), job)
    monitor = _monitor(trt, job, on_event)
    config.progress_monitor = monitor

    def write(file: BinaryIO) -> EngineHeader:
        writer = _writer(trt, file)
        if not builder.build_serialized_network_to_stream(network, config, writer):
            raise BuildError(f"{job.graph}.{identity.precision} for {identity.compute_capability}: {lines.why()}")
        if writer.fault is not None:
            raise writer.fault
        check_warnings(f"{job.graph}.{identity.precision}", lines.warnings)
        return EngineHeader(
            graph=job.graph, identity=identity, source=source_hash(bundle, job.graph, identity.precision),
            plan_bytes=writer.bytes_written, plan_sha256=writer.digest.hexdigest(),
        )

    header = write_engine(job.target, write)
    flavour.save_timings(config, identity.compute_capability)
    return EngineEntry(
        header=header, profiles=job.profiles, layers=counts.layers, wider=counts.wider,
        build_seconds=round(time.monotonic() - begun, 2), arlon_rt=installed_version(),
    )


def write_engine(target: Path, write: Callable[[BinaryIO], EngineHeader]) -> EngineHeader:
    """Write a temporary file, the plan by ``write`` and then its header, and rename it to ``target``.

    Raises:
        OutputError: the disk is full or the folder cannot be written; ``target`` is unchanged.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as file:
            file.seek(HEADER_BYTES)
            header = write(file)
            file.seek(0)
            file.write(encode_header(header))
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror or error}; no part of it was kept") from error
    return header


def check_files(bundle: Bundle, graph: str, precision: str) -> None:
    """Check the hashes of the graph's files: the engine's header takes them from the manifest."""
    entry = bundle.graph(graph, precision)
    for name in (entry.file, *entry.data):
        if file_sha256(bundle.file(name)) != bundle.manifest.files[name].sha256:
            raise BundleError(
                f"{name} is not the file that the manifest lists; run `arlon-rt verify {bundle.path}`"
            )


def _configuration(flavour: Flavour, builder: Any, spec: GraphSpec, job: Job) -> Any:
    trt, gpu = flavour.trt, job.identity.compute_capability
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and less exact than the float32 that a graph asks for
    if job.identity.weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    flavour.set_gpu(config, gpu)
    for ranges in job.profiles:
        config.add_optimization_profile(_profile(builder, spec, ranges))
    flavour.load_timings(config, gpu)
    return config


def _profile(builder: Any, spec: GraphSpec, ranges: EngineProfile) -> Any:
    profile = builder.create_optimization_profile()
    for tensor in spec.inputs:
        low, best, high = (shape(tensor, ranges, bound) for bound in ("min", "opt", "max"))
        profile.set_shape(tensor.name, low, best, high)
    return profile


def _writer(trt: Any, file: BinaryIO) -> Any:
    """An IStreamWriter to ``file`` that keeps an error of `write` for the caller to raise.

    TensorRT for RTX 1.7 reports success whatever `write` returns, and only prints an exception.
    """
    class Writer(trt.IStreamWriter):  # type: ignore[misc]  # the bindings are not typed
        def __init__(self) -> None:
            super().__init__()
            self.digest = hashlib.sha256()
            self.bytes_written = 0
            self.fault: OSError | None = None

        def write(self, data: bytes) -> int:
            try:
                file.write(data)
                file.flush()
            except OSError as error:
                self.fault = error
                return 0
            self.digest.update(data)
            self.bytes_written += len(data)
            return len(data)

    return Writer()


def _monitor(trt: Any, job: Job, on_event: OnEvent) -> Any:
    """An IProgressMonitor that reports TensorRT's present phase."""
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the bindings are not typed
        def __init__(self) -> None:
            super().__init__()
            self.totals: dict[str, int] = {}
            self.reported = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.totals[phase_name] = num_steps

        def phase_finish(self, phase_name: str) -> None:
            self.totals.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if time.monotonic() - self.reported < EVENT_SECONDS:
                return True
            self.reported = time.monotonic()
            try:
                on_event(EngineProgress(
                    graph=job.graph, identity=job.identity, phase=phase_name, done=step + 1,
                    total=self.totals.get(phase_name, step + 1),
                ))
            except BrokenPipeError:   # the process that wanted the engine has ended
                return False
            return True

    return Monitor()
