"""Inputs and outputs that differ from the contract are found in all five places that state them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest

from arlon_engines.errors import BuildError
from arlon_engines.gate import LayerFacts, check_network
from arlon_export.errors import ExportError
from arlon_export.onnx_graphs import to_onnx
from arlon_rt.backends.ort.library import TYPES as ORT_TYPES
from arlon_rt.backends.ort.library import contract_differences
from arlon_rt.backends.trt import Gpu
from arlon_rt.backends.trt.library import TYPES as TRT_TYPES
from arlon_rt.bundle import Bundle
from arlon_rt.errors import BundleError
from arlon_rt.graphs import FLOAT_DTYPE, GraphSpec, StatedTensor, differences, graph_specs, signature
from fake_gpu import FakeGpu, TensorRT, plan_of
from tiny_bundle import TINY, write_tiny_bundle

GRAPH, PRECISION = "caption", "fp16"
SPEC = graph_specs(TINY)[GRAPH]
Tensors = list[StatedTensor]
INPUTS: Tensors = list(signature(SPEC.inputs, PRECISION))
OUTPUTS: Tensors = list(signature(SPEC.outputs, PRECISION))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny"))


Place = Callable[[Path, Tensors, Tensors], str]
"""The message about a caption graph with these inputs and outputs; "" if they are the contract's."""


def in_a_manifest(folder: Path, inputs: Tensors, outputs: Tensors) -> str:
    tree = json.loads((folder / "manifest.json").read_text())
    tree["graphs"][GRAPH][PRECISION] |= {"inputs": inputs, "outputs": outputs}
    (folder / "manifest.json").write_text(json.dumps(tree))
    return "; ".join(finding.message for finding in Bundle.open(folder).verify())


def in_onnx_runtime(folder: Path, inputs: Tensors, outputs: Tensors) -> str:
    types = {ours: theirs for theirs, ours in ORT_TYPES.items()}

    def nodes(tensors: Tensors) -> list[Any]:
        return [SimpleNamespace(name=name, type=types[dtype], shape=list(axes)) for name, dtype, axes in tensors]

    opened = SimpleNamespace(get_inputs=lambda: nodes(inputs), get_outputs=lambda: nodes(outputs))
    return "; ".join(contract_differences(opened, SPEC, PRECISION))


def in_an_engine(folder: Path, inputs: Tensors, outputs: Tensors) -> str:
    fake = FakeGpu()
    plan = plan_of(folder, GRAPH, PRECISION, tensors=[*inputs, *outputs])
    try:
        Gpu(TensorRT(fake), fake.stream).session(plan, SPEC, PRECISION).close()
    except BundleError as error:
        return str(error)
    return ""


def in_a_parsed_network(folder: Path, inputs: Tensors, outputs: Tensors) -> str:
    types = {ours: SimpleNamespace(name=theirs) for theirs, ours in TRT_TYPES.items()}

    def tensor(stated: StatedTensor) -> Any:
        name, dtype, axes = stated
        return SimpleNamespace(
            name=name, dtype=types[dtype], shape=[axis if isinstance(axis, int) else -1 for axis in axes]
        )

    read = [tensor(stated) for stated in inputs]
    layer = SimpleNamespace(type=SimpleNamespace(name="IDENTITY"), num_inputs=len(read), get_input=read.__getitem__)
    network = SimpleNamespace(
        num_inputs=len(inputs), get_input=read.__getitem__,
        num_outputs=len(outputs), get_output=lambda i: tensor(outputs[i]), num_layers=1, get_layer=lambda i: layer,
    )
    trt = SimpleNamespace(LayerType=SimpleNamespace(ATTENTION_INPUT="attention", KV_CACHE_UPDATE="update"))
    facts = LayerFacts(attention=0, masked=0, cache_updates=())
    try:
        check_network(trt, network, SPEC, PRECISION, Bundle.open(folder).graph(GRAPH, PRECISION), facts, [])
    except BuildError as error:
        return str(error)
    return ""


def in_an_export(folder: Path, inputs: Tensors, outputs: Tensors) -> str:
    types = {ours: theirs for theirs, ours in to_onnx.TYPES.items()}

    def values(tensors: Tensors) -> list[ir.Value]:
        return [ir.Value(name=n, type=ir.TensorType(types[d]), shape=ir.Shape(axes)) for n, d, axes in tensors]

    graph = ir.Graph(values(inputs), values(outputs), nodes=[], opset_imports={"": to_onnx.OPSET})
    try:
        to_onnx._sign(ir.Model(graph, ir_version=10), SPEC, PRECISION)
    except ExportError as error:
        return str(error)
    return ""


PLACES = [in_a_manifest, in_onnx_runtime, in_an_engine, in_a_parsed_network, in_an_export]


def changed(tensors: Tensors, at: int, **change: Any) -> Tensors:
    old = dict(zip(("name", "dtype", "axes"), tensors[at], strict=True))
    return [*tensors[:at], tuple({**old, **change}.values()), *tensors[at + 1 :]]  # type: ignore[list-item]


