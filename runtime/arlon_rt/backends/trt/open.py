"""From the engines of a bundle to sessions: which engine fits this GPU, that it may be loaded, and when it is."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from arlon_rt.backends.device import compute_capability, device_number
from arlon_rt.backends.session import Session, numpy_dtype
from arlon_rt.backends.trt.library import import_tensorrt
from arlon_rt.backends.trt.residency import TOGETHER, PassingSession, Room
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
    """A session of each graph's engine, for the sessions to share one GPU, within a budget of its memory.

    Raises:
        EngineError: there is no engine that fits and may be loaded; the message has the command that builds it.
        BudgetError: the budget does not hold the model.
        BackendError: the GPU or TensorRT cannot be used.
    """
    if precision not in FLOAT_DTYPE:
        raise BackendError(f"precision is {precision!r}; backend {flavour} runs {', '.join(FLOAT_DTYPE)}")
    number = device_number(device)
    here = Identity(
        flavour=flavour, version=import_tensorrt(flavour).__version__, compute_capability=compute_capability(number),
        precision=precision,
    )
    gpu = Gpu.open(flavour, number)
    if budget is None:
        for graph in graphs:
            yield _loading(gpu, bundle, graph, find_engine(bundle, graph, built_for(bundle, graph, here), trust))()
        return
    yield from _within(budget, gpu, bundle, list(graphs), here, trust)


def _within(
    budget: Budget, gpu: Gpu, bundle: Bundle, graphs: list[str], here: Identity, trust: bool
) -> Iterator[Session]:
    """Sessions that are loaded as a plan has it: all at once where none has to pass."""
    paths = {graph: find_engine(bundle, graph, built_for(bundle, graph, here), trust) for graph in graphs}
    engines = {graph: find_entry(bundle, path) for graph, path in paths.items()}
    plan = plan_for(bundle, budget.demand, here.precision, budget.size, engines)
    check_fits(bundle, plan, engines)
    gpu.one_lane = plan.one_arena
    streaming = {g.graph: engines[g.graph].header.identity for g in plan.graphs if g.streams}
    paths |= _streaming_engines(bundle, streaming, trust)
    room = Room(gpu.trim) if plan.alone else None
    shares = {share.graph: share for share in plan.graphs}
    for graph in graphs:
        share = shares.get(graph)
        load = _loading(gpu, bundle, graph, paths[graph], share.on_device if share and share.streams else None)
        if room is None and share is not None:
            yield load()
            continue
        party = graph if share is not None and share.way == "passes" else TOGETHER
        dtype = numpy_dtype(FLOAT_DTYPE[here.precision])
        yield PassingSession(bundle.spec(graph), dtype, room or Room(gpu.trim), party, load)


def _streaming_engines(bundle: Bundle, identities: Mapping[str, Identity], trust: bool) -> dict[str, Path]:
    """The engine of each graph, as another that is there but for its weights, which can be streamed.

    Raises:
        EngineError: some have none; the message has the command that builds all of them.
    """
    paths, lacking = {}, []
    for graph, identity in identities.items():
        try:
            paths[graph] = find_engine(bundle, graph, dataclasses.replace(identity, weight_streaming=True), trust)
        except EngineError as error:
            lacking.append((graph, error))
    if lacking:
        graphs = ",".join(graph for graph, _ in lacking)
        streaming = dataclasses.replace(identities[lacking[0][0]], weight_streaming=True)
        raise EngineError(
            f"vram_budget asks {graphs} to stream weights, but {lacking[0][1]}; all that are needed: "
            f"`{build_command(bundle, graphs, streaming)}`"
        )
    return paths


def _loading(
    gpu: Gpu, bundle: Bundle, graph: str, path: Path, weights_on_device: int | None = None
) -> Callable[[], TrtSession]:
    """What loads an engine that `find_engine` gave, as often as it is called, and notes what it asks for."""
    header, found = read_header(path), os.stat(path)

    def load() -> TrtSession:
        now = os.stat(path)
        if (now.st_ino, now.st_size, now.st_mtime_ns) != (found.st_ino, found.st_size, found.st_mtime_ns):
            raise EngineError(f"{path} was replaced since it was checked; open the pipeline again")
        spec = bundle.spec(graph)
        session = gpu.session(read_plan(path), spec, header.identity.precision, weights_on_device=weights_on_device)
        remember(header.plan_sha256, session.activations)
        return session

    return load


def built_for(bundle: Bundle, graph: str, here: Identity) -> Identity:
    """``here`` as an engine that is there was built: for every size, or else for most sizes; rather one that streams no
    weights."""
    built = [
        entry.header.identity for store in engine_stores(bundle) for entry in store.index().engines
        if entry.header.graph == graph
        and dataclasses.replace(entry.header.identity, profile=here.profile, weight_streaming=False) == here
    ]
    def rank(identity: Identity) -> tuple[bool, int, str, bool]:
        profile = identity.profile
        return profile == ANY_SIZE, profile.count("_"), profile, not identity.weight_streaming

    return max(built, key=rank, default=here)


