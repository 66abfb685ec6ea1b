"""Compares a bundle with its checkpoint: each graph in each precision with its module in torch float32.

The inputs are those of a real request. The modules generate a short video in float32; their inputs are kept and fed to
the graphs. So prompts have a usual length, and latents have every level of noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from arlon_export.checkpoints.checkpoint import Checkpoint
from arlon_export.onnx_graphs.check import contribution, output_error, tolerance
from arlon_export.onnx_graphs.precision import RUNS_ON_CPU, TORCH_DTYPE, network_for
from arlon_export.onnx_graphs.wrappers import GraphModule
from arlon_export.torch_pipeline import run_module, torch_pipeline
from arlon_rt.backends import open_session
from arlon_rt.bundle import Bundle
from arlon_rt.errors import BundleError
from arlon_rt.graphs import GraphSpec, TensorSpec
from arlon_rt.options import GenerateOptions

Arrays = Mapping[str, NDArray[Any]]
Runner = Callable[[Arrays], Arrays]

KEPT_CALLS = (1, 4, 16, 64)
"""The calls of a graph that are kept, counted from 1. They have early and late steps, an empty and a filled cache."""
SMALL_CALLS, SMALL_BYTES = 32, 16 << 20
"""A graph with smaller inputs also keeps this many first calls, because a single drawn token says little."""
SHORT = "a red circle moves right on a black background"
LONG = (
    "A wide aerial shot glides over a rocky coast at dawn. Waves break white against dark cliffs, sea birds circle "
    "above the foam, and a small lighthouse on the headland turns its beam through the morning haze. The camera drifts "
    "slowly forward, the light is soft and golden, and the water shimmers as far as the horizon."
)
LONG_FROM = 100
"""A model that takes this many prompt tokens gets the prompt `LONG`; the demo model takes fewer."""


@dataclass
class Calls:
    """Inputs and outputs of some calls of one graph, run by its float32 module."""

    spec: GraphSpec
    feeds: list[Arrays] = field(default_factory=list)
    outputs: list[Arrays] = field(default_factory=list)
    count: int = 0

    def take(self, feed: Arrays, outputs: Arrays) -> None:
        self.count += 1
        small = self.count <= SMALL_CALLS and sum(a.nbytes for a in feed.values()) < SMALL_BYTES
        if small or self.count in KEPT_CALLS:
            self.feeds.append(dict(feed))
            self.outputs.append(dict(outputs))


@dataclass(frozen=True, kw_only=True)
class GraphParity:
    """The error of one graph of one precision set against torch float32, over all kept calls."""

    graph: str
    precision: str
    by: str
    """What ran the graph: ``"onnxruntime"``, or ``"torch"`` for its module in that precision."""
    calls: int
    output: str
    """Name of the worst output."""
    error: float
    tolerance: float
    finite: bool

    @property
    def passed(self) -> bool:
        return self.finite and self.error <= self.tolerance


class OneNetwork:
    """Returns the modules of a checkpoint by name, with one network in memory at a time."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint, self._name = checkpoint, ""
        self._module: nn.Module | None = None

    def __call__(self, name: str) -> nn.Module:
        if self._module is None or name != self._name:
            self._module = None  # frees its memory before the next one is loaded
            self._module, self._name = self._checkpoint.module(name), name
        return self._module


def compare_checkpoint(
    checkpoint: Checkpoint, bundle: Bundle, *, prompt: str | None = None, options: GenerateOptions | None = None,
) -> Iterator[GraphParity]:
    """Compare every graph of ``bundle`` in every precision it has.

    Args:
        prompt: ``None`` stands for one whose length is usual for the model.
        options: ``None`` stands for two segments at the bundle's own size.

    Raises:
        BundleError: the bundle and the checkpoint have different configurations, or one lacks a file.
        OptionsError: the model cannot run this request.
    """
    _check_same_model(checkpoint, bundle)
    network = OneNetwork(checkpoint)
    for calls in record(checkpoint, network, prompt, options or _two_segments(bundle)).values():
        for precision in bundle.manifest.graphs.get(calls.spec.name, {}):
            yield from _compare(bundle, calls, network, precision)


