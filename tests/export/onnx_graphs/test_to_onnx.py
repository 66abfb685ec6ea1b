"""The exported graphs of a tiny checkpoint: names, shared weights, caches in place. The export checks their values."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from arlon_export.checkpoints.checkpoint import Checkpoint, read_checkpoint, write_weights
from arlon_export.checkpoints.state_dict import open_state_dict
from arlon_export.errors import ExportError
from arlon_export.events import GraphDone
from arlon_export.export import export_bundle
from arlon_export.modules.ar import TokenModel
from arlon_export.onnx_graphs.check import check_graph
from arlon_rt.backends import open_session
from arlon_rt.backends.ort import verify_opened
from arlon_rt.bundle import Bundle
from arlon_rt.errors import BundleError, BundleNotFoundError, OptionsError, OutputError
from arlon_rt.graphs import graph_specs
from arlon_rt.options import GenerateOptions
from arlon_rt.pipeline import Pipeline
from demo.trained import pipeline_of
from tiny_checkpoint import tiny_model, write_tiny_checkpoint

GRAPHS = tuple(graph_specs(tiny_model()))
PRECISIONS = ("fp32", "fp16")
NETWORKS = ("text", "ar", "vq", "dit", "vae")
NOT_SHIPPED = ("rope.freqs", "codebook.usage", "codebook.total", "encoder.")
"""How state-dict keys begin that no graph of "dit" and "vq" needs: the host makes tables, the rest serves training."""


@dataclasses.dataclass(frozen=True)
class Exported:
    checkpoint: Checkpoint
    bundle: Bundle
    reports: list[GraphDone]

    def onnx(self, graph: str, precision: str) -> onnx.ModelProto:
        return onnx.load(self.bundle.graph_file(graph, precision), load_external_data=False)


@pytest.fixture(scope="module")
def exported(tiny_export: Path) -> Exported:
    reports = pickle.loads((tiny_export / "done.pickle").read_bytes())
    return Exported(read_checkpoint(tiny_export / "checkpoint"), Bundle.open(tiny_export / "bundle"), reports)


EVERY_GRAPH = [pytest.param(g, p, id=f"{g}.{p}") for g in GRAPHS for p in PRECISIONS]


def test_every_graph_is_exported_in_all_precisions_and_agrees_with_its_module(exported: Exported) -> None:
    assert [(r.graph, r.precision) for r in exported.reports] == [(g, p) for g in GRAPHS for p in (*PRECISIONS, "bf16")]
    assert [r.done for r in exported.reports] == list(range(1, exported.reports[-1].total + 1))
    floats = [e for r in exported.reports if r.precision == "fp32" for e in r.agreement.errors.values()]
    assert max(floats) < 1e-2  # levels of frames; relative errors are held to 1e-4 by the export
    assert [r.agreement.unproven for r in exported.reports] == [()] * len(exported.reports)


def test_the_bundle_verifies_down_to_the_opened_graphs(exported: Exported) -> None:
    found = [*exported.bundle.verify(), *verify_opened(exported.bundle)]
    assert {(f.where, f.severity) for f in found} == {(f"{graph}.bf16", "warning") for graph in GRAPHS}, "not opened"


@pytest.mark.parametrize(("graph", "precision"), EVERY_GRAPH)
def test_inputs_and_outputs_carry_the_contracts_axis_names(exported: Exported, graph: str, precision: str) -> None:
    spec, model = graph_specs(exported.bundle.model)[graph], exported.onnx(graph, precision).graph
    for tensors, values in ((spec.inputs, model.input), (spec.outputs, model.output)):
        for tensor, value in zip(tensors, values, strict=True):
            dims = tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
            assert (value.name, dims) == (tensor.name, tensor.axes)


@pytest.mark.parametrize(("graph", "precision"), EVERY_GRAPH)
def test_every_input_is_used(exported: Exported, graph: str, precision: str) -> None:
    model = exported.onnx(graph, precision).graph
    read = {name for node in model.node for name in node.input}
    assert {i.name for i in model.input} <= read


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_module_can_be_loaded_from_the_graphs_initialisers(exported: Exported, network: str, precision: str) -> None:
    module = exported.checkpoint.module(network)
    found = {}
    for spec in graph_specs(exported.bundle.model).values():
        if spec.network == network:
            model = exported.onnx(spec.name, precision)
            onnx.load_external_data_for_model(model, str(exported.bundle.path / "onnx"))
            found |= {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    for name, value in module.state_dict().items():
        if network in ("dit", "vq") and name.startswith(NOT_SHIPPED):
            continue
        np.testing.assert_array_equal(found[name].astype(np.float32), value.numpy(), err_msg=name)


@pytest.mark.parametrize("network", NETWORKS)
def test_precisions_share_one_copy_of_the_weights(exported: Exported, network: str) -> None:
    """The weights are fp16-exact: the data file holds two bytes for each, and both sets read them."""
    places: dict[str, set[tuple[int, int]]] = {}
    for graph, spec in graph_specs(exported.bundle.model).items():
        for precision in PRECISIONS if spec.network == network else ():
            for tensor in exported.onnx(graph, precision).graph.initializer:
                if tensor.data_location == onnx.TensorProto.EXTERNAL:
                    entry = {e.key: e.value for e in tensor.external_data}
                    assert entry["location"] == f"{network}.data"
                    places.setdefault(tensor.name, set()).add((int(entry["offset"]), int(entry["length"])))
    module = exported.checkpoint.module(network)
    shared = [places[name] for name in module.state_dict() if name in places]
    assert shared
    assert all(len(found) == 1 for found in shared)


def test_the_cast_to_uint8_is_the_last_node_of_the_decoder(exported: Exported) -> None:
    for precision in PRECISIONS:
        last = exported.onnx("vae_decoder", precision).graph.node[-1]
        assert (last.op_type, list(last.output)) == ("Cast", ["frames"])


@pytest.mark.parametrize("graph", ["vae_decoder", "vae_encoder"])
def test_pixels_is_a_named_float_tensor_inside(exported: Exported, graph: str) -> None:
    for precision in PRECISIONS:
        model = exported.onnx(graph, precision).graph
        assert [v.name for v in model.value_info] == ["pixels"]
        assert any("pixels" in node.output for node in model.node)
        assert any("pixels" in node.input for node in model.node)


@pytest.mark.parametrize(("graph", "precision"), EVERY_GRAPH)
def test_files_carry_no_traces_of_the_tracer(exported: Exported, graph: str, precision: str) -> None:
    model = exported.onnx(graph, precision)
    assert not any(n.doc_string or n.metadata_props for n in model.graph.node)
    assert {o.domain: o.version for o in model.opset_import} == {"": 24}


def test_what_fp16_keeps_in_fp32_is_stated_with_its_reason(exported: Exported) -> None:
    kept = {graph: entries["fp16"].kept_fp32 for graph, entries in exported.bundle.manifest.graphs.items()}
    assert "TopK" in kept["ar_step"]
    assert "RMSNormalization" in kept["text_encoder"]
    assert all(reason for reasons in kept.values() for reason in reasons.values())
    assert not any(entries["fp32"].kept_fp32 for entries in exported.bundle.manifest.graphs.values())


def test_flops_count_the_matrix_products_at_the_opt_sizes(exported: Exported) -> None:
    """A caption graph is two linear layers and one key-value layer a block over (batch, prompt) rows."""
    model, entry = exported.bundle.model, exported.bundle.graph("caption", "fp32")
    rows, width = 2 * model.text.max_length, model.dit.hidden_size
    per_row = model.dit.caption_channels * width + width * width + 2 * model.dit.depth * width * 2 * width
    assert entry.flops == 2 * rows * per_row
    assert entry.bytes > 4 * per_row


@pytest.mark.parametrize("precision", PRECISIONS)
def test_caches_are_written_in_place(exported: Exported, precision: str) -> None:
    model = exported.bundle.model
    assert model.ar
    session = open_session(exported.bundle, "ar_prefix", precision=precision)
    held = [t.name for t in session.spec.outputs]
    feed = {"last_hidden_state": np.ones((1, 3, model.ar.text_dim), np.float32), **empty_caches(exported.bundle)}
    first = session.run(feed, hold=held)
    again = session.run({**feed, **{n.removesuffix("_out"): v for n, v in first.items()}}, hold=held)
    assert all(again[name] is first[name] for name in held)
    for value in again.values():
        assert not isinstance(value, np.ndarray)
        assert np.abs(value.numpy()[:, :, :3]).min() > 0
        assert np.all(value.numpy()[:, :, 3:] == 0)


@torch.inference_mode()
def test_prefix_and_steps_draw_what_the_modules_parallel_pass_ranks_first(exported: Exported) -> None:
    bundle, network = exported.bundle, exported.checkpoint.module("ar")
    assert isinstance(network, TokenModel)
    config, steps = network.config, 12
    text = np.random.default_rng(0).standard_normal((1, 5, config.text_dim)).astype(np.float32)
    grid = np.stack(np.unravel_index(np.arange(steps), config.grid), axis=1)
    prefix, step = open_session(bundle, "ar_prefix"), open_session(bundle, "ar_step")
    held = [t.name for t in prefix.spec.outputs]
    caches = prefix.run({"last_hidden_state": text, **empty_caches(bundle)}, hold=held)
    tokens = [config.bos]
    for i in range(steps):
        outputs = step.run({
            "tokens": np.array([[tokens[-1]]]), "grid": grid[i : i + 1], "write_index": np.array([5 + i]),
            "guidance_weights": np.ones(1, np.float32), "temperature": np.ones(1, np.float32), "top_k": np.array([1]),
            "top_p": np.ones(1, np.float32), "uniform": np.zeros(1, np.float32),
            **{name.removesuffix("_out"): value for name, value in caches.items()},
        }, hold=held)
        caches = {name: outputs[name] for name in held}
        tokens.append(int(np.asarray(outputs["next_token"])[0, 0]))
    logits = network.logits(
        torch.from_numpy(text), torch.tensor([5]), torch.tensor([tokens[:-1]]), torch.from_numpy(grid)[None]
    )
    assert tokens[1:] == logits[0, :, : config.num_codes].argmax(-1).tolist()
    assert len(set(tokens)) > 2


def empty_caches(bundle: Bundle) -> dict[str, np.ndarray]:
    a = bundle.model.ar
    assert a
    shape = (1, a.num_heads, a.max_length, a.head_dim)
    return {f"{kind}_{i}": np.zeros(shape, np.float32) for i in range(a.num_layers) for kind in ("key", "value")}


def test_the_graphs_make_the_video_of_their_modules(exported: Exported) -> None:
    """The demo's commands can look at checkpoints through the same pipeline, without an export."""
    checkpoint = exported.checkpoint
    networks = {name: checkpoint.module(name) for name in NETWORKS}
    options = GenerateOptions(num_frames=34, seed=2)
    assert checkpoint.tokenizer
    with pipeline_of(checkpoint.model, networks, checkpoint.tokenizer, checkpoint.defaults) as modules:
        expected = modules.generate("a red circle", options).frames
        tokens = modules.tokens("a red circle", options)
    with Pipeline.open(exported.bundle, threads=1) as graphs:
        np.testing.assert_array_equal(graphs.tokens("a red circle", options), tokens)
        made = graphs.generate("a red circle", options).frames
    # random weights blow rounding up to several levels here and there; another video is off by tens
    assert np.abs(made.astype(int) - expected).mean() < 1
    assert len(np.unique(made)) > 50


