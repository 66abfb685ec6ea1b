"""One torch module, one `GraphSpec`, one ONNX graph at opset 24, with the names of graphs.py and of the state dict."""

from __future__ import annotations

import contextlib
import logging
import warnings

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnx_ir.tensor_adapters import TorchTensor, to_torch_dtype
from onnxscript.optimizer import fold_constants_ir
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim

from arlon_export.checkpoints.network import with_tensors
from arlon_export.checkpoints.state_dict import StateDict, StoredTensor
from arlon_export.errors import ExportError
from arlon_export.onnx_graphs.feeds import random_feed, trace_sizes
from arlon_export.onnx_graphs.precision import TORCH_DTYPE
from arlon_export.onnx_graphs.wrappers import NAMED, PREFIX, GraphModule
from arlon_rt.config import ModelConfig
from arlon_rt.graphs import GraphSpec, StatedTensor, TensorSpec, differences

OPSET = 24
TRACE_SEED = 0
TYPES = {
    ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.INT64: "int64", ir.DataType.BOOL: "bool", ir.DataType.UINT8: "uint8",
}
"""ONNX's element types -> the dtypes of graphs.py."""


def export_graph(
    c: ModelConfig, spec: GraphSpec, network: nn.Module, *, precision: str, tensors: StateDict | None = None
) -> ir.Model:
    """Trace one graph of ``network`` and clean it up.

    The result has no weights folded or renamed, no metadata, and inner shapes written in terms of the axis names.

    Args:
        network: in the float type of ``precision``, which is that of the inputs and outputs of dtype "float", too.
        tensors: what its weights are read from when they are needed, where ``network`` is on the meta device.

    Raises:
        ExportError: an input is unused, or an output does not end as the contract asks.
    """
    model = _trace(c, spec, network, precision)
    weights = _name_weights(model)
    if tensors is not None:
        for name in weights:
            _read_when_needed(model.graph.initializers[name], tensors[name])
    _simplify(model, weights)
    _take_named_from_outputs(model, spec)
    _sign(model, spec, precision)
    _check(model, spec)
    return model


