"""Precision sets: the module that a set is traced from, what half precision keeps in fp32, and the allowed errors.

The fp16 and bf16 sets are traced from the module in that type. The module's own ``.float()`` calls say where half
precision would fail, and a strongly typed engine sees exactly these casts. To rewrite the fp32 graph would be less
sturdy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor, nn

from arlon_export.checkpoints.network import with_tensors
from arlon_export.errors import ExportError

TORCH_DTYPE: Mapping[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PRECISIONS = tuple(TORCH_DTYPE)
RUNS_ON_CPU = ("fp32", "fp16")
"""The sets that ONNX Runtime runs on a CPU; it has no bf16 kernels for one."""

_MOVES = frozenset({
    "Cast", "Concat", "Expand", "Gather", "GatherND", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze",
    "Transpose", "Unsqueeze",
})
"""Operators that move values and compute nothing."""


@dataclass(frozen=True)
class _Reason:
    """Why an operator stays in fp32: fp16 has 11 bits and ends at 65504; bf16 has 8 bits and the range of fp32."""

    fp16: str
    bf16: str


_SAMPLING = _Reason(
    "sampling: probabilities below 6e-8 vanish in fp16, and equal rounding decides between tokens",
    "sampling: sums of probabilities need more than 8 bits, and equal rounding decides between tokens",
)
_FLOW = _Reason(*("re-noising, guidance and the Euler update: small steps added to latents over many calls",) * 2)
_SINUSOID = _Reason(
    "sinusoids of the timestep and fps: 1000 radians have a resolution of 0.5 in fp16",
    "sinusoids of the timestep and fps: 1000 radians have a resolution of 4 in bf16",
)
_RESIDUAL = _Reason(*(
    "residual stream: blocks add to it without a norm, and cross-attention reads it as it is; it leaves fp16's range",
) * 2)
_NORMALISATION = _Reason(*("shift and scale of the latents, which are float32 at the graph's edge",) * 2)
_LEVELS = _Reason(
    "pixels to 0..255: fp16 has a resolution of 0.06 to 0.12 there, which moves roundings",
    "pixels to 0..255: bf16 has a resolution of 0.5 to 1 there, which moves levels",
)
_NORM = _Reason(
    "mean of squares in the norm: values beyond 256 square beyond fp16's largest, 65504",
    "mean of squares in the norm: a sum of thousands of terms needs more than 8 bits",
)
_FEED_FORWARD = _Reason(
    "gated feed-forward and residual stream: T5-XXL leaves fp16's range there",
    "gated feed-forward and residual stream: small terms added to large ones need more than 8 bits",
)
_BUCKETS = _Reason(*(
    "logarithm that sorts distances into buckets: a rounded border moves a distance to its neighbour",
) * 2)

_NEAREST = _Reason(*("nearest code: equal rounding decides between codes, and distances are differences of sums",) * 2)

_KEPT: Mapping[str, Mapping[str, tuple[_Reason, ...]]] = {
    "text_encoder": {
        "RMSNormalization": (_NORM,), "Gelu": (_FEED_FORWARD,), "MatMul": (_FEED_FORWARD,), "Add": (_FEED_FORWARD,),
        "Mul": (_FEED_FORWARD, _BUCKETS), "Log": (_BUCKETS,), "Div": (_BUCKETS,),
    },
    "ar_step": dict.fromkeys(
        ("Mul", "ReduceSum", "Sub", "Clip", "TopK", "Div", "Where", "Softmax", "CumSum"), (_SAMPLING,)
    ),
    "dit": {
        **dict.fromkeys(("Sub", "Div", "Where", "ReduceSum"), (_FLOW,)), "Add": (_FLOW, _RESIDUAL),
        **dict.fromkeys(("LayerNormalization", "MatMul", "Gemm"), (_RESIDUAL,)),
        "Mul": (_FLOW, _SINUSOID, _RESIDUAL), "Cos": (_SINUSOID,), "Sin": (_SINUSOID,), "Exp": (_SINUSOID,),
    },
    "vae_decoder": {
        "Mul": (_NORMALISATION, _LEVELS), "Add": (_NORMALISATION, _LEVELS), "Clip": (_LEVELS,), "Round": (_LEVELS,),
    },
    "vq_encoder": dict.fromkeys(("Mul", "ReduceSum", "Sub", "MatMul", "Gemm", "Pow"), (_NEAREST,)),
    "vae_encoder": {"Div": (_NORMALISATION, _LEVELS), "Sub": (_NORMALISATION, _LEVELS)},
}
"""graph -> operator type -> why some nodes of this type stay in fp32 in a half-precision set. No other node may."""

FLOAT_TOLERANCE: Mapping[str, float] = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
"""Relative error ‖a−b‖/‖b‖ of an output against the fp32 torch module.

In fp32 only the order of sums differs. In fp16 weights and activations have 11 bits (5e-4) through tens of layers, in
bf16 they have 8 bits (4e-3).
"""
LEVEL_TOLERANCE: Mapping[str, float] = {"fp32": 0.01, "fp16": 1.0, "bf16": 4.0}
"""Mean difference of uint8 frames, in levels of 0..255. A value near a half may round either way, and half precision
adds its error."""
TOKEN_TOLERANCE: Mapping[str, float] = {"fp32": 0.0, "fp16": 0.25, "bf16": 0.5}
"""Share of drawn tokens that may differ. Rounded logits (1e-3 in fp16, 1e-2 in bf16) move the borders between tokens;
0.04 to 0.08 were measured in fp16."""


def network_for(network: nn.Module, precision: str) -> nn.Module:
    """The module from which a precision set is traced; for fp32 it is ``network`` itself."""
    if precision == "fp32":
        return network

    def rounded(_: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        if tensor.numel() > 1 and not any(tensor.stride()):  # expanded zeros stand for a weight that is not read
            return tensor.detach().as_strided((), ()).to(TORCH_DTYPE[precision]).expand(tensor.shape)
        return tensor.to(TORCH_DTYPE[precision])

    return with_tensors(network, rounded)


def kept_fp32(graph: str, model: ir.Model, precision: str) -> dict[str, str]:
    """Operator types that compute in float32 in a half-precision graph, each with its reason; empty for the fp32 set.

    Raises:
        ExportError: an operator computes in float32 without a reason.
    """
    if precision == "fp32":
        return {}
    reasons = _KEPT.get(graph, {})
    found = {
        node.op_type for node in model.graph
        if node.op_type not in _MOVES and any(v.dtype == ir.DataType.FLOAT for v in node.outputs)
    }
    if unexplained := sorted(found - set(reasons)):
        names = ", ".join(unexplained)
        raise ExportError(f"{graph}: {names} in float32 in the {precision} set; precision.py gives no reason")
    return {op: "; ".join(getattr(reason, precision) for reason in reasons[op]) for op in sorted(found)}