def test_a_graph_that_computes_something_else_is_refused(exported: Exported) -> None:
    network = exported.checkpoint.module("vq")
    network.get_parameter("decoder.conv_out.bias").data += 0.1
    with pytest.raises(ExportError, match=r"vq_decoder\.fp32: coarse is .* from its torch module"):
        check_graph(exported.bundle, exported.bundle.spec("vq_decoder"), network, "fp32")


@pytest.mark.parametrize("factor", [1.001, 0.999])
def test_a_velocity_that_is_off_by_a_thousandth_is_refused(exported: Exported, factor: float) -> None:
    """Kept latents and a small step must not hide it: the dit graph is judged by what it changed."""
    network = exported.checkpoint.module("dit")
    for name in ("weight", "bias"):
        network.get_parameter(f"final_layer.linear.{name}").data *= factor
    with pytest.raises(ExportError, match=r"dit\.fp32: latents_out is [5-9]\.\d+e-04|1\.\d+e-03"):
        check_graph(exported.bundle, exported.bundle.spec("dit"), network, "fp32")


def test_an_output_that_is_all_zero_is_reported_as_not_compared(exported: Exported, tmp_path: Path) -> None:
    """An untrained transformer's last layer is zero: agreement on nothing is no agreement."""
    state = exported.checkpoint.module("dit").state_dict()
    for name in ("weight", "bias"):
        state[f"injection.modulations.0.{name}"].zero_()
    write_weights(tmp_path, "dit", state)
    reports: list[GraphDone] = []
    untrained = dataclasses.replace(exported.checkpoint, weights={"dit": open_state_dict(tmp_path / "dit.safetensors")})
    export_bundle(untrained, tmp_path / "bundle", precisions=["fp32"], only=["semantic"], on_graph=reports.append)
    assert reports[0].agreement.unproven == ("features",)
    assert str(reports[0].agreement) == "features NOT COMPARED (all zero)"


