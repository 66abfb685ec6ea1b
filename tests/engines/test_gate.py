"""Planted faults: graphs that TensorRT accepts, or refuses without a helpful message. None becomes an engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import ModelProto, NodeProto, helper

from arlon_engines.errors import BuildError
from arlon_engines.gate import check_warnings
from engine_builds import build_engines, change_graph
from tiny_bundle import write_tiny_bundle


def refused(folder: Path, graph: str, edit: Callable[[ModelProto], None]) -> str:
    """Why the changed graph has no engine."""
    change_graph(folder, graph, edit)
    engines = build_engines(folder, graph)
    assert engines.built == {}
    assert list(engines.store.folder.rglob("*.engine")) == []
    return engines.failed[graph]


def nodes(model: ModelProto, operator: str) -> list[NodeProto]:
    found = [node for node in model.graph.node if node.op_type == operator]
    assert found, f"the graph has no {operator}"
    return found


def insert(model: ModelProto, place: NodeProto, *new: NodeProto, after: bool = False) -> None:
    index = list(model.graph.node).index(place) + after
    for node in reversed(new):
        model.graph.node.insert(index, node)


def test_a_cache_update_that_became_a_scatter_is_refused(copy: Path) -> None:
    def edit(model: ModelProto) -> None:
        update = nodes(model, "TensorScatter")[3]
        cache, rows, index = update.input
        model.graph.initializer.append(helper.make_tensor("row_shape", onnx.TensorProto.INT64, [4], [-1, 1, 1, 1]))
        insert(
            model, update, helper.make_node("Reshape", [index, "row_shape"], ["first_rows"]),
            helper.make_node("Shape", [rows], ["rows_shape"]),
            helper.make_node("Expand", ["first_rows", "rows_shape"], ["all_rows"]),
        )
        scatter = helper.make_node("ScatterElements", [cache, "all_rows", rows], list(update.output), axis=2)
        insert(model, update, scatter)
        model.graph.node.remove(update)

    assert refused(copy, "ar_step", edit) == (
        "ar_step.fp16: 9 of 10 caches are updated in place; not value_1 -> value_1_out"
    )


def test_a_cache_that_is_copied_before_its_update_is_refused(copy: Path) -> None:
    def edit(model: ModelProto) -> None:
        update = nodes(model, "TensorScatter")[0]
        cache = update.input[0]
        insert(model, update, helper.make_node("Add", [cache, cache], ["copied"], "copying_node"))
        update.input[0] = "copied"

    assert "key_0 -> key_0_out" in refused(copy, "ar_prefix", edit)


def test_an_updated_cache_that_is_no_output_is_refused(copy: Path) -> None:
    def edit(model: ModelProto) -> None:
        update = nodes(model, "TensorScatter")[1]
        out = update.output[0]
        update.output[0] = "inside"
        for node in model.graph.node:
            node.input[:] = ["inside" if name == out else name for name in node.input]
        insert(model, update, helper.make_node("Add", ["inside", "inside"], [out]), after=True)

    assert "9 of 10 caches are updated in place; not value_0 -> value_0_out" in refused(copy, "ar_step", edit)


def test_a_mask_that_was_dropped_is_refused_with_the_input_nobody_reads(copy: Path) -> None:
    def edit(model: ModelProto) -> None:
        for node in nodes(model, "Attention"):
            if len(node.input) > 3:
                node.input[3] = ""

    message = refused(copy, "dit", edit)
    assert "0 of its attention layers are masked; 8 must be" in message


def test_one_mask_of_many_is_missed(copy: Path) -> None:
    def edit(model: ModelProto) -> None:
        node = next(node for node in nodes(model, "Attention") if len(node.input) > 3)
        node.input[3] = ""

    assert "4 of its attention layers are masked; 5 must be" in refused(copy, "ar_step", edit)


@pytest.mark.parametrize("masked", [True, False])
def test_the_length_that_the_parser_ignores_is_refused(copy: Path, masked: bool) -> None:
    """Attention's nonpad_kv_seqlen: ONNX Runtime honours it, TensorRT drops it and attends to what lies behind."""
    def edit(model: ModelProto) -> None:
        for node in nodes(model, "Attention"):
            q, k, v, mask = node.input
            node.input[:] = [q, k, v, mask if masked else "", "", "", "write_index"]

    message = refused(copy, "ar_step", edit)
    assert "TensorRT ignores the input write_index of node node_scaled_dot_product_attention (Attention)" in message
    assert ("0 of its attention layers are masked; 5 must be" in message) != masked


def test_a_warning_of_an_unused_input_is_an_error() -> None:
    check_warnings("dit.fp16", ["Make sure input frame_index has Int64 binding."])
    with pytest.raises(BuildError, match=r"^dit\.fp16: TensorRT ignores an input that .*: Unused Input: tot$"):
        check_warnings("dit.fp16", ["Unused Input: tot"])


def test_an_attention_with_caches_of_its_own_is_refused_by_name(copy: Path) -> None:
    def edit(model: ModelProto) -> None:
        node = nodes(model, "Attention")[0]
        node.name = "attention_with_past"
        node.input.extend([""] * (4 - len(node.input)) + ["key_0", "value_0"])
        node.output.extend(["present_key", "present_value"])

    message = refused(copy, "ar_step", edit)
    assert message.startswith("ar_step.fp16: TensorRT refuses node attention_with_past (Attention): ")
    assert "one output" in message