def record(
    checkpoint: Checkpoint, network: Callable[[str], nn.Module], prompt: str | None, options: GenerateOptions
) -> dict[str, Calls]:
    """Run the request with torch modules; return the kept calls of each graph, in the order of first use."""
    if checkpoint.tokenizer is None:
        raise BundleError("the checkpoint has no tokenizer.model; without it no prompt can be encoded")
    recorded: dict[str, Calls] = {}

    def take(spec: GraphSpec, feed: Arrays, outputs: Arrays) -> None:
        recorded.setdefault(spec.name, Calls(spec)).take(feed, outputs)

    text = prompt or (LONG if checkpoint.model.text.max_length >= LONG_FROM else SHORT)
    with torch_pipeline(checkpoint.model, network, checkpoint.tokenizer, checkpoint.defaults, take) as pipeline:
        frames = [chunk.frames for chunk in pipeline.stream(text, options)]
        if checkpoint.model.vq and checkpoint.model.vq.has_encoder:
            pipeline.tokens_of(np.concatenate(frames))
    return recorded


def _two_segments(bundle: Bundle) -> GenerateOptions:
    """Options for two segments: the second one keeps frames of the first and encodes them."""
    video = bundle.model.video
    return GenerateOptions(num_frames=2 * video.segment_frames - video.overlap_frames)


def _check_same_model(checkpoint: Checkpoint, bundle: Bundle) -> None:
    """Raise `BundleError` unless both configurations are equal. An export may add rotary frequencies."""
    ours, theirs = asdict(bundle.model), asdict(checkpoint.model)
    for part, fields in theirs.items():
        exported = ours[part]
        for name in fields or {}:
            if name != "rope_freqs" and (exported is None or exported[name] != fields[name]):
                value = exported and exported[name]
                raise BundleError(
                    f"{bundle.path} is not of this checkpoint: {part}.{name} is {value} in the bundle and "
                    f"{fields[name]} in the checkpoint; name the one it was exported from, or export it again"
                )


def _compare(
    bundle: Bundle, calls: Calls, network: Callable[[str], nn.Module], precision: str
) -> Iterator[GraphParity]:
    if precision in RUNS_ON_CPU:
        session = open_session(bundle, calls.spec.name, precision=precision)
        try:
            yield judge(calls, precision, "onnxruntime", session.run)  # type: ignore[arg-type]
        finally:
            session.close()
    if precision != "fp32":  # torch rounds after each operator, as a GPU does
        module = GraphModule(calls.spec, network_for(network(calls.spec.network), precision)).eval()
        yield judge(
            calls, precision, "torch", lambda feed: run_module(module, calls.spec, feed, TORCH_DTYPE[precision])
        )


def judge(calls: Calls, precision: str, by: str, run: Runner) -> GraphParity:
    """Run the kept inputs, rounded to this precision, and compare the results with the kept outputs."""
    feeds = [_rounded(calls.spec, feed, precision) for feed in calls.feeds]
    results = [run(feed) for feed in feeds]
    errors = {t.name: _worst_error(t, calls, feeds, results) for t in calls.spec.outputs}
    allowed = {t.name: tolerance(t, precision) for t in calls.spec.outputs}
    worst = max(errors, key=lambda name: (errors[name] > allowed[name], errors[name] / max(allowed[name], 1e-9)))
    floats = (a for outputs in results for a in outputs.values() if np.issubdtype(a.dtype, np.floating))
    return GraphParity(
        graph=calls.spec.name, precision=precision, by=by, calls=len(results), output=worst,
        error=errors[worst], tolerance=allowed[worst],
        finite=all(bool(np.isfinite(a).all()) for a in floats),
    )


def _rounded(spec: GraphSpec, feed: Arrays, precision: str) -> Arrays:
    """A float32 feed as a graph of this precision reads it: the contract's floats are rounded to its dtype."""
    if precision == "fp32":
        return feed
    narrow = {t.name for t in spec.inputs if t.dtype == "float"}
    return {name: torch.from_numpy(a).to(TORCH_DTYPE[precision]).float().numpy() if name in narrow else a
            for name, a in feed.items()}


def _worst_error(tensor: TensorSpec, calls: Calls, feeds: Sequence[Arrays], results: Sequence[Arrays]) -> float:
    """The worst error of all calls, or the share of drawn tokens that differ; ``results`` are the runs of ``feeds``."""
    each = [
        output_error(tensor, contribution(tensor, dict(rounded), [a]), contribution(tensor, dict(feed), [b]))
        for feed, b, rounded, a in zip(calls.feeds, calls.outputs, feeds, results, strict=True)
    ]
    return float(np.mean(each)) if tensor.dtype == "int64" else max(each)
