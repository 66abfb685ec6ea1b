"""One row: a graph at one size and precision, run in every way. Parity comes first, then the time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from arlon_export.onnx_graphs.feeds import numpy_dtype
from arlon_rt.backends import Looping
from arlon_rt.networks import AT_ONCE
from gpu.backends import Backend, BuildTimeout
from gpu.cost import count_bytes, count_flops
from gpu.device import Call, Device
from gpu.models import Case, Subject
from gpu.parity import EAGER_FACTOR, TOLERANCE, graph_sizes, largest_error, make_feed, reference_outputs
from gpu.runners import Array, BoundSession, Feed, Runner, ShippedSession, TorchModule

WAYS = ("eager", "session", "bound", "ort-graph", "tensorrt", "tensorrt-rtx", "compile", "compile-graph")
"""Ways to run a row: PyTorch eager; arlon_rt's session of ONNX Runtime; ONNX Runtime bound once, and as a CUDA graph;
arlon_rt's sessions of both TensorRTs; torch.compile, and as a CUDA graph."""

COMPILED = ("compile", "compile-graph")

BACKEND_OF = {
    "session": "onnxruntime", "bound": "onnxruntime", "ort-graph": "onnxruntime",
    "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx",
}
"""Way -> the backend of arlon_rt that it needs. The other ways need only torch."""

GRAPHED = ("ar_step",)
"""Graphs that are run as CUDA graphs, because they are so short that launching takes most of their time."""

MIN_REPEATS = 3

COMPILE_SECONDS = 60.0
"""Seconds that torch.compile may need for a full-size graph."""

CAPTURE_CALLS = 4
"""Calls before the outputs of a CUDA graph are compared: the first ones run and capture, the last one replays."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long and at which sizes to measure."""

    warmup: int
    repeats: int
    seconds: float
    """A measurement ends after this time, but not before `MIN_REPEATS`."""
    small: bool
    """Whether to use small sizes in place of the ``opt`` sizes of graphs.py."""
    deadline: float
    """On time.monotonic. A measurement that has not begun by then is skipped."""
    build_seconds: float
    """An engine that takes longer to build is skipped."""
    threads: int | None
    """CPU threads of one operator of ONNX Runtime."""


@dataclass(kw_only=True)
class Measurement:
    """One way of running one row."""

    status: str
    """``ok``, ``parity failed``, ``error`` or ``skipped``."""
    detail: str = ""
    relative_error: float | None = None
    """To PyTorch in exact float32."""
    relative_error_to_eager: float | None = None
    """To PyTorch eager in the same precision."""
    tolerance: float | None = None
    build_seconds: float | None = None
    """Time to build its engine, which happens once."""
    open_seconds: float | None = None
    """Time to the first result, which every start takes: loading, optimising, compiling."""
    median_ms: float | None = None
    min_ms: float | None = None
    max_ms: float | None = None
    repeats: int = 0
    tflop_s: float | None = None
    product_fraction: float | None = None
    """``tflop_s`` as a part of the measured matrix product in this precision."""
    gb_s: float | None = None
    copy_fraction: float | None = None
    """``gb_s`` as a part of the measured device copy."""
    tokens_s: float | None = None
    """Tokens a second with one run for each token, as in the times above."""
    loop_tokens_s: float | None = None
    """Tokens a second with `AT_ONCE` tokens in a loop on the device, if the backend has one."""


@dataclass(kw_only=True)
class Row:
    """The figures of one graph at one size and precision."""

    name: str
    status: str = "ok"
    """``ok``, ``error`` (no way could be tried) or ``skipped``. Each way has a status of its own."""
    detail: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)
    tflop: float | None = None
    """Floating-point operations of one run, in 10^12."""
    gbytes: float | None = None
    """Bytes that one run must move, in 10^9."""
    nodes: Mapping[str, int] = field(default_factory=dict)
    """Execution provider of ONNX Runtime -> number of its nodes. Nodes on the CPU of a GPU run cost copies."""
    prepare_seconds: float | None = None
    """Time to draw or load the weights, and to export."""
    ways: dict[str, Measurement] = field(default_factory=dict)


def measure_row(
    row: Row, subject: Subject, graph: str, precision: str, ways: Sequence[str], backends: Mapping[str, Backend],
    device: Device, ceiling: Mapping[str, float], effort: Effort,
) -> None:
    """Measure ``row`` in each way that runs on this machine. A failure of one way is kept as its measurement."""
    began = time.perf_counter()
    case = subject.case(graph, precision)
    row.prepare_seconds = time.perf_counter() - began
    row.sizes = graph_sizes(subject.model, case.spec, small=effort.small)
    feed = make_feed(subject.model, case.spec, row.sizes, precision)
    row.tflop = count_flops(subject.model, case, row.sizes) / 1e12
    reference = reference_outputs(case, feed, device)
    row.gbytes = count_bytes(case, feed, reference) / 1e9
    eager: dict[str, Array] = {}
    for way in WAYS:
        backend = backends.get(BACKEND_OF.get(way, ""))
        if way not in ways or (way in BACKEND_OF and not backend) or (way.endswith("-graph") and graph not in GRAPHED):
            continue
        device.release()
        row.ways[way] = _measure(way, backend, case, feed, reference, eager, row, device, effort)
        _rate(row.ways[way], row, case, ceiling)
    device.release()


