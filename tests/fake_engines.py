"""Engines for the fake GPU in a bundle, as `arlon-rt build` would leave them there, and the fake in a GPU's place."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from arlon_rt.backends import trt_open
from arlon_rt.backends.trt import Gpu
from arlon_rt.built_here import record
from arlon_rt.bundle import Bundle
from arlon_rt.engine_file import EngineHeader, Identity, encode_header
from arlon_rt.engines import EngineEntry, engine_stores, source_hash
from arlon_rt.graphs import graph_specs
from fake_gpu import FakeGpu, TensorRT, plan_of

HERE = Identity(flavour="tensorrt-rtx", version="1.7.1.116", compute_capability="sm89", precision="fp16")


def install(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """The GPU of this machine, and a TensorRT for it."""
    gpu = FakeGpu()
    trt = TensorRT(gpu)
    trt.__version__ = HERE.version
    monkeypatch.setattr(trt_open, "import_tensorrt", lambda flavour: trt)
    monkeypatch.setattr(trt_open, "compute_capability", lambda number: HERE.compute_capability)
    monkeypatch.setattr(Gpu, "open", classmethod(lambda cls, flavour, number: cls(trt, gpu.stream)))
    return gpu


def build(
    folder: Path, identity: Identity = HERE, *, mine: bool = True, weights: Mapping[str, int] | None = None,
    **changed: Any,
) -> None:
    """Engines of every graph; ``weights``: of how many bytes, by graph."""
    bundle = Bundle.open(folder)
    store = engine_stores(bundle)[0]
    entries = store.index().engines
    for graph in graph_specs(bundle.model):
        size = (weights or {}).get(graph, 0)
        streaming = {"streaming": True} if identity.weight_streaming else {}
        plan = plan_of(folder, graph, identity.precision, weights=size, **streaming, **changed)
        header = EngineHeader(
            graph=graph, identity=identity, source=source_hash(bundle, graph, identity.precision), plan_bytes=len(plan),
            plan_sha256=hashlib.sha256(plan).hexdigest(),
        )
        path = store.path(graph, identity)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_header(header) + plan)
        entry = EngineEntry(header=header, profiles=(), layers={}, build_seconds=0.0, arlon_rt="0")
        entries = store.add(entry, entries)
        if mine:
            record(header.plan_sha256)
