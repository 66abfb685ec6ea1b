"""The cost of one run of a graph: floating-point operations, and the bytes that it must move."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from arlon_export.checkpoints.checkpoint import build_module
from arlon_export.onnx_graphs.feeds import numpy_dtype, shape
from arlon_export.onnx_graphs.wrappers import GraphModule
from arlon_rt.config import ModelConfig
from arlon_rt.graphs import TensorSpec
from gpu.models import Case, weight_bytes
from gpu.runners import Feed


def count_flops(model: ModelConfig, case: Case, sizes: Mapping[str, int]) -> int:
    """Floating-point operations of products, convolutions and attention in one run; a multiply-add counts 2."""
    half = case.precision == "fp16"
    with torch.device("meta"):
        network = build_module(model, case.spec.network).eval()
        network.to("meta", torch.float16 if half else torch.float32)  # the rotary table is built on the CPU
        inputs = [torch.empty(shape(t, sizes), dtype=getattr(torch, numpy_dtype(t, half))) for t in case.spec.inputs]
    # The fused attention kernels of the CPU are not counted; the plain one is two products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        GraphModule(case.spec, network)(*inputs)
    return int(counter.get_total_flops())


def count_bytes(case: Case, feed: Feed, outputs: Feed) -> int:
    """Weights, inputs and outputs, each moved once.

    Caches are updated in place. A step reads all slots, of which its mask uses some, and writes almost nothing. A
    prefix writes a slot for each token of the prompt and reads none.
    """
    half = case.precision == "fp16"

    def size(tensor: TensorSpec, shape: tuple[int, ...]) -> int:
        return int(np.prod(shape)) * np.dtype(numpy_dtype(tensor, half)).itemsize

    caches = {t.alias for t in case.spec.outputs if t.alias}
    moved = weight_bytes(case) + sum(size(t, outputs[t.name].shape) for t in case.spec.outputs if not t.alias)
    for tensor in case.spec.inputs:
        amount = size(tensor, feed[tensor.name].shape)
        if tensor.name in caches and case.spec.name == "ar_prefix":
            amount = amount * feed["last_hidden_state"].shape[1] // feed[tensor.name].shape[2]
        moved += amount
    return moved