HIDDEN, USE_NULL = INPUTS
CAPTION_KV = OUTPUTS[0]
LARGER = tuple(axis + 1 if isinstance(axis, int) else axis for axis in HIDDEN[2])
HEADS = tuple(axis + 1 if isinstance(axis, int) else axis for axis in CAPTION_KV[2])
FAULTS: dict[str, tuple[Tensors, Tensors, str]] = {
    "an input's name": (changed(INPUTS, 0, name="hidden"), OUTPUTS, "inputs are hidden, use_null; the contract has"),
    "an output's name": (INPUTS, changed(OUTPUTS, 0, name="kv"), "the contract has caption_kv"),
    "an input's dtype": (changed(INPUTS, 0, dtype="float32"), OUTPUTS, "input last_hidden_state is float32 (batch, "),
    "an output's dtype": (INPUTS, changed(OUTPUTS, 0, dtype="float32"), "output caption_kv is float32 ("),
    "an input's rank": (changed(INPUTS, 1, axes=("batch", 1)), OUTPUTS, "input use_null is bool (batch, 1)"),
    "an output's rank": (INPUTS, changed(OUTPUTS, 0, axes=CAPTION_KV[2][1:]), "output caption_kv is float16 ("),
    "an input's static size": (changed(INPUTS, 0, axes=LARGER), OUTPUTS, f", {LARGER[-1]}); the contract has float16"),
    "an output's static size": (INPUTS, changed(OUTPUTS, 0, axes=HEADS), f"output caption_kv is float16 ({HEADS[0]}, "),
    "a missing input": (INPUTS[:1], OUTPUTS, "inputs are last_hidden_state; the contract has last_hidden_state, use_n"),
    "a missing output": (INPUTS, [], "outputs are none; the contract has caption_kv"),
    "an extra input": ([*INPUTS, ("fps", "float32", (1,))], OUTPUTS, "last_hidden_state, use_null, fps; the contract"),
    "an extra output": (INPUTS, [*OUTPUTS, ("mean", "float32", (1,))], "mean; the contract has"),
    "the order of inputs": (INPUTS[::-1], OUTPUTS, "inputs are use_null, last_hidden_state; the contract has last_hid"),
}


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A bundle of which a test may change the manifest."""
    return Path(shutil.copytree(folder, tmp_path / "bundle"))


def shown(place: Place, message: str) -> str:
    """A message as the place shows it: TensorRT does not state the names of axes."""
    return message.replace("batch", "?") if place in (in_an_engine, in_a_parsed_network) else message


@pytest.mark.parametrize("place", PLACES)
def test_inputs_and_outputs_of_the_contract_are_accepted(own: Path, place: Place) -> None:
    assert place(own, INPUTS, OUTPUTS) == ""


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("place", PLACES)
def test_a_difference_from_the_contract_is_found(own: Path, place: Place, fault: str) -> None:
    inputs, outputs, message = FAULTS[fault]
    found = place(own, inputs, outputs)
    if place is in_an_engine and "order" in fault:
        assert found == "", "an engine's tensors are found by name, and TensorRT may reorder them"
    else:
        assert shown(place, message) in found


OPEN_INPUT = changed(INPUTS, 0, axes=("batch", "prompt", None))
RENAMED = changed(INPUTS, 0, axes=("n", None, HIDDEN[2][2]))
OPEN_OUTPUT = changed(OUTPUTS, 0, axes=(None,) * len(CAPTION_KV[2]))
FIXED = changed(INPUTS, 0, axes=(1, "prompt", HIDDEN[2][2]))


@pytest.mark.parametrize(("inputs", "outputs", "accepted"), [
    (RENAMED, OUTPUTS, {"graph", "engine"}), (INPUTS, OPEN_OUTPUT, {"graph", "engine"}),
    (OPEN_INPUT, OUTPUTS, {"engine"}), (FIXED, OUTPUTS, {"engine"}), (INPUTS[::-1], OUTPUTS, {"engine"}),
], ids=["other names of axes", "an output's sizes left out", "an input's size left out", "a size fixed", "order"])
@pytest.mark.parametrize("stated_by", ["manifest", "graph", "engine"])
def test_a_manifest_may_differ_in_nothing_and_an_engine_in_most(
    stated_by: Any, inputs: Tensors, outputs: Tensors, accepted: set[str]
) -> None:
    found = differences(SPEC, PRECISION, inputs, outputs, stated_by=stated_by)
    assert (found == []) == (stated_by in accepted)


def test_a_dynamic_axis_with_one_size_may_be_static_in_a_graph() -> None:
    spec: GraphSpec = graph_specs(TINY)["ar_step"]
    (axis,) = [a for a in spec.axes if a.name == "length"]
    one = GraphSpec(
        name=spec.name, network=spec.network, inputs=spec.inputs, outputs=spec.outputs,
        axes=(*(a for a in spec.axes if a is not axis), type(axis)(name="length", min=1, opt=1, max=1)),
    )
    inputs = changed(list(signature(spec.inputs, PRECISION)), 0, axes=(1, 1))
    outputs = list(signature(spec.outputs, PRECISION))
    assert differences(one, PRECISION, inputs, outputs, stated_by="graph") == []
    assert differences(spec, PRECISION, inputs, outputs, stated_by="graph") == [
        "input tokens is int64 (1, 1); the contract has int64 (1, length)"
    ]


@pytest.mark.parametrize("types", [ORT_TYPES, TRT_TYPES, to_onnx.TYPES])
def test_every_dtype_of_the_contract_has_one_name_in_each_library(types: dict[Any, str]) -> None:
    dtypes = {dtype for spec in graph_specs(TINY).values() for t in (*spec.inputs, *spec.outputs)
              for dtype in ([t.dtype] if t.dtype != "float" else FLOAT_DTYPE.values())}
    assert sorted(types.values()) == sorted(dtypes)
