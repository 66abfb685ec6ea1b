"""Precision sets: the module a set is traced from, what a half-precision set keeps in fp32, how close a graph must be.

The fp16 set is the same module after ``.half()``, traced again. That is sturdier than rewriting the fp32 graph: the
module's own ``.float()`` calls say where fp16 would fail, and a strongly typed engine sees exactly those casts.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import onnx_ir as ir
from torch import nn

from arlon_export.errors import ExportError

PRECISIONS = ("fp32", "fp16")

_MOVES = frozenset({
    "Cast", "Concat", "Expand", "Gather", "GatherND", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze",
    "Transpose", "Unsqueeze",
})
"""Operators that move values without computing with them."""

_SAMPLING = "sampling: probabilities below 6e-8 vanish in fp16, and equal rounding decides between tokens"
_FLOW = "re-noising, guidance and the Euler update: small steps added to latents over many calls"
_SINUSOID = "sinusoids of the timestep and fps: 1000 radians have a resolution of 0.5 in fp16"
_NORMALISATION = "shift and scale of the latents, which are float32 at the graph's edge"
_LEVELS = "pixels to 0..255: fp16 has a resolution of 0.06 to 0.12 there, which moves roundings"
_NORM = "mean of squares in the norm: values beyond 256 square beyond fp16's largest, 65504"
_FEED_FORWARD = "gated feed-forward and residual stream: T5-XXL leaves fp16's range there"
_BUCKETS = "logarithm that sorts distances into buckets: a rounded border moves a distance to its neighbour"

KEPT_FP32: Mapping[str, Mapping[str, str]] = {
    "text_encoder": {
        "RMSNormalization": _NORM, "Gelu": _FEED_FORWARD, "MatMul": _FEED_FORWARD, "Add": _FEED_FORWARD,
        "Mul": f"{_FEED_FORWARD}; {_BUCKETS}", "Log": _BUCKETS, "Div": _BUCKETS,
    },
    "ar_step": dict.fromkeys(
        ("Mul", "ReduceSum", "Sub", "Clip", "TopK", "Div", "Where", "Softmax", "CumSum"), _SAMPLING
    ),
    "dit": {
        **dict.fromkeys(("Add", "Sub", "Div", "Where", "ReduceSum"), _FLOW),
        "Mul": f"{_FLOW}; {_SINUSOID}", "Cos": _SINUSOID, "Sin": _SINUSOID, "Exp": _SINUSOID,
    },
    "vae_decoder": {
        "Mul": f"{_NORMALISATION}; {_LEVELS}", "Add": f"{_NORMALISATION}; {_LEVELS}", "Clip": _LEVELS, "Round": _LEVELS,
    },
    "vae_encoder": {"Div": f"{_NORMALISATION}; {_LEVELS}", "Sub": f"{_NORMALISATION}; {_LEVELS}"},
}
"""graph -> operator type -> why some nodes of that type stay in fp32 in the fp16 set. Nothing else may."""

FLOAT_TOLERANCE: Mapping[str, float] = {"fp32": 1e-4, "fp16": 2e-2}
"""Relative error ‖a−b‖/‖b‖ of an output against the fp32 torch module.

fp32: the order of sums differs, nothing else. fp16: weights and activations have 11 bits (5e-4), over tens of layers.
"""
LEVEL_TOLERANCE: Mapping[str, float] = {"fp32": 0.01, "fp16": 1.0}
"""Mean difference in levels of 0..255, for uint8 frames: a value near a half rounds either way; fp16 adds its error."""
TOKEN_TOLERANCE: Mapping[str, float] = {"fp32": 0.0, "fp16": 0.25}
"""Share of drawn tokens that may differ: fp16 logits (1e-3) move the borders between tokens; measured 0.04 to 0.08."""


def network_for(network: nn.Module, precision: str) -> nn.Module:
    """The module to trace for a precision set; the fp32 one is the module itself."""
    return copy.deepcopy(network).half() if precision == "fp16" else network


def kept_fp32(graph: str, model: ir.Model) -> dict[str, str]:
    """Operator types that compute in float32 in an fp16 graph, each with its reason.

    Raises:
        ExportError: an operator does so without a reason in `KEPT_FP32`.
    """
    reasons = KEPT_FP32.get(graph, {})
    found = {
        node.op_type for node in model.graph
        if node.op_type not in _MOVES and any(v.dtype == ir.DataType.FLOAT for v in node.outputs)
    }
    if unexplained := sorted(found - set(reasons)):
        raise ExportError(f"{graph}: {', '.join(unexplained)} in float32 in the fp16 set; precision.py gives no reason")
    return {op: reasons[op] for op in sorted(found)}