def weight_names(model: ir.Model, network: nn.Module) -> set[str]:
    """Initialisers that are weights of ``network``: its state dict, and buffers it makes itself."""
    own = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
    return own & set(model.graph.initializers)


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The protobuf as it ships: of the inner tensors only the named ones keep their shapes on record."""
    proto = ir.to_proto(model)
    kept = [v for v in proto.graph.value_info if v.name in NAMED.values()]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)
    return proto


def _trace(c: ModelConfig, spec: GraphSpec, network: nn.Module, precision: str) -> ir.Model:
    feed = random_feed(c, spec, trace_sizes(c, spec), half=False, seed=TRACE_SEED)
    weightless = any(parameter.is_meta for parameter in network.parameters())

    def example(tensor: TensorSpec) -> torch.Tensor:
        value = torch.from_numpy(feed[tensor.name])
        return value.to(TORCH_DTYPE[precision]) if tensor.dtype == "float" else value

    log = logging.getLogger("torch.onnx")
    level = log.level
    try:
        log.setLevel(logging.ERROR)  # it reports each export that torchvision is not installed
        # Of tensors without memory torch traces fake ones as real ones; on the meta device it adds copies.
        with FakeTensorMode() if weightless else contextlib.nullcontext(), warnings.catch_warnings():
            # torch 2.13: an axis that several inputs share is reported as a name not used; and its own deprecations
            warnings.filterwarnings("ignore", message="# The axis name", category=UserWarning)
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            traced = with_tensors(network, _on_cpu) if weightless else network
            program = torch.onnx.export(
                GraphModule(spec, traced).eval(),
                tuple(example(t) for t in spec.inputs),
                dynamo=True, opset_version=OPSET, verbose=False, optimize=False,
                dynamic_shapes=(_dynamic_shapes(spec),),
                input_names=[t.name for t in spec.inputs],
                output_names=[*(t.name for t in spec.outputs), *_named(spec)],
            )
    finally:
        log.setLevel(level)
    assert program is not None
    return program.model


def _on_cpu(_: str, tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)


def _named(spec: GraphSpec) -> list[str]:
    return [NAMED[spec.name]] if spec.name in NAMED else []


def _dynamic_shapes(spec: GraphSpec) -> tuple[dict[int, object], ...]:
    """torch.export's dynamic dimensions of every input.

    ``patches``, a product of two rounded halves, is left to the tracer to recognise. Upper bounds are left open: the
    graph works at any size, and graphs.py holds the range an engine is built for.
    """
    dims: dict[str, object] = {a.name: Dim(a.name, min=a.min) for a in spec.axes}
    dims["patches"] = Dim.DYNAMIC
    return tuple({i: dims[a] for i, a in enumerate(t.axes) if isinstance(a, str)} for t in spec.inputs)


def _name_weights(model: ir.Model) -> set[str]:
    """Give initialisers the state-dict names back, and mark them; another value of that name makes room."""
    graph = model.graph
    taken = {v.name: v for node in graph for v in node.outputs if v.name}
    weights = set()
    for name in list(graph.initializers):
        if name.startswith(PREFIX):
            key = name.removeprefix(PREFIX)
            if key in taken:
                taken[key].name = f"{key}.value"
            value = graph.initializers.pop(name)
            value.name = key
            graph.initializers[key] = value
            weights.add(key)
    return weights


def _read_when_needed(value: ir.Value, stored: StoredTensor) -> None:
    """Give a weight traced on the meta device its values; constant folding reads the smallest ones."""
    dtype = value.dtype
    assert dtype is not None

    def load() -> ir.TensorProtocol:
        return TorchTensor(stored.load().to(to_torch_dtype(dtype)).contiguous(), name=value.name)

    value.const_value = ir.LazyTensor(load, dtype, ir.Shape(stored.shape), name=value.name)


def _simplify(model: ir.Model, weights: set[str]) -> None:
    """Fold and merge everything but the weights, so that these stay as the state dict has them."""
    def should_fold(node: ir.Node) -> bool | None:
        return False if any(v is not None and v.name in weights for v in node.inputs) else None

    passes.InlinePass()(model)
    for _ in range(2):
        fold_constants_ir(model, onnx_shape_inference=True, should_fold=should_fold)
        passes.IdentityEliminationPass()(model)
        passes.RemoveUnusedNodesPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _drop_zero_biases(model)
    _drop_whole_slices(model)
    _merge_constants(model, weights)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    return None if value is None or not value.is_initializer() else value.const_value


def _drop_zero_biases(model: ir.Model) -> None:
    """Take away the constant zeros that stand in for a missing bias.

    onnxscript 0.7.2 gives them the shape (channels, 2) on 3-D convolutions, which ONNX Runtime lets pass.
    """
    for node in model.graph:
        if node.op_type == "Conv" and len(node.inputs) == 3:
            bias = _constant(node.inputs[2])
            if bias is not None and len(bias.shape) == 2 and not bias.numpy().any():
                node.resize_inputs(2)


def _drop_whole_slices(model: ir.Model) -> None:
    """Take away slices from 0 to the end in steps of 1, which indexing with None and ... leaves behind."""
    for node in model.graph:
        if node.op_type != "Slice" or len(node.inputs) != 5:
            continue
        limits = [_constant(node.inputs[i]) for i in (1, 2, 4)]
        if all(t is not None and t.size == 1 for t in limits):
            start, end, step = (int(t.numpy().item()) for t in limits if t is not None)
            source, sliced = node.inputs[0], node.outputs[0]
            if source and (start, step) == (0, 1) and end >= 2**31 - 1 and not sliced.is_graph_output():
                ir.convenience.replace_all_uses_with(sliced, source)


def _merge_constants(model: ir.Model, weights: set[str]) -> None:
    seen: dict[tuple[object, ...], ir.Value] = {}
    for name in list(model.graph.initializers):
        value = model.graph.initializers[name]
        if name in weights or value.const_value is None:
            continue
        tensor = value.const_value
        first = seen.setdefault((tensor.dtype, tuple(tensor.shape.numpy()), tensor.tobytes()), value)
        if first is not value:
            ir.convenience.replace_all_uses_with(value, first)
            del model.graph.initializers[name]


def _take_named_from_outputs(model: ir.Model, spec: GraphSpec) -> None:
    """Turn the named float tensor, an output while tracing, into an inner value with that name."""
    for name in _named(spec):
        value = model.graph.outputs.pop()
        if value.name != name or not value.uses():
            raise ExportError(f"{spec.name}: the tensor {name!r} does not lie on the way to the outputs")


def _sign(model: ir.Model, spec: GraphSpec, precision: str) -> None:
    """Compare inputs and outputs with the contract, and write its axis names on them."""
    graph = model.graph
    graph.name = spec.name
    model.producer_name, model.producer_version = "arlon-rt", ""
    inputs, outputs = [_stated(v) for v in graph.inputs], [_stated(v) for v in graph.outputs]
    if found := differences(spec, precision, inputs, outputs, stated_by="graph"):
        raise ExportError(f"{spec.name}: {found[0]}")
    for value, tensor in zip((*graph.inputs, *graph.outputs), (*spec.inputs, *spec.outputs), strict=True):
        value.shape = ir.Shape(tensor.axes)


def _stated(value: ir.Value) -> StatedTensor:
    sizes = value.shape or ()
    dtype = TYPES.get(value.dtype, value.dtype.name) if value.dtype else "untyped"
    return value.name or "", dtype, tuple(size if isinstance(size, int) else size.value for size in sizes)


def _check(model: ir.Model, spec: GraphSpec) -> None:
    for value in model.graph.inputs:
        if not value.uses():
            raise ExportError(f"{spec.name}: the input {value.name!r} is not used by the graph")
    for value in model.graph.outputs:
        producer = value.producer()
        if value.dtype == ir.DataType.UINT8 and (producer is None or producer.op_type != "Cast"):
            raise ExportError(f"{spec.name}: {value.name!r} comes from {producer}; TensorRT asks for a Cast there")
