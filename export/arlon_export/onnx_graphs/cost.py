"""What one run of a graph costs: floating-point operations, counted node by node, and bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx_ir as ir

from arlon_export.errors import ExportError
from arlon_export.onnx_graphs.feeds import Sizes, shape
from arlon_rt.graphs import GraphSpec, signature

_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "int64": 8, "bool": 1, "uint8": 1}


def graph_flops(model: ir.Model, sizes: Mapping[str, int]) -> int:
    """Floating-point operations of matrix products, convolutions and attention at these axis sizes.

    A multiply-add counts as 2. Attention counts every key, masked cache slots included.
    """
    return sum(_node_flops(node, sizes) for node in model.graph)


def graph_bytes(model: ir.Model, spec: GraphSpec, sizes: Sizes, *, precision: str) -> int:
    """Bytes that one run moves at least: all weights, all inputs, and the outputs that are not written in place."""
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    tensors = [*spec.inputs, *(t for t in spec.outputs if t.alias is None)]
    dtypes = [dtype for _, dtype, _ in signature(tensors, precision)]
    return weights + sum(math.prod(shape(t, sizes)) * _ITEM_BYTES[d] for t, d in zip(tensors, dtypes, strict=True))


def _node_flops(node: ir.Node, sizes: Mapping[str, int]) -> int:
    if node.op_type in ("MatMul", "Gemm"):
        transposed = node.op_type == "Gemm" and node.attributes.get_int("transA", False)
        inner = _shape(node, node.inputs[0], sizes)[-2 if transposed else -1]
        return 2 * math.prod(_shape(node, node.outputs[0], sizes)) * inner
    if node.op_type == "Conv":
        return 2 * math.prod(_shape(node, node.outputs[0], sizes)) * math.prod(_shape(node, node.inputs[1], sizes)[1:])
    if node.op_type == "Attention":
        query, key, value = (_shape(node, node.inputs[i], sizes) for i in range(3))
        return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    if node.op_type in ("ConvTranspose", "Einsum"):
        raise ExportError(f"{node.name} is a {node.op_type}; cost.py does not count its operations yet")
    return 0


def _shape(node: ir.Node, value: ir.Value | None, sizes: Mapping[str, int]) -> tuple[int, ...]:
    assert value is not None
    dims = value.shape.evaluate(sizes) if value.shape is not None else ()
    if value.shape is None or not all(isinstance(d, int) for d in dims):
        raise ExportError(f"{node.name} ({node.op_type}): the shape of {value.name} is not known: {value.shape}")
    return tuple(int(d) for d in dims if isinstance(d, int))