@pytest.mark.slow
def test_weights_that_fp16_cannot_hold_are_stored_in_fp32_too(exported: Exported, tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "checkpoint", half=False)
    bundle = export_bundle(read_checkpoint(folder), tmp_path / "bundle", only=["caption"])
    model = onnx.load(bundle.graph_file("caption", "fp32"))
    state = read_checkpoint(folder).module("dit").state_dict()
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    name = "y_embedder.y_proj.fc1.weight"
    assert stored[name].dtype == np.float32
    np.testing.assert_array_equal(stored[name], state[name].numpy())


def test_every_fault_of_a_state_dict_is_named_at_once(exported: Exported, tmp_path: Path) -> None:
    state = exported.checkpoint.module("vq").state_dict()
    state["decoder.conv_out.bias"] = torch.zeros(7)
    state["surplus"] = state.pop("decoder.conv_in.bias")
    write_weights(tmp_path, "vq", state)
    damaged = dataclasses.replace(exported.checkpoint, weights={"vq": open_state_dict(tmp_path / "vq.safetensors")})
    with pytest.raises(BundleError) as caught:
        damaged.module("vq")
    message = str(caught.value)
    assert "1 missing:\n  decoder.conv_in.bias (8,)" in message
    assert "1 unknown:\n  surplus (8,)" in message
    assert "decoder.conv_out.bias is (7,), expected (4,)" in message


