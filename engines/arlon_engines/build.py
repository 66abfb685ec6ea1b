"""A whole build: plans which engines a request needs, and builds those that are missing or out of date."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from arlon_engines.engine import Job
from arlon_engines.events import EngineBuilt, EngineFailed, EngineKept, OnEvent, WaitingForBuild
from arlon_engines.flavour import open_flavour
from arlon_engines.lock import building_in
from arlon_engines.process import build_in_process
from arlon_engines.profiles import Size, profile_name, profiles_of
from arlon_rt.bundle import Bundle, EngineEntry, EngineStore, Identity, record, store_to_build_in
from arlon_rt.bundle import Flavour as FlavourName
from arlon_rt.errors import ArlonError, EngineError, OptionsError


@dataclass(frozen=True, kw_only=True)
class Request:
    """The engines to build of a bundle."""

    flavour: FlavourName
    precision: str
    gpus: tuple[str, ...]
    """Compute capabilities such as ``"sm89"``; each gets engines of its own."""
    sizes: tuple[Size, ...] = ()
    """Sizes of the profiles; empty for engines that take every size of the bundle."""
    only: tuple[str, ...] = ()
    """Names of graphs; empty for every graph of the bundle."""
    weight_streaming: bool = False
    """Whether engines can keep a part of their weights in the host's memory, chosen when they are loaded."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One engine of a request."""

    job: Job
    reason: str | None
    """Why it must be built; ``None`` if it exists and fits."""


def plan(bundle: Bundle, request: Request) -> list[Planned]:
    """Every engine of the request, graph by graph.

    Raises:
        ArlonError: the bundle lacks a graph or a precision, or TensorRT cannot build for a GPU.
    """
    flavour = open_flavour(request.flavour)
    for gpu in request.gpus:
        flavour.check_gpu(gpu)
    store = store_to_build_in(bundle)
    identities = [
        Identity(
            flavour=request.flavour, version=flavour.trt.__version__, compute_capability=gpu,
            precision=request.precision, profile=profile_name(request.sizes),
            weight_streaming=request.weight_streaming,
        ) for gpu in dict.fromkeys(request.gpus)
    ]
    return [
        _planned(bundle, store, graph, identity, request.sizes)
        for graph in _graphs(bundle, request) for identity in identities
    ]


def build(bundle: Bundle, request: Request, on_event: OnEvent) -> list[EngineFailed]:
    """Build the engines that are missing or out of date; return those that could not be built.

    Raises:
        ArlonError: no engine could be started.
    """
    store = store_to_build_in(bundle)
    with building_in(store.folder, lambda: on_event(WaitingForBuild(folder=store.folder))):
        return [failed for planned in plan(bundle, request) if (failed := _build(store, planned, on_event))]


def _build(store: EngineStore, planned: Planned, on_event: OnEvent) -> EngineFailed | None:
    job = planned.job
    if planned.reason is None:
        on_event(EngineKept(graph=job.graph, identity=job.identity))
        return None
    _sweep(job)
    try:
        entry = build_in_process(job, on_event)
        record(entry.header.plan_sha256)
        store.add(entry, _readable(store))
    except ArlonError as error:
        failed = EngineFailed(graph=job.graph, identity=job.identity, message=str(error))
        on_event(failed)
        return failed
    finally:
        _sweep(job)
    on_event(EngineBuilt(entry=entry))
    return None


def _planned(bundle: Bundle, store: EngineStore, graph: str, identity: Identity, sizes: Sequence[Size]) -> Planned:
    job = Job(
        bundle=bundle.path.resolve(), graph=graph, identity=identity, target=store.path(graph, identity),
        profiles=profiles_of(bundle.model, graph, sizes),
    )
    try:
        store.find(bundle, graph, identity, trust=False)
    except EngineError as error:
        return Planned(job=job, reason=str(error))
    return Planned(job=job, reason=None)


def _graphs(bundle: Bundle, request: Request) -> tuple[str, ...]:
    known = tuple(bundle.manifest.graphs)
    for graph in request.only:
        if graph not in known:
            raise OptionsError(f"only is {graph!r:.80}; this bundle has {', '.join(known)}")
    chosen = tuple(graph for graph in known if not request.only or graph in request.only)
    for graph in chosen:
        bundle.graph(graph, request.precision)
    return chosen


def _readable(store: EngineStore) -> tuple[EngineEntry, ...]:
    """The engines in the index; none if it is damaged, so that all are built again."""
    try:
        return store.index().engines
    except EngineError:
        return ()


def _sweep(job: Job) -> None:
    """Remove files that a killed process left half-written; the lock says that no other build writes them."""
    with contextlib.suppress(OSError):
        for path in job.target.parent.glob(f".{job.target.name}.*"):
            path.unlink()
