"""Exports a checkpoint to a bundle: traces, writes and checks every graph, then moves all of them into place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from arlon_export.checkpoints.checkpoint import TOKENIZER, Checkpoint
from arlon_export.checkpoints.network import Network
from arlon_export.events import ExportProgress, GraphDone, Reporter
from arlon_export.onnx_graphs.precision import PRECISIONS, RUNS_ON_CPU
from arlon_export.part import Graphs, Part, export_part
from arlon_export.work_folder import WorkFolder, free_bytes, full_disk_named, largest_size, origin, require_room
from arlon_rt.bundle import Bundle, write_manifest
from arlon_rt.config import ModelConfig
from arlon_rt.errors import BundleError, OptionsError, OutputError
from arlon_rt.graphs import GraphSpec, graph_specs

COMPARE_BYTES = 1 << 30
"""Default limit on the weights in memory while a graph is compared. ONNX Runtime folds and packs on top of it."""


def export_bundle(
    checkpoint: Checkpoint, output: Path, *, precisions: Sequence[str] = RUNS_ON_CPU,
    only: Collection[str] | None = None, on_graph: Callable[[GraphDone], None] = lambda done: None,
    on_progress: Callable[[ExportProgress], None] = lambda progress: None, compare_bytes: int = COMPARE_BYTES,
    free: Callable[[Path], int] = free_bytes,
) -> Bundle:
    """Export ``checkpoint`` into the folder ``output``, which must not exist yet.

    A whole network is in memory only while it is compared with its graphs. An interrupted export leaves the networks
    it finished in ``.NAME.partial`` beside ``output``; the same call exports the others.

    Args:
        precisions: some of ``"fp32"``, ``"fp16"`` and ``"bf16"``.
        only: names of the graphs to export; ``None`` exports every graph of the configuration.
        on_graph: called after each graph.
        on_progress: called when a task begins and while weights are read.
        compare_bytes: memory for comparing a graph with its torch module. A graph that needs more is not compared, and
            its entry in the manifest says so.
        free: returns the bytes that can be written below a folder.

    Raises:
        OptionsError: a precision or graph name is unknown.
        BundleError: the checkpoint lacks a network or has weights that do not fit or are not finite.
        OutputError: ``output`` exists, or the disk has no room for it.
        ExportError: a graph differs from its contract or its torch module; ``output`` is not created.
    """
    specs = _chosen(checkpoint.model, precisions, only)
    if output.exists():
        raise OutputError(f"{output} exists; remove it or choose another name")
    parts = _parts(checkpoint, specs, precisions, compare_bytes)
    output.parent.mkdir(parents=True, exist_ok=True)
    work = WorkFolder(output)
    with work.opened(), full_disk_named(output.parent):
        finished = {part.network.name: work.finished(part.network.name, part.origin) for part in parts}
        pending = [part for part in parts if finished[part.network.name] is None]
        sizes = [largest_size(part.network, len(part.specs), precisions) for part in pending]
        require_room(sizes, output.parent, free(output.parent))
        total_bytes = sum(part.network.nbytes for part in pending)
        reporter = Reporter(len(specs) * len(precisions), total_bytes, on_graph, on_progress)
        bundles = [_bundle(part, finished[part.network.name], work, reporter) for part in parts]
        folder = _assemble(checkpoint, parts[0].model, bundles, work.fresh("bundle"))
        folder.rename(output)
        work.discard()
    return Bundle.open(output)


def _chosen(model: ModelConfig, precisions: Sequence[str], only: Collection[str] | None) -> list[GraphSpec]:
    specs = graph_specs(model)
    for name, value, known in (
        *(("precision", p, PRECISIONS) for p in precisions), *(("graph", g, tuple(specs)) for g in only or ()),
    ):
        if value not in known:
            raise OptionsError(f"{name} is {value!r}; this checkpoint has {', '.join(known)}")
    chosen = [s for s in specs.values() if only is None or s.name in only]
    if not chosen or not precisions:
        raise OptionsError("nothing is chosen to export; name a graph and a precision set, or leave both out")
    return chosen


def _parts(
    checkpoint: Checkpoint, specs: Sequence[GraphSpec], precisions: Sequence[str], compare_bytes: int
) -> list[Part]:
    """The parts of the export, one a network. This reads the headers and checks every key before anything is traced."""
    networks = [checkpoint.network(name) for name in dict.fromkeys(spec.network for spec in specs)]
    model = checkpoint.model
    if dit := next((network for network in networks if network.name == "dit"), None):
        model = with_rotary_frequencies(model, dit)
    parts = []
    for network in networks:
        tokenizer = checkpoint.tokenizer if network.name == "text" else None
        if network.name == "text" and tokenizer is None:
            raise BundleError(f"the checkpoint has no {TOKENIZER}; the text encoder cannot be used without it")
        own = [spec for spec in specs if spec.network == network.name]
        parts.append(Part(
            model=model, network=network, specs=own, precisions=precisions, tokenizer=tokenizer,
            defaults=checkpoint.defaults, compare_bytes=compare_bytes,
            origin=origin(
                network, tokenizer, model=dataclasses.asdict(model), graphs=[spec.name for spec in own],
                precisions=list(precisions), compare_bytes=compare_bytes,
            ),
        ))
    return parts


def _bundle(part: Part, finished: Bundle | None, work: WorkFolder, reporter: Reporter) -> Bundle:
    """The part's bundle: the one that an earlier export finished, or a new one."""
    if finished is None:
        return export_part(part, work.fresh(part.network.name), reporter)
    for graph, entries in finished.manifest.graphs.items():
        for precision in entries:
            reporter.graph_done(graph, precision, finished.graph_file(graph, precision).stat().st_size, None)
    return finished


def _assemble(checkpoint: Checkpoint, model: ModelConfig, bundles: Sequence[Bundle], folder: Path) -> Path:
    """Move the files of all parts into ``folder`` and write its manifest. No file is read or hashed again."""
    graphs: Graphs = {}
    parameters: dict[str, int] = {}
    for bundle in bundles:
        for name in bundle.manifest.files:
            (bundle.path / name).rename(folder / name)
        graphs |= {graph: dict(entries) for graph, entries in bundle.manifest.graphs.items()}
        parameters |= bundle.manifest.parameters
    write_manifest(
        folder, model=model, defaults=checkpoint.defaults, graphs=graphs, provenance=checkpoint.provenance,
        parameters=parameters, known={name: f for bundle in bundles for name, f in bundle.manifest.files.items()},
    )
    return folder


def with_rotary_frequencies(model: ModelConfig, dit: Network) -> ModelConfig:
    """The configuration, with the checkpoint's ``rope.freqs`` if they do not follow from `DiTConfig.rope_theta`.

    The graphs take rotary tables as inputs, so the manifest has to hold the frequencies.
    """
    frequencies = dit.tensors["rope.freqs"].load().float().numpy()
    if not np.isfinite(frequencies).all():
        raise BundleError("dit: rope.freqs has values that are not finite; the checkpoint is damaged or diverged")
    exponents = np.arange(0, model.dit.head_dim, 2) / model.dit.head_dim
    if np.allclose(frequencies, model.dit.rope_theta**-exponents, rtol=1e-6, atol=0):
        return model
    rope_freqs = tuple(float(f) for f in frequencies)
    return dataclasses.replace(model, dit=dataclasses.replace(model.dit, rope_freqs=rope_freqs))
