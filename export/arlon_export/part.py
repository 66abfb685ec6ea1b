"""Exports one network to a bundle of its own in the work folder: traces it, streams its weights, checks its graphs."""

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
from arlon_export.events import Reporter
from arlon_export.onnx_graphs.check import check_within
from arlon_export.onnx_graphs.cost import graph_bytes, graph_flops
from arlon_export.onnx_graphs.feeds import opt_sizes
from arlon_export.onnx_graphs.precision import kept_fp32, network_for
from arlon_export.onnx_graphs.to_onnx import export_graph, to_proto, weight_names
from arlon_export.onnx_graphs.weights import WeightFile
from arlon_export.work_folder import ORIGIN
from arlon_rt.bundle import Bundle, GraphEntry, write_manifest
from arlon_rt.config import ModelConfig
from arlon_rt.graphs import GraphSpec, signature

Graphs = dict[str, dict[str, GraphEntry]]
Weights = Mapping[tuple[str, str], frozenset[str]]
"""(graph, precision) -> names of the weights it reads. A weight may be read by no graph at all."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What to export of one network."""

    model: ModelConfig
    network: Network
    specs: Sequence[GraphSpec]
    precisions: Sequence[str]
    tokenizer: Path | None
    """Only the text encoder has one."""
    defaults: Mapping[str, Any]
    origin: Mapping[str, Any]
    """See `arlon_export.work_folder.origin`."""
    compare_bytes: int
    """Limit on the memory for comparing a graph with its module."""


def export_part(part: Part, folder: Path, reporter: Reporter) -> Bundle:
    """Export ``part`` into the empty bundle folder ``folder``. Its manifest gets `ORIGIN` only after every check.

    Raises:
        BundleError: a weight is not finite, or is too large for fp16.
        ExportError: a graph differs from its contract or its torch module.
    """
    if part.tokenizer:
        shutil.copyfile(part.tokenizer, folder / TOKENIZER)
    graphs, weights = _write_graphs(part, folder, reporter)
    shipped = frozenset().union(*weights.values())
    parameters = sum(p.numel() for name, p in part.network.module.named_parameters() if name in shipped)
    parameter_counts = {part.network.name: parameters}
    write_manifest(folder, model=part.model, defaults=part.defaults, graphs=graphs, parameters=parameter_counts)
    bundle = Bundle.open(folder)
    for spec, precision in itertools.product(part.specs, part.precisions):
        reporter.begin(f"checking {spec.name}.{precision}")
        names = weights[spec.name, precision]
        agreement = check_within(part.compare_bytes, bundle, spec, part.network, names, precision)
        graphs[spec.name][precision] = dataclasses.replace(graphs[spec.name][precision], checked=agreement.summary)
        size = bundle.graph_file(spec.name, precision).stat().st_size
        reporter.graph_done(spec.name, precision, size, agreement)
    write_manifest(
        folder, model=part.model, defaults=part.defaults, graphs=graphs, parameters=parameter_counts,
        provenance={ORIGIN: part.origin}, known=bundle.manifest.files,
    )
    return Bundle.open(folder)


def _write_graphs(part: Part, folder: Path, reporter: Reporter) -> tuple[Graphs, Weights]:
    """Trace every graph into ``folder/onnx``; return their manifest entries and the weights that each one reads."""
    graphs: Graphs = {}
    weights: dict[tuple[str, str], frozenset[str]] = {}
    network = part.network
    path = folder / "onnx" / f"{network.name}.data"
    with WeightFile(path, network.tensors, network.name, reporter.count_bytes) as file:
        for precision in part.precisions:
            traced = network_for(network.module, precision)
            for spec in part.specs:
                reporter.begin(f"tracing {spec.name}.{precision}")
                graph = export_graph(part.model, spec, traced, precision=precision, tensors=network.tensors)
                entry = _entry(part.model, spec, graph, precision)
                weights[spec.name, precision] = frozenset(weight_names(graph, network.module))
                reporter.begin(f"writing {spec.name}.{precision}")
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
