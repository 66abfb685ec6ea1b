"""A bundle against the checkpoint it was exported from: each graph in each precision beside torch float32.

The inputs are those of a real request: the modules make a short video in float32, and what each graph is fed on the
way is kept and fed to the graphs that ship. So prompts have a prompt's length, and latents every level of noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
from arlon_rt.bundle import Bundle, to_json
from arlon_rt.errors import BundleError
from arlon_rt.graphs import GraphSpec, TensorSpec
from arlon_rt.options import GenerateOptions

Arrays = Mapping[str, NDArray[Any]]
Runner = Callable[[Arrays], Arrays]

KEPT_CALLS = (1, 4, 16, 64)
"""Calls of a graph that are kept, counted from 1: early and late steps, tokens from an empty and a filled cache."""
SMALL_CALLS, SMALL_BYTES = 32, 16 << 20
"""Of a graph whose inputs are smaller, this many first calls are kept, too: a single drawn token says little."""
SHORT = "a red circle moves right on a black background"
LONG = (
    "A wide aerial shot glides over a rocky coast at dawn. Waves break white against dark cliffs, sea birds circle "
    "above the foam, and a small lighthouse on the headland turns its beam through the morning haze. The camera drifts "
    "slowly forward, the light is soft and golden, and the water shimmers as far as the horizon."
)
LONG_FROM = 100
"""Prompt tokens from which on a model is asked for `LONG`; fewer are the demo model's."""


@dataclass
class Calls:
    """Some calls of one graph as float32 modules made them."""

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
    """How far one graph of one precision set is from torch float32, over all calls kept."""

    graph: str
    precision: str
    by: str
    """What ran it: ``"onnxruntime"``, or ``"torch"`` for the module in that precision."""
    calls: int
    output: str
    """The worst output."""
    error: float
    tolerance: float
    finite: bool

    @property
    def passed(self) -> bool:
        return self.finite and self.error <= self.tolerance


class OneNetwork:
    """Modules of a checkpoint, one network in memory at a time."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint, self._name = checkpoint, ""
        self._module: nn.Module | None = None

    def __call__(self, name: str) -> nn.Module:
        if self._module is None or name != self._name:
            self._module = None  # before the next one is loaded
            self._module, self._name = self._checkpoint.module(name), name
        return self._module


def compare_checkpoint(
    checkpoint: Checkpoint, bundle: Bundle, *, prompt: str | None = None, options: GenerateOptions | None = None,
) -> Iterator[GraphParity]:
    """Compare every graph of ``bundle`` in every precision it has.

    Args:
        prompt: left out, one of usual length for the model.
        options: the request; left out, two segments at the bundle's own size.

    Raises:
        BundleError: the bundle has another configuration than the checkpoint, or either lacks something.
        OptionsError: the request cannot be made.
    """
    _check_same_model(checkpoint, bundle)
    network = OneNetwork(checkpoint)
    for calls in record(checkpoint, network, prompt, options or _two_segments(bundle)).values():
        for precision in bundle.manifest.graphs.get(calls.spec.name, {}):
            yield from _compare(bundle, calls, network, precision)


def record(
    checkpoint: Checkpoint, network: Callable[[str], nn.Module], prompt: str | None, options: GenerateOptions
) -> dict[str, Calls]:
    """Make the request with torch modules; what each graph was fed and gave, in the order of first use."""
    if checkpoint.tokenizer is None:
        raise BundleError("the checkpoint has no tokenizer.model; without it no prompt can be fed")
    found: dict[str, Calls] = {}

    def take(spec: GraphSpec, feed: Arrays, outputs: Arrays) -> None:
        found.setdefault(spec.name, Calls(spec)).take(feed, outputs)

    asked = prompt or (LONG if checkpoint.model.text.max_length >= LONG_FROM else SHORT)
    with torch_pipeline(checkpoint.model, network, checkpoint.tokenizer, checkpoint.defaults, take) as pipeline:
        frames = [chunk.frames for chunk in pipeline.stream(asked, options)]
        if checkpoint.model.vq and checkpoint.model.vq.has_encoder:
            pipeline.tokens_of(np.concatenate(frames))
    return found


def _two_segments(bundle: Bundle) -> GenerateOptions:
    """So that the second one keeps frames and encodes them."""
    video = bundle.model.video
    return GenerateOptions(num_frames=2 * video.segment_frames - video.overlap_frames)


def _check_same_model(checkpoint: Checkpoint, bundle: Bundle) -> None:
    """Compare the configurations, but for the rotary frequencies that an export adds."""
    ours, theirs = to_json(bundle.model), to_json(checkpoint.model)
    for part, fields in theirs.items():
        there = ours[part]
        for name in fields or {}:
            if name != "rope_freqs" and (there is None or there[name] != fields[name]):
                told = there and there[name]
                raise BundleError(
                    f"{bundle.path} is not of this checkpoint: {part}.{name} is {told} in the bundle and "
                    f"{fields[name]} in the checkpoint; give the one it was exported from, or export it again"
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
    """Run the kept inputs, rounded as this precision has them, and compare with the kept outputs."""
    feeds = [_rounded(calls.spec, feed, precision) for feed in calls.feeds]
    found = [run(feed) for feed in feeds]
    errors = {t.name: _worst_error(t, calls, feeds, found) for t in calls.spec.outputs}
    allowed = {t.name: tolerance(t, precision) for t in calls.spec.outputs}
    worst = max(errors, key=lambda name: (errors[name] > allowed[name], errors[name] / max(allowed[name], 1e-9)))
    floats = (a for outputs in found for a in outputs.values() if np.issubdtype(a.dtype, np.floating))
    return GraphParity(
        graph=calls.spec.name, precision=precision, by=by, calls=len(found), output=worst,
        error=errors[worst], tolerance=allowed[worst],
        finite=all(bool(np.isfinite(a).all()) for a in floats),
    )


def _rounded(spec: GraphSpec, feed: Arrays, precision: str) -> Arrays:
    """What a graph of this precision sees of a float32 feed: the contract's floats in its own dtype, as float32."""
    if precision == "fp32":
        return feed
    narrow = {t.name for t in spec.inputs if t.dtype == "float"}
    return {name: torch.from_numpy(a).to(TORCH_DTYPE[precision]).float().numpy() if name in narrow else a
            for name, a in feed.items()}


def _worst_error(tensor: TensorSpec, calls: Calls, feeds: Sequence[Arrays], found: Sequence[Arrays]) -> float:
    """Of all calls the worst; of drawn tokens the share that differs. ``feeds`` gave ``found``."""
    each = [
        output_error(tensor, contribution(tensor, dict(fed), [a]), contribution(tensor, dict(feed), [b]))
        for feed, b, fed, a in zip(calls.feeds, calls.outputs, feeds, found, strict=True)
    ]
    return float(np.mean(each)) if tensor.dtype == "int64" else max(each)