def test_an_input_that_no_layer_reads_is_refused(copy: Path) -> None:
    def edit(model: ModelProto) -> None:
        model.graph.initializer.append(helper.make_tensor("even", onnx.TensorProto.FLOAT, [1], [1.0]))
        for node in model.graph.node:
            node.input[:] = ["even" if name == "fps" else name for name in node.input]

    assert refused(copy, "dit", edit) == "dit.fp16: no layer reads the input fps"


def test_an_input_that_the_contract_does_not_state_is_refused(copy: Path) -> None:
    def edit(model: ModelProto) -> None:
        model.graph.input.append(helper.make_tensor_value_info("tot", onnx.TensorProto.INT64, [1]))

    assert "inputs are coarse, tot; the contract has coarse" in refused(copy, "semantic", edit)


def test_bytes_inside_a_graph_are_refused_with_the_node(copy: Path) -> None:
    def edit(model: ModelProto) -> None:
        last = nodes(model, "Cast")[-1]
        assert list(last.output) == ["frames"]
        last.output[0] = "as_bytes"
        turn = helper.make_node("Transpose", ["as_bytes"], ["frames"], "turning_bytes", perm=[0, 1, 2, 3])
        insert(model, last, turn, after=True)

    message = refused(copy, "vae_decoder", edit)
    assert message.startswith("vae_decoder.fp16: TensorRT refuses node node__to_copy_4 (Cast): ")
    assert "UINT8" in message


def test_an_element_type_that_tensorrt_lacks_is_refused_with_the_node(copy: Path) -> None:
    def edit(model: ModelProto) -> None:
        gather = nodes(model, "Gather")[0]
        source = gather.input[1]
        insert(
            model, gather, helper.make_node("Cast", [source], ["narrow"], "narrowing", to=onnx.TensorProto.INT16),
            helper.make_node("Cast", ["narrow"], ["widened"], to=onnx.TensorProto.INT64),
        )
        gather.input[1] = "widened"

    assert refused(copy, "vq_decoder", edit).startswith("vq_decoder.fp16: TensorRT refuses node narrowing (Cast): ")


def test_what_is_refused_while_compiling_names_graph_node_and_gpu(copy: Path) -> None:
    """A TopK over 3840 is parsed, and refused only then."""
    def edit(model: ModelProto) -> None:
        top = nodes(model, "TopK")[0]
        logits, results = top.input[0], list(top.output)
        model.graph.initializer.extend(
            helper.make_tensor(name, onnx.TensorProto.INT64, [len(values)], values)
            for name, values in (("times", [1, 8]), ("many", [4000]), ("from", [0]), ("to", [256]), ("along", [-1]))
        )
        insert(model, top, helper.make_node("Tile", [logits, "times"], ["more"]))
        insert(model, top, *(
            helper.make_node("Slice", [f"{name}_4000", "from", "to", "along"], [name]) for name in results
        ), after=True)
        top.name = "large_top"
        top.input[:] = ["more", "many"]
        top.output[:] = [f"{name}_4000" for name in results]

    message = refused(copy, "ar_step", edit)
    assert message.startswith("ar_step.fp16 for sm89: ")
    assert "large_top" in message
    assert "3840" in message


def test_a_layer_that_became_wider_without_a_reason_is_refused(copy: Path) -> None:
    def edit(model: ModelProto) -> None:
        product = nodes(model, "MatMul")[0]
        narrow = [*product.input, product.output[0]]
        insert(model, product, *(
            helper.make_node("Cast", [name], [f"{name}_wide"], to=onnx.TensorProto.FLOAT) for name in narrow[:2]
        ))
        product.input[:] = [f"{name}_wide" for name in narrow[:2]]
        product.output[0] = f"{narrow[2]}_wide"
        back = helper.make_node("Cast", [f"{narrow[2]}_wide"], [narrow[2]], to=onnx.TensorProto.FLOAT16)
        insert(model, product, back, after=True)

    assert refused(copy, "caption", edit) == (
        "caption.fp16: 1 MATRIX_MULTIPLY layers compute in float32, "
        "and the manifest gives no reason to keep MatMul in it"
    )


def test_a_graph_of_the_wrong_float_type_is_refused(copy: Path) -> None:
    def edit(model: ModelProto) -> None:
        bundle_fp32 = onnx.load(copy / "onnx" / "semantic.fp32.onnx", load_external_data=False)
        model.CopyFrom(bundle_fp32)

    message = refused(copy, "semantic", edit)
    assert "output features is float32 (" in message
    assert "; the contract has float16 (" in message


@pytest.mark.slow
def test_graphs_without_the_models_attention_are_refused(tmp_path: Path) -> None:
    """The tiny bundle has the contract's signatures, caches in place, and no attention at all."""
    engines = build_engines(write_tiny_bundle(tmp_path / "tiny"))
    for graph, count in (("text_encoder", 1), ("ar_prefix", 1), ("ar_step", 2), ("dit", 8), ("vae_decoder", 1)):
        assert f"0 attention layers; the model has {count}" in engines.failed[graph]
    assert {"caption", "semantic"} <= {graph for graph, _ in engines.built}
