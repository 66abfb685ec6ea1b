"""A checkpoint becomes a bundle: every graph traced, written, checked, and only then put in its place."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from torch import nn

from arlon_export.check import Agreement, check_graph
from arlon_export.checkpoint import TOKENIZER, Checkpoint
from arlon_export.cost import graph_bytes, graph_flops
from arlon_export.feeds import opt_sizes
from arlon_export.precision import PRECISIONS, kept_fp32, network_for
from arlon_export.to_onnx import export_graph, to_proto, weight_names
from arlon_export.weights import WeightFile
from arlon_rt.bundle import Bundle, write_manifest
from arlon_rt.config import ModelConfig
from arlon_rt.errors import BundleError, OptionsError, OutputError
from arlon_rt.graphs import GraphSpec, graph_specs
from arlon_rt.manifest import GraphEntry, signature

Graphs = dict[str, dict[str, GraphEntry]]


@dataclass(frozen=True, kw_only=True)
class GraphDone:
    """One graph of one precision set is exported and agrees with its torch module."""

    graph: str
    precision: str
    done: int
    total: int
    onnx_bytes: int
    agreement: Agreement


def export_bundle(
    checkpoint: Checkpoint, output: Path, *, precisions: Sequence[str] = PRECISIONS,
    only: Collection[str] | None = None, on_graph: Callable[[GraphDone], None] = lambda done: None,
) -> Bundle:
    """Export ``checkpoint`` into the folder ``output``, which must not exist yet.

    Args:
        precisions: of ``"fp32"`` and ``"fp16"``.
        only: graphs to export; ``None`` exports all the configuration has.
        on_graph: called as each graph is done.

    Raises:
        OptionsError: a precision or graph name is unknown.
        BundleError: the checkpoint lacks a network or has weights that do not fit.
        ExportError: a graph differs from its contract or its torch module; nothing is left under ``output``.
    """
    specs = _chosen(checkpoint.model, precisions, only)
    if output.exists():
        raise OutputError(f"{output} exists; remove it or choose another name")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as scratch:
        folder = Path(scratch) / "bundle"
        (folder / "onnx").mkdir(parents=True)
        _write(checkpoint, folder, specs, precisions, on_graph)
        folder.rename(output)
    return Bundle.open(output)


def _chosen(model: ModelConfig, precisions: Sequence[str], only: Collection[str] | None) -> list[GraphSpec]:
    specs = graph_specs(model)
    for name, value, known in (
        *(("precision", p, PRECISIONS) for p in precisions), *(("graph", g, tuple(specs)) for g in only or ()),
    ):
        if value not in known:
            raise OptionsError(f"{name} is {value!r}; this checkpoint has {', '.join(known)}")
    return [s for s in specs.values() if only is None or s.name in only]


def _write(
    checkpoint: Checkpoint, folder: Path, specs: Sequence[GraphSpec], precisions: Sequence[str],
    on_graph: Callable[[GraphDone], None],
) -> None:
    """Network by network, so that one at a time is in memory and a fault shows before the next is traced."""
    graphs: Graphs = {}
    parameters: dict[str, int] = {}
    model, done, total = checkpoint.model, 0, len(specs) * len(precisions)
    if any(s.network == "text" for s in specs):
        if checkpoint.tokenizer is None:
            raise BundleError(f"the checkpoint has no {TOKENIZER}; the text encoder cannot be used without it")
        shutil.copyfile(checkpoint.tokenizer, folder / TOKENIZER)
    for network in dict.fromkeys(s.network for s in specs):
        module = checkpoint.module(network)
        if network == "dit":
            model = with_rotary_frequencies(model, module)
        own = [s for s in specs if s.network == network]
        shipped = _write_network(model, folder, own, module, precisions, graphs)
        parameters[network] = sum(p.numel() for name, p in module.named_parameters() if name in shipped)
        write_manifest(
            folder, model=model, defaults=checkpoint.defaults, graphs=graphs, provenance=checkpoint.provenance,
            parameters=parameters,
        )
        bundle = Bundle.open(folder)
        for spec, precision in itertools.product(own, precisions):
            agreement = check_graph(bundle, spec, module, precision)
            size = bundle.graph_file(spec.name, precision).stat().st_size
            done += 1
            on_graph(GraphDone(
                graph=spec.name, precision=precision, done=done, total=total, onnx_bytes=size, agreement=agreement
            ))


def _write_network(
    model: ModelConfig, folder: Path, specs: Sequence[GraphSpec], module: nn.Module, precisions: Sequence[str],
    graphs: Graphs,
) -> set[str]:
    """Trace every graph of one network into ``folder/onnx`` and add its manifest entries to ``graphs``.

    Returns the names of the weights that are in a graph; the VQ-VAE's encoder, for one, is in none.
    """
    shipped: set[str] = set()
    data = folder / "onnx" / f"{specs[0].network}.data"
    with WeightFile(data) as weights:
        for precision in precisions:
            traced = network_for(module, precision)
            for spec in specs:
                graph = export_graph(model, spec, traced, half=precision == "fp16")
                entry = _entry(model, spec, graph, precision)
                shipped |= weight_names(graph, module)
                weights.externalise(graph, weight_names(graph, module))
                (folder / entry.file).write_bytes(to_proto(graph).SerializeToString(deterministic=True))
                graphs.setdefault(spec.name, {})[precision] = entry
    for entries in (graphs[s.name] for s in specs):
        for entry in entries.values():
            onnx.checker.check_model(str(folder / entry.file))
    return shipped


def _entry(model: ModelConfig, spec: GraphSpec, graph: ir.Model, precision: str) -> GraphEntry:
    half, sizes = precision == "fp16", opt_sizes(model, spec)
    return GraphEntry(
        file=f"onnx/{spec.name}.{precision}.onnx", data=(f"onnx/{spec.network}.data",),
        inputs=signature(spec.inputs, precision), outputs=signature(spec.outputs, precision),
        flops=graph_flops(graph, sizes), bytes=graph_bytes(graph, spec, sizes, half=half),
        kept_fp32=kept_fp32(spec.name, graph) if half else {},
    )


def with_rotary_frequencies(model: ModelConfig, dit: nn.Module) -> ModelConfig:
    """The configuration with the checkpoint's own ``rope.freqs``, where `DiTConfig.rope_theta` does not give them.

    The graphs take rotary tables as inputs, so the frequencies travel in the manifest.
    """
    frequencies = dit.state_dict()["rope.freqs"].numpy()
    exponents = np.arange(0, model.dit.head_dim, 2) / model.dit.head_dim
    if np.allclose(frequencies, model.dit.rope_theta**-exponents, rtol=1e-6, atol=0):
        return model
    rope_freqs = tuple(float(f) for f in frequencies)
    return dataclasses.replace(model, dit=dataclasses.replace(model.dit, rope_freqs=rope_freqs))
