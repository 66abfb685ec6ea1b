"""One network becomes a bundle of its own in the work folder: traced, its weights streamed, checked."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from arlon_export.checkpoints.checkpoint import TOKENIZER
from arlon_export.checkpoints.network import Network
from arlon_export.events import Watch
from arlon_export.onnx_graphs.check import check_within
from arlon_export.onnx_graphs.cost import graph_bytes, graph_flops
from arlon_export.onnx_graphs.feeds import opt_sizes
from arlon_export.onnx_graphs.precision import kept_fp32, network_for
from arlon_export.onnx_graphs.to_onnx import export_graph, to_proto, weight_names
from arlon_export.onnx_graphs.weights import WeightFile
from arlon_export.work_folder import MADE_FROM
from arlon_rt.bundle import Bundle, GraphEntry, write_manifest
from arlon_rt.config import ModelConfig
from arlon_rt.graphs import GraphSpec, signature

Graphs = dict[str, dict[str, GraphEntry]]
Weights = Mapping[tuple[str, str], frozenset[str]]
"""(graph, precision) -> the weights it reads; the VQ-VAE's encoder, for one, is in none."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What to export of one network."""

    model: ModelConfig
    network: Network
    specs: Sequence[GraphSpec]
    precisions: Sequence[str]
    tokenizer: Path | None
    """The text encoder's alone."""
    defaults: Mapping[str, Any]
    made_from: Mapping[str, Any]
    """See `arlon_export.work_folder.origin`."""
    compare_bytes: int
    """Memory that comparing a graph with its module may take."""


def export_part(part: Part, folder: Path, watch: Watch) -> Bundle:
    """Export ``part`` into the empty bundle folder ``folder``; its manifest says so only when all of it is checked.

    Raises:
        BundleError: a weight is not a finite number, or does not fit fp16.
        ExportError: a graph differs from its contract or its torch module.
    """
    if part.tokenizer:
        shutil.copyfile(part.tokenizer, folder / TOKENIZER)
    graphs, weights = _write_graphs(part, folder, watch)
    shipped = frozenset().union(*weights.values())
    parameters = sum(p.numel() for name, p in part.network.module.named_parameters() if name in shipped)
    counted = {part.network.name: parameters}
    write_manifest(folder, model=part.model, defaults=part.defaults, graphs=graphs, parameters=counted)
    bundle = Bundle.open(folder)
    for spec, precision in itertools.product(part.specs, part.precisions):
        watch.at(f"checking {spec.name}.{precision}")
        names = weights[spec.name, precision]
        agreement = check_within(part.compare_bytes, bundle, spec, part.network, names, precision)
        graphs[spec.name][precision] = dataclasses.replace(graphs[spec.name][precision], checked=agreement.summary)
        size = bundle.graph_file(spec.name, precision).stat().st_size
        watch.graph(spec.name, precision, size, agreement)
    write_manifest(
        folder, model=part.model, defaults=part.defaults, graphs=graphs, parameters=counted,
        provenance={MADE_FROM: part.made_from}, known=bundle.manifest.files,
    )
    return Bundle.open(folder)


def _write_graphs(part: Part, folder: Path, watch: Watch) -> tuple[Graphs, Weights]:
    """Trace every graph into ``folder/onnx``; manifest entries, and what each reads."""
    graphs: Graphs = {}
    weights: dict[tuple[str, str], frozenset[str]] = {}
    network = part.network
    with WeightFile(folder / "onnx" / f"{network.name}.data", network.tensors, network.name, watch.read) as file:
        for precision in part.precisions:
            traced = network_for(network.module, precision)
            for spec in part.specs:
                watch.at(f"tracing {spec.name}.{precision}")
                graph = export_graph(part.model, spec, traced, precision=precision, tensors=network.tensors)
                entry = _entry(part.model, spec, graph, precision)
                weights[spec.name, precision] = frozenset(weight_names(graph, network.module))
                watch.at(f"writing {spec.name}.{precision}")
                file.externalise(graph)
                (folder / entry.file).write_bytes(to_proto(graph).SerializeToString(deterministic=True))
                graphs.setdefault(spec.name, {})[precision] = entry
    for entries in graphs.values():
        for entry in entries.values():
            onnx.checker.check_model(str(folder / entry.file))
    return graphs, weights


def _entry(model: ModelConfig, spec: GraphSpec, graph: ir.Model, precision: str) -> GraphEntry:
    sizes = opt_sizes(model, spec)
    return GraphEntry(
        file=f"onnx/{spec.name}.{precision}.onnx", data=(f"onnx/{spec.network}.data",),
        inputs=signature(spec.inputs, precision), outputs=signature(spec.outputs, precision),
        flops=graph_flops(graph, sizes), bytes=graph_bytes(graph, spec, sizes, precision=precision),
        kept_fp32=kept_fp32(spec.name, graph, precision),
    )
