"""Compares an exported graph with its torch module: ONNX Runtime runs it on random feeds at two sets of axis sizes.

ONNX Runtime runs no bf16 graph on a CPU, and a graph can be too large for the memory limit. These get fewer checks,
which their `Agreement` names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from arlon_export.checkpoints.network import Network
from arlon_export.errors import ExportError
from arlon_export.onnx_graphs.feeds import Feed, Sizes, check_sizes, random_feed, shape
from arlon_export.onnx_graphs.precision import (
    FLOAT_TOLERANCE,
    LEVEL_TOLERANCE,
    RUNS_ON_CPU,
    TOKEN_TOLERANCE,
    TORCH_DTYPE,
    network_for,
)
from arlon_export.onnx_graphs.wrappers import GraphModule
from arlon_export.torch_pipeline import run_module
from arlon_rt.backends import open_session
from arlon_rt.bundle import Bundle
from arlon_rt.config import ModelConfig
from arlon_rt.graphs import GraphSpec, TensorSpec

Array = NDArray[np.generic]
Outputs = Mapping[str, object]

_DRAWS = {"ar_step": 64}
"""Graphs that need more than one run at each size: one drawn token says little. Only the first run keeps the caches."""
_CARRIED_INPUT = {"latents_out": "latents"}
"""Output -> the input it is a change of. The change is compared, because a small step would hide a wrong velocity."""


@dataclass(frozen=True)
class Agreement:
    """How far a graph is from its torch module, and what was checked."""

    errors: Mapping[str, float]
    """Worst error of each output: relative error of floats, share of tokens that differ, mean difference in levels of
    frames."""
    unproven: tuple[str, ...] = ()
    """Outputs that were all zero, or changed nothing, at some sizes: comparing them proves nothing. The last layers of
    an untrained checkpoint give such outputs, because they start at zero."""
    executed: bool = True
    """Whether ONNX Runtime ran the graph. If it did not, ``errors`` are those of the torch module in this precision."""
    not_compared: str = ""
    """Why nothing was compared; empty if it was."""

    def __str__(self) -> str:
        if self.not_compared:
            return f"NOT COMPARED ({self.not_compared}); structure and finite weights checked"
        shown = [name for name in self.errors if name not in self.unproven]
        worst = max(shown, key=lambda name: self.errors[name], default=None)
        parts = [f"{worst} within {self.errors[worst]:.1e}"] if worst else []
        parts += [f"{name} NOT COMPARED (all zero)" for name in self.unproven]
        return ", ".join(parts) + ("" if self.executed else " of its module in torch; the graph was NOT RUN")

    @property
    def summary(self) -> str:
        """What was checked, for the manifest: without the errors, which differ between machines."""
        if self.not_compared:
            return f"not compared: {self.not_compared}; onnx.checker, finite weights"
        if not self.executed:
            return "not run: ONNX Runtime has no bf16 kernels on a CPU; onnx.checker, module in torch bf16 against fp32"
        zero = f"; all zero: {', '.join(self.unproven)}" if self.unproven else ""
        return f"run by ONNX Runtime on a CPU against torch in fp32{zero}"


def check_within(
    limit: int, bundle: Bundle, spec: GraphSpec, network: Network, names: Collection[str], precision: str
) -> Agreement:
    """`check_graph` if that takes at most ``limit`` bytes of memory; ``names`` are the weights that the graph reads."""
    needed = comparison_bytes(network, names, precision) + feed_bytes(bundle.model, spec)
    if needed > limit:
        reason = f"comparing needs {needed / 2**30:.1f} GiB of memory, {limit / 2**30:.1f} GiB are allowed"
        return Agreement({}, executed=False, not_compared=reason)
    return check_graph(bundle, spec, network.loaded(names), precision)


def comparison_bytes(network: Network, names: Collection[str], precision: str) -> int:
    """Anonymous memory that comparing one graph takes, without activations, in bytes.

    Torch maps weights whose file holds them in fp32. ONNX Runtime widens or re-orders every weight and holds both
    copies for a moment. For a half-precision set the module in that type is in memory beside the fp32 one.
    """
    total = 0
    for name in names:
        stored = network.tensors[name]
        widened = 0 if stored.dtype == torch.float32 and stored.source else 4
        session = 8 if precision in RUNS_ON_CPU else 0
        rounded = 0 if precision == "fp32" else 2
        total += math.prod(stored.shape) * (widened + session + rounded)
    return total


def feed_bytes(model: ModelConfig, spec: GraphSpec) -> int:
    """Memory that a graph's inputs and outputs take while they are compared, in bytes.

    This counts one feed, the outputs of three runs and their differences in float64. Caches can take more memory than
    weights do.
    """
    sizes = check_sizes(model, spec)[1]
    inputs, outputs = (sum(4 * math.prod(shape(t, sizes)) for t in tensors) for tensors in (spec.inputs, spec.outputs))
    return inputs + 3 * outputs + 2 * 2 * outputs


def check_graph(bundle: Bundle, spec: GraphSpec, network: nn.Module, precision: str) -> Agreement:
    """Compare one graph of ``bundle`` with ``network`` (fp32) at two sets of axis sizes.

    Where ONNX Runtime has no fp16 kernel for the CPU, it computes in fp32. So the torch module in fp16 is compared too:
    it rounds after each operator, as a GPU does. No CPU runs a bf16 graph; for it only the torch module in bf16 is
    compared.

    Raises:
        ExportError: an output's error is larger than precision.py allows; the message has the output, sizes and error.
    """
    exact = GraphModule(spec, network).eval()
    runs: list[Callable[[Feed], Outputs]] = []
    session = None
    if precision in RUNS_ON_CPU:
        session = open_session(bundle, spec.name, precision=precision, threads=1)
        runs.append(session.run)
    if precision != "fp32":
        rounded, dtype = GraphModule(spec, network_for(network, precision)).eval(), TORCH_DTYPE[precision]
        runs.append(lambda feed: run_module(rounded, spec, feed, dtype))
    worst: dict[str, float] = {}
    unproven: list[str] = []
    try:
        for sizes in check_sizes(bundle.model, spec):
            feed_of = partial(_feed, bundle.model, spec, sizes, precision)
            feed = feed_of(0)
            expected = _draws(spec, feed_of, lambda feed: run_module(exact, spec, feed))
            reference = {t.name: contribution(t, feed, expected) for t in spec.outputs}
            unproven += [t.name for t in spec.outputs if t.dtype != "int64" and not reference[t.name].any()]
            for run in runs:
                outputs = _draws(spec, feed_of, run)
                errors = {
                    t.name: output_error(t, contribution(t, feed, outputs), reference[t.name]) for t in spec.outputs
                }
                _require(spec, precision, sizes, errors)
                worst = {name: max(error, worst.get(name, 0.0)) for name, error in errors.items()}
    finally:
        if session is not None:
            session.close()
    return Agreement(worst, tuple(dict.fromkeys(unproven)), executed=session is not None)


def relative_error(actual: Array, expected: Array) -> float:
    """‖actual−expected‖/‖expected‖ in float64; infinite if shapes differ or a value is not finite."""
    if actual.shape != expected.shape:
        return float("inf")
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    error = np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-12)
    return float(error) if np.isfinite(error) else float("inf")


def _feed(c: ModelConfig, spec: GraphSpec, sizes: Sizes, precision: str, seed: int) -> Feed:
    """The inputs of one run. numpy has no bf16: for that set they are float32 arrays of values that bf16 holds."""
    feed = random_feed(c, spec, sizes, half=False, seed=seed)
    if precision == "bf16":
        for tensor in spec.inputs:
            if tensor.dtype == "float":
                feed[tensor.name] = torch.from_numpy(feed[tensor.name]).bfloat16().float().numpy()
    return feed


def _draws(spec: GraphSpec, feed_of: Callable[[int], Feed], run: Callable[[Feed], Outputs]) -> list[Outputs]:
    """The outputs of the first run, and the drawn tokens of the others; one feed is in memory at a time."""
    tokens = {t.name for t in spec.outputs if t.dtype == "int64"}
    kept: list[Outputs] = [run(feed_of(0))]
    for seed in range(1, _DRAWS.get(spec.name, 1)):
        outputs = run(feed_of(seed))
        kept.append({name: outputs[name] for name in tokens})
    return kept


def contribution(tensor: TensorSpec, feed: Feed, runs: Sequence[Outputs]) -> Array:
    """An output of all runs, or its change where it carries an input; ``feed`` is that of the first run."""
    values = np.stack([np.asarray(outputs[tensor.name]) for outputs in runs if tensor.name in outputs])
    carried = tensor.alias or _CARRIED_INPUT.get(tensor.name)
    if carried is None:
        return values
    before = feed[carried].astype(values.dtype).astype(np.float64)
    change: Array = values.astype(np.float64) - before
    return change


def output_error(tensor: TensorSpec, a: Array, b: Array) -> float:
    """The error of `contribution` ``a`` against the expected ``b``: a share, levels or a relative error, by its dtype.

    For a cache this is the error of the slots that the run wrote; it is infinite if another slot changed.
    """
    if tensor.dtype == "int64":
        return float(np.mean(a != b))
    if tensor.dtype == "uint8":
        return float(np.mean(np.abs(a.astype(np.int16) - b.astype(np.int16))))
    if tensor.alias is not None and a[b == 0].any():
        return float("inf")
    return relative_error(a, b)


def _require(spec: GraphSpec, precision: str, sizes: Sizes, errors: Mapping[str, float]) -> None:
    for tensor in spec.outputs:
        allowed = tolerance(tensor, precision)
        if not errors[tensor.name] <= allowed:
            raise ExportError(
                f"{spec.name}.{precision}: {tensor.name} is {errors[tensor.name]:.2e} from its torch module at "
                f"{dict(sizes)}; at most {allowed:.0e} is allowed"
            )


def tolerance(tensor: TensorSpec, precision: str) -> float:
    """The largest `output_error` that this output may have in this precision set."""
    table = {"int64": TOKEN_TOLERANCE, "uint8": LEVEL_TOLERANCE}.get(tensor.dtype, FLOAT_TOLERANCE)
    return table[precision]