def test_a_fault_leaves_nothing_behind(exported: Exported, tmp_path: Path) -> None:
    write_weights(tmp_path, "vq", {"surplus": torch.zeros(1)})
    damaged = dataclasses.replace(exported.checkpoint, weights={"vq": open_state_dict(tmp_path / "vq.safetensors")})
    with pytest.raises(BundleError, match="surplus"):
        export_bundle(damaged, tmp_path / "out" / "bundle", only=["vq_decoder"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("chosen", "message"), [
    ({"only": ["ditt"]}, "graph is 'ditt'"), ({"precisions": ["fp8"]}, "precision is 'fp8'"),
])
def test_unknown_names_are_refused_before_any_work(
    exported: Exported, tmp_path: Path, chosen: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(OptionsError, match=message):
        export_bundle(exported.checkpoint, tmp_path / "bundle", **chosen)


def test_an_existing_bundle_is_not_overwritten(exported: Exported) -> None:
    with pytest.raises(OutputError, match="exists"):
        export_bundle(exported.checkpoint, exported.bundle.path)


def test_a_checkpoint_says_what_is_wrong_with_its_configuration(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match=r"no config\.json"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"text": {}}))
    with pytest.raises(BundleError, match=r"config\.json"):
        read_checkpoint(tmp_path)