def _measure(
    way: str, backend: Backend | None, case: Case, feed: Feed, reference: Feed, eager: dict[str, Array], row: Row,
    device: Device, effort: Effort,
) -> Measurement:
    if time.monotonic() > effort.deadline:
        return Measurement(status="skipped", detail="time limit")
    if way in COMPILED and time.monotonic() > effort.deadline - COMPILE_SECONDS and not effort.small:
        return Measurement(status="skipped", detail="too near to the time limit for a compilation, which nothing ends")
    if way == "ort-graph" and device.name == "cpu":
        return Measurement(status="skipped", detail="a CUDA graph needs CUDA")
    runner: Runner | None = None
    try:
        built = None
        if backend:
            limit = min(effort.deadline, time.monotonic() + effort.build_seconds)
            built = backend.build(case.bundle, [case.spec.name], case.precision, limit)
        began = time.perf_counter()
        runner = _open(way, backend, case, feed, reference, device, effort)
        for _ in range(CAPTURE_CALLS if way.endswith("-graph") else 1):
            runner()
        outputs = runner.outputs()
        found = _verdict(case, feed, outputs, reference, eager, row, device)
        found.open_seconds, found.build_seconds = time.perf_counter() - began, built
        if isinstance(runner, BoundSession) and not row.nodes:
            row.nodes = runner.nodes()
        if way == "eager":
            eager.update(outputs)
        if found.status == "ok":
            _time(found, runner, device, effort)
            if isinstance(runner, ShippedSession) and isinstance(runner.session, Looping) and case.spec.name in GRAPHED:
                found.loop_tokens_s = 1e3 * AT_ONCE / _median(runner.write_tokens, device, effort)
        return found
    except BuildTimeout as error:
        return Measurement(status="skipped", detail=str(error))
    except Exception as error:  # one way that fails must not lose the others
        return Measurement(status="error", detail=error_text(error))
    finally:
        if runner is not None:
            runner.close()


def _open(
    way: str, backend: Backend | None, case: Case, feed: Feed, reference: Feed, device: Device, effort: Effort
) -> Runner:
    if backend and way in ("session", "tensorrt", "tensorrt-rtx"):
        graph = case.spec.name
        return ShippedSession(backend.open(case.bundle, [graph], case.precision)[graph], feed)
    if way in ("bound", "ort-graph"):
        half = case.precision == "fp16"
        like = {t.name: reference[t.name].astype(numpy_dtype(t, half)) for t in case.spec.outputs}
        return BoundSession(case, feed, device, effort.threads, like, cuda_graph=way == "ort-graph")
    options: dict[str, Any] | None = None
    if way.startswith("compile"):
        options = {"backend": device.inductor}
        if way == "compile-graph" and device.inductor == "inductor":
            options["mode"] = "reduce-overhead"
    return TorchModule(case.spec, case.network, feed, device, options=options)


def _verdict(
    case: Case, feed: Feed, outputs: Feed, reference: Feed, eager: Feed, row: Row, device: Device
) -> Measurement:
    tolerance = TOLERANCE[case.precision, device.name]
    judge = row.ways.get("eager")
    if case.precision == "fp16" and judge and judge.status == "ok" and judge.relative_error is not None:
        tolerance = max(tolerance, EAGER_FACTOR * judge.relative_error)
    error = largest_error(case.spec, feed, outputs, reference)
    to_eager = largest_error(case.spec, feed, outputs, eager) if eager else None
    found = Measurement(
        status="ok", relative_error=error if math.isfinite(error) else None, tolerance=tolerance,
        relative_error_to_eager=to_eager if to_eager is not None and math.isfinite(to_eager) else None,
    )
    if error > tolerance:
        found.status = "parity failed"
        found.detail = f"relative error {error:.1e} exceeds {tolerance:.1e}; the time is withheld"
    return found


def _time(found: Measurement, runner: Runner, device: Device, effort: Effort) -> None:
    samples = _samples(runner, device, effort)
    found.median_ms, found.min_ms, found.max_ms = statistics.median(samples), min(samples), max(samples)
    found.repeats = len(samples)


def _samples(call: Call, device: Device, effort: Effort) -> list[float]:
    """Milliseconds of each repeat."""
    for _ in range(effort.warmup):
        call()
    samples: list[float] = []
    end = time.monotonic() + effort.seconds
    while len(samples) < effort.repeats and (len(samples) < MIN_REPEATS or time.monotonic() < end):
        samples.append(device.milliseconds(call))
    return samples


def _median(call: Call, device: Device, effort: Effort) -> float:
    return statistics.median(_samples(call, device, effort))


def _rate(found: Measurement, row: Row, case: Case, ceiling: Mapping[str, float]) -> None:
    """Add rates, and their parts of the ceilings, to a measurement with a time."""
    if found.median_ms is None or row.tflop is None or row.gbytes is None:
        return
    found.tflop_s = 1e3 * row.tflop / found.median_ms
    found.product_fraction = found.tflop_s / ceiling[case.precision]
    found.gb_s = 1e3 * row.gbytes / found.median_ms
    found.copy_fraction = found.gb_s / ceiling["copy_gb_s"]
    if case.spec.name == "ar_step":
        found.tokens_s = 1e3 / found.median_ms


def error_text(error: Exception) -> str:
    """The kind and message of an error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
