"""Traces a module to an ONNX graph at opset 24, with the tensor names of graphs.py and the weight names of PyTorch."""

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
    """Trace one graph of ``network`` and simplify it.

    No weight of the result is folded or renamed, and it has no metadata. Inner shapes are in terms of the axis names.

    Args:
        network: its floats have the type of ``precision``, as the inputs and outputs of dtype "float" do.
        tensors: if ``network`` is on the meta device, the tensors from which its weights are read when needed.

    Raises:
        ExportError: an input is unused, or an output does not have the contract's name or type.
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
    """The initialisers that are weights of ``network``: its parameters and its buffers."""
    own = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
    return own & set(model.graph.initializers)


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The protobuf that ships. Of the inner tensors only those of `NAMED` keep their recorded shapes."""
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
        log.setLevel(logging.ERROR)  # at each export it reports that torchvision is not installed
        # torch traces fake tensors as it traces real ones; for tensors on the meta device it would add copies.
        with FakeTensorMode() if weightless else contextlib.nullcontext(), warnings.catch_warnings():
            # torch 2.13 reports an axis that several inputs share as an unused name, and its own deprecations.
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

    ``patches`` is a product of two rounded halves; the tracer finds this out. No upper bounds are set: the graph works
    at any size, and graphs.py holds the range for which an engine is built.
    """
    dims: dict[str, object] = {a.name: Dim(a.name, min=a.min) for a in spec.axes}
    dims["patches"] = Dim.DYNAMIC
    return tuple({i: dims[a] for i, a in enumerate(t.axes) if isinstance(a, str)} for t in spec.inputs)


def _name_weights(model: ir.Model) -> set[str]:
    """Rename weights as the state dict does and return their names. Another value with such a name is renamed."""
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
    """Let a weight that was traced on the meta device load its values on demand; constant folding reads small ones."""
    dtype = value.dtype
    assert dtype is not None

    def load() -> ir.TensorProtocol:
        return TorchTensor(stored.load().to(to_torch_dtype(dtype)).contiguous(), name=value.name)

    value.const_value = ir.LazyTensor(load, dtype, ir.Shape(stored.shape), name=value.name)


def _simplify(model: ir.Model, weights: set[str]) -> None:
    """Fold and merge all constants except the weights, which stay as the state dict has them."""
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
    """Remove the constant zeros that the exporter adds for a missing bias.

    onnxscript 0.7.2 gives them the shape (channels, 2) on 3-D convolutions, which ONNX Runtime does not reject.
    """
    for node in model.graph:
        if node.op_type == "Conv" and len(node.inputs) == 3:
            bias = _constant(node.inputs[2])
            if bias is not None and len(bias.shape) == 2 and not bias.numpy().any():
                node.resize_inputs(2)


def _drop_whole_slices(model: ir.Model) -> None:
    """Remove slices from 0 to the end in steps of 1; indexing with None and ... produces them."""
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
    """Turn the `NAMED` tensor, which was an output for the trace, into an inner value with that name."""
    for name in _named(spec):
        value = model.graph.outputs.pop()
        if value.name != name or not value.uses():
            raise ExportError(f"{spec.name}: no output depends on the tensor {name!r}")


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
