"""Engines of the stand-in GPU where arlon-rt looks for them, and the stand-in as the GPU of this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from arlon_rt.backends.trt import Gpu
from arlon_rt.backends.trt import open as trt_open
from arlon_rt.bundle import (
    Bundle,
    EngineEntry,
    EngineHeader,
    Flavour,
    Identity,
    encode_header,
    record,
    source_hash,
    store_to_build_in,
)
from arlon_rt.graphs import graph_specs
from fake_gpu import FakeGpu, TensorRT, plan_of

VERSION, COMPUTE_CAPABILITY = "1.7.1.116", "sm89"
HERE = Identity(flavour="tensorrt-rtx", version=VERSION, compute_capability=COMPUTE_CAPABILITY, precision="fp16")


def identity_here(flavour: Flavour, precision: str = "fp16") -> Identity:
    """What an engine must have been built for, on this GPU or the stand-in."""
    version = trt_open.import_tensorrt(flavour).__version__
    return Identity(
        flavour=flavour, version=version, compute_capability=trt_open.compute_capability(0), precision=precision
    )


def put_engines(
    bundle: Bundle, identity: Identity, plan: Callable[[str], bytes] | None = None, *, mine: bool = True
) -> None:
    """Leave engines where a build would; ``plan`` of a graph is by default what the stand-in runs."""
    store = store_to_build_in(bundle)
    entries = store.index().engines
    for graph in graph_specs(bundle.model):
        content = plan(graph) if plan else plan_of(bundle.path, graph, identity.precision)
        header = EngineHeader(
            graph=graph, identity=identity, source=source_hash(bundle, graph, identity.precision),
            plan_bytes=len(content), plan_sha256=hashlib.sha256(content).hexdigest(),
        )
        path = store.path(graph, identity)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_header(header) + content)
        entry = EngineEntry(header=header, profiles=(), layers={}, build_seconds=0.5, arlon_rt="0")
        entries = store.add(entry, entries)
        if mine:
            record(header.plan_sha256)


def build(
    folder: Path, identity: Identity = HERE, *, mine: bool = True, weights: Mapping[str, int] | None = None,
    **changed: Any,
) -> None:
    """`put_engines` of plans that are ``changed``; ``weights``: of how many bytes, by graph."""
    streaming = {"streaming": True} if identity.weight_streaming else {}

    def plan(graph: str) -> bytes:
        return plan_of(
            folder, graph, identity.precision, weights=(weights or {}).get(graph, 0), **streaming, **changed
        )

    put_engines(Bundle.open(folder), identity, plan, mine=mine)


def install(patch: pytest.MonkeyPatch) -> FakeGpu:
    """Let this machine have the stand-in, and a TensorRT for it."""
    gpu = FakeGpu()
    trt = TensorRT(gpu)
    trt.__version__ = VERSION
    patch.setattr(trt_open, "import_tensorrt", lambda flavour: trt)
    patch.setattr(trt_open, "compute_capability", lambda number: COMPUTE_CAPABILITY)
    patch.setattr(Gpu, "open", classmethod(lambda cls, flavour, number: cls(trt, gpu.stream)))
    return gpu


def use_fake_gpu(patch: pytest.MonkeyPatch, home: Path) -> FakeGpu:
    """`install`, and a user whose folders are ``home``."""
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        patch.setenv(name, str(home / name.lower()))
    return install(patch)
