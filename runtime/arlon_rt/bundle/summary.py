"""A bundle in a few numbers, as `arlon-rt inspect` shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arlon_rt.bundle.bundle import Bundle
from arlon_rt.bundle.engines import EngineEntry, engine_stores
from arlon_rt.errors import ArlonError, EngineError
from arlon_rt.graphs import graph_specs
from arlon_rt.options import GenerateOptions, ResolvedOptions


@dataclass(frozen=True, kw_only=True)
class GraphSummary:
    """One graph of a network."""

    name: str
    precisions: tuple[str, ...]
    flops: int
    """Floating-point operations of one run at the ``opt`` sizes, in the first precision; 0 when not stated."""
    bytes_moved: int
    """Bytes that one run must move at the ``opt`` sizes, in the first precision; 0 when not stated."""


@dataclass(frozen=True, kw_only=True)
class NetworkSummary:
    """Graphs that share their weights."""

    name: str
    parameters: int | None
    """``None``: the manifest does not state it."""
    bytes_on_disk: int
    """Bytes of its weights and graphs, of all precisions together."""
    graphs: tuple[GraphSummary, ...]


@dataclass(frozen=True, kw_only=True)
class EngineSummary:
    """One engine of a graph."""

    entry: EngineEntry
    path: str
    fault: str | None
    """Why it would not be loaded, as far as its header shows. Its plan is not hashed."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A bundle as plain values, which `dataclasses.asdict` turns into JSON."""

    path: str
    hash: str
    format: int
    arlon_rt: str
    licence: str
    baseline: bool
    """Whether it is plain Open-Sora v1.2, without token model and semantic injection."""
    precisions: tuple[str, ...]
    """The precisions that every graph has."""
    networks: tuple[NetworkSummary, ...]
    files: int
    bytes_on_disk: int
    largest_height: int
    """Pixels."""
    largest_width: int
    max_prompt_tokens: int
    prompt_suffix: str
    """Text that is appended to each prompt. Empty: the model was trained without scores."""
    defaults: ResolvedOptions
    """The options of a request that names none."""
    provenance: Mapping[str, Any]
    engines: tuple[EngineSummary, ...]
    """The engines in the bundle, then those in the user's cache."""
    engine_faults: tuple[str, ...]
    """A message for each index of engines that cannot be read."""


def describe(bundle: Bundle) -> Summary:
    """The summary of a bundle, from its manifest and the index of its engines. No graph is opened."""
    manifest, (highest, widest) = bundle.manifest, bundle.model.video.largest
    networks = dict.fromkeys(spec.network for spec in graph_specs(bundle.model).values())
    engines, engine_faults = _engines(bundle)
    return Summary(
        path=str(bundle.path), hash=bundle.hash, format=manifest.format, arlon_rt=manifest.arlon_rt,
        licence=manifest.licence, baseline=bundle.is_baseline, precisions=bundle.precisions,
        networks=tuple(_network(bundle, name) for name in networks),
        files=len(manifest.files), bytes_on_disk=sum(entry.size for entry in manifest.files.values()),
        largest_height=highest, largest_width=widest,
        max_prompt_tokens=bundle.model.text.max_length, prompt_suffix=bundle.model.text.prompt_suffix,
        defaults=GenerateOptions().resolved(bundle), provenance=manifest.provenance,
        engines=engines, engine_faults=engine_faults,
    )


def _engines(bundle: Bundle) -> tuple[tuple[EngineSummary, ...], tuple[str, ...]]:
    engines: list[EngineSummary] = []
    faults: list[str] = []
    for store in engine_stores(bundle):
        try:
            entries = store.index().engines
        except EngineError as error:
            faults.append(str(error))
            continue
        for entry in entries:
            header, path, fault = entry.header, "", None
            try:
                path = str(store.path(header.graph, header.identity))
                store.find(bundle, header.graph, header.identity, trust=False, whole=False)
            except ArlonError as error:
                fault = str(error)
            engines.append(EngineSummary(entry=entry, path=path, fault=fault))
    return tuple(engines), tuple(faults)


def _network(bundle: Bundle, network: str) -> NetworkSummary:
    manifest, graphs, files = bundle.manifest, [], set()
    for name, spec in graph_specs(bundle.model).items():
        if spec.network == network and (entries := manifest.graphs.get(name)):
            first = next(iter(entries.values()))
            graphs.append(GraphSummary(
                name=name, precisions=tuple(entries), flops=first.flops, bytes_moved=first.bytes
            ))
            files |= {file for entry in entries.values() for file in (entry.file, *entry.data)}
    return NetworkSummary(
        name=network, parameters=manifest.parameters.get(network),
        bytes_on_disk=sum(manifest.files[f].size for f in files), graphs=tuple(graphs),
    )
