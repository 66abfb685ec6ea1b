"""Each exported graph against its torch module: ONNX Runtime on random feeds at two sets of axis sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from arlon_export.errors import ExportError
from arlon_export.feeds import Feed, Sizes, check_sizes, numpy_dtype, random_feed
from arlon_export.precision import FLOAT_TOLERANCE, LEVEL_TOLERANCE, TOKEN_TOLERANCE, network_for
from arlon_export.wrappers import GraphModule
from arlon_rt.backends.session import open_session
from arlon_rt.bundle import Bundle
from arlon_rt.config import ModelConfig
from arlon_rt.graphs import GraphSpec, TensorSpec

Array = NDArray[np.generic]
Outputs = Mapping[str, object]

_DRAWS = {"ar_step": 64}
"""Runs a size where one says little: of the further ones the drawn token alone is kept, not the caches."""


_CHANGED = {"latents_out": "latents"}
"""Outputs that carry an input along: judged by the difference, or a small step would hide a wrong velocity."""


@dataclass(frozen=True)
class Agreement:
    """How close a graph came to its torch module."""

    errors: Mapping[str, float]
    """Worst error of each output: relative for floats, share of tokens, mean difference in levels for frames."""
    unproven: tuple[str, ...]
    """Outputs that were all zero, or changed nothing, at some sizes: there is nothing to be close to, as with the
    zero-initialised last layers of an untrained checkpoint."""

    def __str__(self) -> str:
        shown = [name for name in self.errors if name not in self.unproven]
        worst = max(shown, key=lambda name: self.errors[name], default=None)
        parts = [f"{worst} within {self.errors[worst]:.1e}"] if worst else []
        return ", ".join([*parts, *(f"{name} NOT COMPARED (all zero)" for name in self.unproven)])


def check_graph(bundle: Bundle, spec: GraphSpec, network: nn.Module, precision: str) -> Agreement:
    """Compare one graph of ``bundle`` with ``network`` (fp32) at two sets of axis sizes.

    ONNX Runtime computes fp16 graphs in fp32 where its CPU has no fp16 kernel, so for that set the torch module in fp16
    is compared, too: it rounds after each operator, as a GPU does.

    Raises:
        ExportError: an output is further off than precision.py allows; the message names it, the sizes and the error.
    """
    exact = GraphModule(spec, network).eval()
    half = GraphModule(spec, network_for(network, precision)).eval() if precision == "fp16" else None
    session = open_session(bundle, spec.name, precision=precision, threads=1)
    worst: dict[str, float] = {}
    unproven: list[str] = []
    try:
        for sizes in check_sizes(bundle.model, spec):
            def draws(run: Callable[[Feed], Outputs], sizes: Sizes = sizes) -> list[Outputs]:
                return _draws(bundle.model, spec, sizes, run)

            feed = random_feed(bundle.model, spec, sizes, half=False, seed=0)
            expected = draws(lambda feed: _run_torch(spec, exact, feed))
            unproven += [t.name for t in spec.outputs if t.dtype != "int64" and not _signal(t, feed, expected).any()]
            found = [draws(session.run)]
            if half is not None:
                found.append(draws(lambda feed: _run_torch(spec, half, _in_half(spec, feed))))
            for outputs in found:
                errors = {t.name: _error(t, feed, outputs, expected) for t in spec.outputs}
                _require(spec, precision, sizes, errors)
                worst = {name: max(error, worst.get(name, 0.0)) for name, error in errors.items()}
    finally:
        session.close()
    return Agreement(worst, tuple(dict.fromkeys(unproven)))


def relative_error(actual: Array, expected: Array) -> float:
    """‖a−b‖/‖b‖ over all values, in float64; infinite where shapes differ or a value is not finite."""
    if actual.shape != expected.shape:
        return float("inf")
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    error = np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-12)
    return float(error) if np.isfinite(error) else float("inf")


def _draws(c: ModelConfig, spec: GraphSpec, sizes: Sizes, run: Callable[[Feed], Outputs]) -> list[Outputs]:
    """Outputs of the first run (seed 0), and the drawn tokens of the others."""
    tokens = {t.name for t in spec.outputs if t.dtype == "int64"}
    kept = []
    for seed in range(_DRAWS.get(spec.name, 1)):
        outputs = run(random_feed(c, spec, sizes, half=False, seed=seed))
        kept.append(outputs if seed == 0 else {name: outputs[name] for name in tokens})
    return kept


def _run_torch(spec: GraphSpec, module: nn.Module, feed: Feed) -> dict[str, Array]:
    with torch.inference_mode():
        outputs = module(*(torch.from_numpy(feed[t.name]) for t in spec.inputs))
    return {t.name: value.numpy() for t, value in zip(spec.outputs, outputs, strict=False)}


def _in_half(spec: GraphSpec, feed: Feed) -> Feed:
    return {t.name: feed[t.name].astype(numpy_dtype(t, half=True)) for t in spec.inputs}


def _signal(tensor: TensorSpec, feed: Feed, runs: Sequence[Outputs]) -> Array:
    """What the network itself contributed to an output, all runs together; ``feed`` is the first run's."""
    values = np.stack([np.asarray(outputs[tensor.name]) for outputs in runs if tensor.name in outputs])
    carried = tensor.alias or _CHANGED.get(tensor.name)
    if carried is None:
        return values
    change: Array = values.astype(np.float64) - feed[carried].astype(values.dtype).astype(np.float64)
    return change


def _error(tensor: TensorSpec, feed: Feed, found: Sequence[Outputs], expected: Sequence[Outputs]) -> float:
    """One output's error over all runs together, in the measure of its dtype.

    A cache is judged by what the run wrote, and slots it must leave alone have to be left alone exactly.
    """
    a, b = (_signal(tensor, feed, runs) for runs in (found, expected))
    if tensor.dtype == "int64":
        return float(np.mean(a != b))
    if tensor.dtype == "uint8":
        return float(np.mean(np.abs(a.astype(np.int16) - b.astype(np.int16))))
    if tensor.alias is not None and a[b == 0].any():
        return float("inf")
    return relative_error(a, b)


def _require(spec: GraphSpec, precision: str, sizes: Sizes, errors: Mapping[str, float]) -> None:
    for tensor in spec.outputs:
        table = {"int64": TOKEN_TOLERANCE, "uint8": LEVEL_TOLERANCE}.get(tensor.dtype, FLOAT_TOLERANCE)
        if not errors[tensor.name] <= table[precision]:
            raise ExportError(
                f"{spec.name}.{precision}: {tensor.name} is {errors[tensor.name]:.2e} from its torch module at "
                f"{dict(sizes)}; at most {table[precision]:.0e} is allowed"
            )
