"""Sessions from the engines of a bundle: which engine fits this GPU, whether it may be loaded, and when it is."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from arlon_rt.backends.device import compute_capability, device_parts
from arlon_rt.backends.session import Session, numpy_dtype
from arlon_rt.backends.trt.library import import_tensorrt
from arlon_rt.backends.trt.residency import RESIDENT, OffloadableSession, Residency
from arlon_rt.backends.trt.session import Gpu, TrtSession
from arlon_rt.bundle import (
    ANY_SIZE,
    Bundle,
    Flavour,
    Identity,
    build_command,
    engine_stores,
    find_engine,
    find_entry,
    read_header,
    read_plan,
)
from arlon_rt.errors import BackendError, EngineError
from arlon_rt.graphs import FLOAT_DTYPE
from arlon_rt.memory import Budget, check_fits, plan_for, remember


def open_engines(
    bundle: Bundle, graphs: Iterable[str], *, flavour: Flavour, device: str, precision: str, trust: bool,
    budget: Budget | None = None,
) -> Iterator[Session]:
    """A session for each graph, of its engine. The sessions share one GPU and keep to the budget of its memory.

    Engines are loaded at once. If the plan for the budget offloads a graph, each is loaded when it first runs.

    Raises:
        EngineError: a graph has no engine that fits and may be loaded; the message has the command that builds it.
        BudgetError: the model does not fit the budget.
        BackendError: the GPU or TensorRT cannot be used.
    """
    if precision not in FLOAT_DTYPE:
        raise BackendError(f"precision is {precision!r}; backend {flavour} runs {', '.join(FLOAT_DTYPE)}")
    kind, number = device_parts(device)
    if kind != "cuda":
        raise BackendError(f"device is {device!r}; TensorRT needs 'cuda' or 'cuda:N'")
    required = Identity(
        flavour=flavour, version=import_tensorrt(flavour).__version__, compute_capability=compute_capability(number),
        precision=precision,
    )
    gpu = Gpu.open(flavour, number)

    def found(graph: str) -> Path:
        return find_engine(bundle, graph, best_built(bundle, graph, required), trust)

    if budget is None:
        yield from (_loader(gpu, bundle, graph, found(graph))() for graph in graphs)
        return
    paths = {graph: found(graph) for graph in graphs}
    engines = {graph: find_entry(bundle, path) for graph, path in paths.items()}
    plan = plan_for(bundle, budget.demand, precision, budget.size, engines)
    check_fits(bundle, plan, engines)
    gpu.one_lane = plan.one_arena
    streamed = {g.graph: g.on_device for g in plan.graphs if g.streamed}
    paths |= _streaming_engines(bundle, {graph: engines[graph].header.identity for graph in streamed}, trust)
    residency = Residency(gpu.trim)
    planned = {g.graph for g in plan.graphs}
    for graph, path in paths.items():
        load = _loader(gpu, bundle, graph, path, streamed.get(graph))
        if graph in planned and not plan.offloaded_peaks:
            yield load()
            continue
        group = graph if graph in plan.offloaded_peaks else RESIDENT
        dtype = numpy_dtype(FLOAT_DTYPE[precision])
        yield OffloadableSession(bundle.spec(graph), dtype, residency, group, load)


def _streaming_engines(bundle: Bundle, identities: Mapping[str, Identity], trust: bool) -> dict[str, Path]:
    """For each graph the engine that can stream its weights and has the same identity otherwise."""
    paths, missing = {}, []
    for graph, identity in identities.items():
        try:
            paths[graph] = find_engine(bundle, graph, dataclasses.replace(identity, weight_streaming=True), trust)
        except EngineError as error:
            missing.append((graph, error))
    if missing:
        graphs = ",".join(graph for graph, _ in missing)
        streaming = dataclasses.replace(identities[missing[0][0]], weight_streaming=True)
        raise EngineError(
            f"to keep to vram_budget, {graphs} must stream weights, but {missing[0][1]}; build all that are missing: "
            f"`{build_command(bundle, graphs, streaming)}`"
        )
    return paths


def _loader(
    gpu: Gpu, bundle: Bundle, graph: str, path: Path, weights_on_device: int | None = None
) -> Callable[[], TrtSession]:
    """A function that loads an engine that `find_engine` found, and records its activations."""
    header, checked = read_header(path), os.stat(path)

    def load() -> TrtSession:
        now = os.stat(path)
        if (now.st_ino, now.st_size, now.st_mtime_ns) != (checked.st_ino, checked.st_size, checked.st_mtime_ns):
            raise EngineError(f"{path} was replaced since it was checked; open the pipeline again")
        spec = bundle.spec(graph)
        session = gpu.session(read_plan(path), spec, header.identity.precision, weights_on_device=weights_on_device)
        remember(header.plan_sha256, session.activations)
        return session

    return load


def best_built(bundle: Bundle, graph: str, required: Identity) -> Identity:
    """The identity of the best engine built for this GPU: one for any size first, then the one for most sizes; resident
    weights before streamed ones. ``required`` where no engine fits it."""
    built = [
        entry.header.identity for store in engine_stores(bundle) for entry in store.index().engines
        if entry.header.graph == graph
        and dataclasses.replace(entry.header.identity, profile=required.profile, weight_streaming=False) == required
    ]
    return max(built, default=required, key=lambda identity: (
        identity.profile == ANY_SIZE, identity.profile.count("_"), identity.profile, not identity.weight_streaming
    ))
