"""Each exported graph against its torch module: ONNX Runtime on random feeds at two sets of axis sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
from arlon_rt.graphs import GraphSpec, TensorSpec

Array = NDArray[np.generic]
Outputs = Mapping[str, object]

_RUNS = {"ar_step": 8}
"""Feeds a size where one says little: a single drawn token is all of an output."""


def check_graph(bundle: Bundle, spec: GraphSpec, network: nn.Module, precision: str) -> float:
    """Compare one graph of ``bundle`` with ``network`` (fp32) and return the largest relative error of a float output.

    ONNX Runtime computes fp16 graphs in fp32 where its CPU has no fp16 kernel, so for that set the torch module in fp16
    is compared, too: it rounds after each operator, as a GPU does.

    Raises:
        ExportError: an output is further off than precision.py allows; the message names it, the sizes and the error.
    """
    exact = GraphModule(spec, network).eval()
    half = GraphModule(spec, network_for(network, precision)).eval() if precision == "fp16" else None
    session = open_session(bundle, spec.name, precision=precision, threads=1)
    largest = 0.0
    try:
        for sizes in check_sizes(bundle.model, spec):
            feeds = [random_feed(bundle.model, spec, sizes, half=False, seed=s) for s in range(_RUNS.get(spec.name, 1))]
            expected = [_run_torch(spec, exact, feed) for feed in feeds]
            found: list[Sequence[Outputs]] = [[session.run(feed) for feed in feeds]]
            if half is not None:
                found.append([_run_torch(spec, half, _in_half(spec, feed)) for feed in feeds])
            for outputs in found:
                errors = {t.name: _error(t, feeds, outputs, expected) for t in spec.outputs}
                _require(spec, precision, sizes, errors)
                largest = max(largest, *(errors[t.name] for t in spec.outputs if t.dtype.startswith("float")), 0.0)
    finally:
        session.close()
    return largest


def relative_error(actual: Array, expected: Array) -> float:
    """‖a−b‖/‖b‖ over all values, in float64; infinite where shapes differ or a value is not finite."""
    if actual.shape != expected.shape:
        return float("inf")
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    error = np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-12)
    return float(error) if np.isfinite(error) else float("inf")


def _run_torch(spec: GraphSpec, module: nn.Module, feed: Feed) -> dict[str, Array]:
    with torch.inference_mode():
        outputs = module(*(torch.from_numpy(feed[t.name]) for t in spec.inputs))
    return {t.name: value.numpy() for t, value in zip(spec.outputs, outputs, strict=False)}


def _in_half(spec: GraphSpec, feed: Feed) -> Feed:
    return {t.name: feed[t.name].astype(numpy_dtype(t, half=True)) for t in spec.inputs}


def _error(tensor: TensorSpec, feeds: list[Feed], found: Sequence[Outputs], expected: Sequence[Outputs]) -> float:
    """One output's error over all runs together, in the measure of its dtype.

    A cache is judged by what the run wrote: its error is relative to the change, not to the slots left alone.
    """
    a, b = (np.stack([np.asarray(outputs[tensor.name]) for outputs in runs]) for runs in (found, expected))
    if tensor.dtype == "int64":
        return float(np.mean(a != b))
    if tensor.dtype == "uint8":
        return float(np.mean(np.abs(a.astype(np.int16) - b.astype(np.int16))))
    if tensor.alias is not None:
        before = np.stack([feed[tensor.alias] for feed in feeds]).astype(a.dtype)
        written = b != before.astype(b.dtype)
        return relative_error(a[written], b[written]) if np.array_equal(a[~written], before[~written]) else float("inf")
    return relative_error(a, b)


def _require(spec: GraphSpec, precision: str, sizes: Sizes, errors: Mapping[str, float]) -> None:
    for tensor in spec.outputs:
        table = {"int64": TOKEN_TOLERANCE, "uint8": LEVEL_TOLERANCE}.get(tensor.dtype, FLOAT_TOLERANCE)
        if not errors[tensor.name] <= table[precision]:
            raise ExportError(
                f"{spec.name}.{precision}: {tensor.name} is {errors[tensor.name]:.2e} from its torch module at "
                f"{dict(sizes)}; at most {table[precision]:.0e} is allowed"
            )
