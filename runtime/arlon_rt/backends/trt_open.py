"""From the engines of a bundle to sessions: which engine fits this GPU, and that it may be loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from arlon_rt.backends.session import Session
from arlon_rt.backends.trt import Gpu
from arlon_rt.backends.trt_library import import_tensorrt
from arlon_rt.bundle import Bundle
from arlon_rt.engine_file import ANY_SIZE, Flavour, Identity, read_plan
from arlon_rt.engines import engine_stores, find_engine
from arlon_rt.errors import BackendError
from arlon_rt.gpu import compute_capability
from arlon_rt.manifest import FLOAT_DTYPE


def open_engines(
    bundle: Bundle, graphs: Iterable[str], *, flavour: Flavour, device: str, precision: str, trust: bool
) -> Iterator[Session]:
    """A session of each graph's engine, for the sessions to share one GPU.

    Raises:
        EngineError: there is no engine that fits and may be loaded; the message has the command that builds it.
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
    for graph in graphs:
        path = find_engine(bundle, graph, built_for(bundle, graph, here), trust)
        yield gpu.session(read_plan(path), bundle.spec(graph), precision)


def built_for(bundle: Bundle, graph: str, here: Identity) -> Identity:
    """``here`` with the profile of an engine that is there: the one for every size, or else the one of most sizes."""
    profiles = [
        entry.header.identity.profile for store in engine_stores(bundle) for entry in store.index().engines
        if entry.header.graph == graph
        and dataclasses.replace(entry.header.identity, profile=here.profile) == here
    ]
    if not profiles or ANY_SIZE in profiles:
        return here
    return dataclasses.replace(here, profile=max(profiles, key=lambda name: (name.count("_"), name)))


def device_number(device: str) -> int:
    """The GPU that ``"cuda"`` or ``"cuda:1"`` names."""
    kind, colon, number = device.partition(":")
    if kind != "cuda" or (colon and not (number.isascii() and number.isdigit())):
        raise BackendError(f"device is {device!r}; TensorRT needs 'cuda' or 'cuda:N'")
    return int(number or 0)
