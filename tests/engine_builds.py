"""Building engines in tests: what was built, and bundles whose graphs were changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from arlon_engines.build import Request, build
from arlon_engines.events import EngineBuilt, EngineFailed, EngineKept, Event
from arlon_rt.bundle import Bundle, EngineStore, Identity, demo_bundle_path, store_to_build_in, write_manifest

GPUS = ("sm89", "sm120")
SMALL = ("caption", "semantic")
"""Graphs whose engines are built in a fifth of a second each."""


@dataclass(frozen=True)
class Engines:
    """A bundle whose engines were built, and what the build said."""

    bundle: Bundle
    events: tuple[Event, ...]

    @property
    def built(self) -> dict[tuple[str, str], EngineBuilt]:
        """(graph, gpu) -> what was built."""
        found = [e for e in self.events if isinstance(e, EngineBuilt)]
        return {(e.entry.header.graph, e.entry.header.identity.compute_capability): e for e in found}

    @property
    def kept(self) -> list[str]:
        return [e.graph for e in self.events if isinstance(e, EngineKept)]

    @property
    def failed(self) -> dict[str, str]:
        """Graph -> why it has no engine."""
        return {e.graph: e.message for e in self.events if isinstance(e, EngineFailed)}

    @property
    def store(self) -> EngineStore:
        return store_to_build_in(self.bundle)

    def identity(self) -> Identity:
        """Of the first engine there."""
        return self.store.index().engines[0].header.identity

    def file(self, graph: str) -> Path:
        return self.store.path(graph, self.identity())


def build_engines(
    folder: Path, *only: str, gpus: tuple[str, ...] = ("sm89",), precision: str = "fp16",
    weight_streaming: bool = False, on_event: Callable[[Event], None] = lambda event: None,
) -> Engines:
    """Build in this process's name, each graph in its own."""
    bundle, events = Bundle.open(folder), []

    def keep(event: Event) -> None:
        events.append(event)
        on_event(event)

    request = Request(
        flavour="tensorrt-rtx", precision=precision, gpus=gpus, only=only, weight_streaming=weight_streaming
    )
    failed = build(bundle, request, keep)
    assert failed == [e for e in events if isinstance(e, EngineFailed)]
    return Engines(bundle, tuple(events))


def change_graph(folder: Path, graph: str, edit: Callable[[onnx.ModelProto], None], precision: str = "fp16") -> None:
    """Edit one ONNX file of a bundle, and let the manifest list the new file."""
    bundle = Bundle.open(folder)
    file = bundle.path / bundle.graph(graph, precision).file
    model = onnx.load(file, load_external_data=False)
    edit(model)
    onnx.save(model, file)
    _list_files(bundle, bundle.manifest.provenance)


def copy_of_demo(folder: Path) -> Path:
    """The demo bundle in ``folder``, with a hash of its own, so that no engine in the user's cache is one of it."""
    shutil.copytree(demo_bundle_path(), folder)
    _list_files(Bundle.open(folder), {"copied_to": str(folder)})
    return folder


def _list_files(bundle: Bundle, provenance: Mapping[str, Any]) -> None:
    was = bundle.manifest
    write_manifest(
        bundle.path, model=was.model, defaults=was.defaults, graphs=was.graphs, parameters=was.parameters,
        provenance=provenance, licence=was.licence,
    )
