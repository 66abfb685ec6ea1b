"""A checkpoint becomes a bundle: every graph traced, written, checked, and only then put in its place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from arlon_export.checkpoints.checkpoint import TOKENIZER, Checkpoint
from arlon_export.checkpoints.network import Network
from arlon_export.events import GraphDone, Watch, Working
from arlon_export.onnx_graphs.precision import PRECISIONS, RUNS_ON_CPU
from arlon_export.part import Graphs, Part, export_part
from arlon_export.work_folder import WorkFolder, free_bytes, full_disk_named, largest_size, origin, require_room
from arlon_rt.bundle import Bundle, to_json, write_manifest
from arlon_rt.config import ModelConfig
from arlon_rt.errors import BundleError, OptionsError, OutputError
from arlon_rt.graphs import GraphSpec, graph_specs

COMPARE_BYTES = 1 << 30
"""Weights that comparing a graph may hold by default: 1 GiB; what ONNX Runtime folds and packs comes on top."""


def export_bundle(
    checkpoint: Checkpoint, output: Path, *, precisions: Sequence[str] = RUNS_ON_CPU,
    only: Collection[str] | None = None, on_graph: Callable[[GraphDone], None] = lambda done: None,
    on_work: Callable[[Working], None] = lambda working: None, compare_bytes: int = COMPARE_BYTES,
    free: Callable[[Path], int] = free_bytes,
) -> Bundle:
    """Export ``checkpoint`` into the folder ``output``, which must not exist yet.

    No network is ever in memory as a whole, unless it is compared with its graphs. An interrupted export leaves the
    networks it finished in ``.NAME.partial`` beside ``output``; the same call goes on there.

    Args:
        precisions: of ``"fp32"``, ``"fp16"`` and ``"bf16"``.
        only: graphs to export; ``None`` exports all the configuration has.
        on_graph: called as each graph is done.
        on_work: called as the export comes along.
        compare_bytes: memory that comparing a graph with its torch module may take; a graph that needs more is not
            compared, and its entry in the manifest says so.
        free: bytes that can be written below a folder.

    Raises:
        OptionsError: a precision or graph name is unknown.
        BundleError: the checkpoint lacks a network or has weights that do not fit or are not finite.
        OutputError: ``output`` exists, or the disk has no room for it.
        ExportError: a graph differs from its contract or its torch module; nothing is left under ``output``.
    """
    specs = _chosen(checkpoint.model, precisions, only)
    if output.exists():
        raise OutputError(f"{output} exists; remove it or choose another name")
    parts = _parts(checkpoint, specs, precisions, compare_bytes)
    output.parent.mkdir(parents=True, exist_ok=True)
    work = WorkFolder(output)
    with work.opened(), full_disk_named(output.parent):
        made = {part.network.name: work.finished(part.network.name, part.made_from) for part in parts}
        left = [part for part in parts if made[part.network.name] is None]
        sizes = [largest_size(part.network, len(part.specs), precisions) for part in left]
        require_room(sizes, output.parent, free(output.parent))
        watch = Watch(len(specs) * len(precisions), sum(part.network.nbytes for part in left), on_graph, on_work)
        bundles = [_part(part, made[part.network.name], work, watch) for part in parts]
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
        raise OptionsError("nothing is chosen to export; name one graph and one precision set, or leave both out")
    return chosen


def _parts(
    checkpoint: Checkpoint, specs: Sequence[GraphSpec], precisions: Sequence[str], compare_bytes: int
) -> list[Part]:
    """One part a network. Headers are read, and every key is checked, before any work is done."""
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
            made_from=origin(
                network, tokenizer, model=to_json(model), graphs=[spec.name for spec in own],
                precisions=list(precisions), compare_bytes=compare_bytes,
            ),
        ))
    return parts


def _part(part: Part, made: Bundle | None, work: WorkFolder, watch: Watch) -> Bundle:
    """The part's bundle, made before or now."""
    if made is None:
        return export_part(part, work.fresh(part.network.name), watch)
    for graph, entries in made.manifest.graphs.items():
        for precision in entries:
            watch.graph(graph, precision, made.graph_file(graph, precision).stat().st_size, None)
    return made


def _assemble(checkpoint: Checkpoint, model: ModelConfig, bundles: Sequence[Bundle], folder: Path) -> Path:
    """Move the files of all parts into ``folder`` and write its manifest; nothing is read again."""
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
    """The configuration with the checkpoint's own ``rope.freqs``, where `DiTConfig.rope_theta` does not give them.

    The graphs take rotary tables as inputs, so the frequencies travel in the manifest.
    """
    frequencies = dit.tensors["rope.freqs"].load().float().numpy()
    if not np.isfinite(frequencies).all():
        raise BundleError("dit: rope.freqs has values that are not finite; the checkpoint is damaged or diverged")
    exponents = np.arange(0, model.dit.head_dim, 2) / model.dit.head_dim
    if np.allclose(frequencies, model.dit.rope_theta**-exponents, rtol=1e-6, atol=0):
        return model
    rope_freqs = tuple(float(f) for f in frequencies)
    return dataclasses.replace(model, dit=dataclasses.replace(model.dit, rope_freqs=rope_freqs))
