"""Weights stream from a checkpoint into a bundle: stored once and exact, faults named, interruptions survived."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from full_size_weights import FULL_SIZE
from torch import Tensor

from arlon_export.checkpoints.checkpoint import Checkpoint, read_checkpoint, write_weights
from arlon_export.checkpoints.state_dict import StateDict, open_state_dict
from arlon_export.events import GraphDone
from arlon_export.export import export_bundle
from arlon_export.onnx_graphs.check import _draws, feed_bytes
from arlon_export.onnx_graphs.feeds import Feed
from arlon_export.onnx_graphs.precision import network_for
from arlon_export.onnx_graphs.weights import PAGE_BYTES, WeightFile
from arlon_export.work_folder import full_disk_named, largest_size
from arlon_rt.backends import open_session
from arlon_rt.backends.ort import verify_opened
from arlon_rt.bundle import Bundle, Finding
from arlon_rt.errors import BackendError, BundleError, OutputError
from arlon_rt.graphs import graph_specs
from tiny_checkpoint import write_tiny_checkpoint

CAPTION = ["caption"]
WEIGHT = "y_embedder.y_proj.fc1.weight"
"""A weight of the caption graph, (16, 16)."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Weights in fp32 that fp16 cannot hold."""
    return read_checkpoint(write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), half=False))


def with_weights(checkpoint: Checkpoint, folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> Checkpoint:
    """The transformer's weights after ``change``, in a file of their own types."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    state = {name: stored.load().clone() for name, stored in checkpoint.weights["dit"].items()}
    change(state)
    save_file(state, folder / "dit.safetensors")
    return dataclasses.replace(checkpoint, weights={"dit": open_state_dict(folder / "dit.safetensors")})


def initialisers(bundle: Bundle, graph: str, precision: str) -> dict[str, np.ndarray]:
    model = onnx.load(bundle.graph_file(graph, precision))
    return {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}


def places(bundle: Bundle, graph: str, precision: str) -> dict[str, tuple[int, int]]:
    """Where each external tensor lies in the data file: (offset, length)."""
    model = onnx.load(bundle.graph_file(graph, precision), load_external_data=False)
    found = {}
    for tensor in model.graph.initializer:
        entry = {e.key: e.value for e in tensor.external_data}
        if entry:
            found[tensor.name] = (int(entry["offset"]), int(entry["length"]))
    return found


def damaged_files(bundle: Bundle) -> list[Finding]:
    """What verify finds, other than graphs that were left out on purpose."""
    return [finding for finding in bundle.verify() if finding.where in bundle.manifest.files]


# -- storage ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_bf16_weights_are_stored_once_and_exact_for_all_three_sets(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Small bf16 values lie between those of fp16, so that bf16 alone holds them; fp16 reads them rounded."""
    def publish(state: dict[str, Tensor]) -> None:
        for name in state:
            state[name] = state[name].bfloat16()
        state[WEIGHT] *= 2.0**-14

    published = with_weights(checkpoint, tmp_path, publish)
    bundle = export_bundle(published, tmp_path / "bundle", precisions=["fp32", "fp16", "bf16"], only=CAPTION)
    found = [places(bundle, "caption", precision) for precision in ("fp32", "fp16", "bf16")]
    assert found[0] == found[1] == found[2]
    expected = published.weights["dit"][WEIGHT].load()
    for precision in ("fp32", "fp16", "bf16"):
        stored = initialisers(bundle, "caption", precision)[WEIGHT]
        assert stored.dtype.name == "bfloat16"
        np.testing.assert_array_equal(stored.astype(np.float32), expected.float().numpy())
    entry = bundle.graph("caption", "bf16")
    assert entry.checked.startswith("not run: ONNX Runtime has no bf16 kernels on a CPU")
    assert entry.outputs[0][1] == "bfloat16"
    with pytest.raises(BackendError, match=r"precision is 'bf16', .* use --precision fp32 or fp16"):
        open_session(bundle, "caption", precision="bf16")
    deep = [f for f in [*bundle.verify(), *verify_opened(bundle)] if f.where.startswith("caption")]
    assert [(f.where, f.severity) for f in deep] == [("caption.bf16", "warning")]


def test_large_tensors_start_at_a_page_and_equal_ones_lie_once(tmp_path: Path) -> None:
    values = torch.randn(200, 200)
    write_weights(tmp_path, "net", {"first": values, "second": values.clone(), "third": values + 1})
    weights = open_state_dict(tmp_path / "net.safetensors")
    with WeightFile(tmp_path / "net.data", weights, "net") as file:
        model = one_graph(weights)
        file.externalise(model)
    external = [v.const_value for v in model.graph.initializers.values()]
    assert [e.offset for e in external if isinstance(e, ir.ExternalTensor)] == [0, 0, 40 * PAGE_BYTES]
    assert (tmp_path / "net.data").stat().st_size == 40 * PAGE_BYTES + values.nbytes
    for tensor, stored in zip(external, weights.values(), strict=True):
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), stored.load().numpy())


def one_graph(weights: StateDict) -> ir.Model:
    """A graph with an initialiser for each weight."""
    made = [ir.Value(name=n, const_value=ir.Tensor(t.load().numpy(), name=n)) for n, t in weights.items()]
    nodes = [ir.node("Identity", [value]) for value in made]
    graph = ir.Graph([], [], nodes=nodes, initializers=made, opset_imports={"": 24})
    return ir.Model(graph, ir_version=11)


@pytest.mark.slow
def test_tables_that_no_checkpoint_holds_come_out_exact(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The token model's rotary tables are made on the meta device with everything else."""
    bundle = export_bundle(checkpoint, tmp_path / "bundle", precisions=["fp32"], only=["ar_step"])
    module, stored = checkpoint.module("ar"), initialisers(bundle, "ar_step", "fp32")
    for name in ("rotary.cos", "rotary.sin"):
        np.testing.assert_array_equal(stored[name], module.get_buffer(name).numpy())


def test_opening_a_network_reads_no_weights(checkpoint: Checkpoint) -> None:
    unread = {
        name: dataclasses.replace(stored, load=lambda: pytest.fail("a tensor was read"))
        for name, stored in checkpoint.weights["dit"].items()
    }
    network = dataclasses.replace(checkpoint, weights={"dit": unread}).network("dit")
    assert all(parameter.is_meta for parameter in network.module.parameters())


# -- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("value", "precisions", "message"), [
    (float("nan"), ["fp32"], r"dit: y_embedder\.y_proj\.fc1\.weight is nan at \[3, 5\]; finite numbers are expected"),
    (float("-inf"), ["fp16"], r"dit: y_embedder\.y_proj\.fc1\.weight is -inf at \[3, 5\]"),
    (70000.0, ["fp16"], r"fc1\.weight has values up to 7e\+04, beyond fp16's largest.*--precision fp32,bf16"),
])
def test_a_value_that_cannot_be_exported_names_its_key_and_leaves_nothing(
    checkpoint: Checkpoint, tmp_path: Path, value: float, precisions: list[str], message: str
) -> None:
    def spoil(state: dict[str, Tensor]) -> None:
        state[WEIGHT][3, 5] = value

    spoilt = with_weights(checkpoint, tmp_path / "weights", spoil)
    with pytest.raises(BundleError, match=message):
        export_bundle(spoilt, tmp_path / "out" / "bundle", precisions=precisions, only=CAPTION)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_a_disk_without_room_is_refused_before_any_work(checkpoint: Checkpoint, tmp_path: Path) -> None:
    needed = largest_size(checkpoint.network("dit"), 1, ["fp32"])

    def export(free: int) -> Bundle:
        return export_bundle(
            checkpoint, tmp_path / "out" / "bundle", precisions=["fp32"], only=CAPTION, free=lambda folder: free,
        )

    figure = f"{needed / 1e9:.2f} GB"
    with pytest.raises(OutputError, match=rf"needs up to {figure} in .*, {figure} are free; make room"):
        export(needed - 1)
    assert list((tmp_path / "out").iterdir()) == []
    assert damaged_files(export(needed)) == []


@pytest.mark.slow
def test_a_disk_that_fills_up_is_one_clear_error(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def full(done: GraphDone) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputError, match=r"the disk of .*out is full .*make room and run the same command again"):
        export_bundle(checkpoint, tmp_path / "out" / "bundle", precisions=["fp32"], only=CAPTION, on_graph=full)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_the_systems_own_error_on_a_full_disk_is_told_from_others(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="is full"), full_disk_named(tmp_path),
        WeightFile(Path("/dev/full"), checkpoint.weights["dit"], "dit") as file,
    ):
        file.externalise(one_graph(checkpoint.weights["dit"]))
    with pytest.raises(FileNotFoundError), full_disk_named(tmp_path):
        (tmp_path / "absent").read_bytes()


# -- interruptions ---------------------------------------------------------------------------------------------------

TWO = ["vq_decoder", "caption"]
"""Graphs of two networks."""


def interrupted(checkpoint: Checkpoint, output: Path) -> None:
    """Export `TWO` until the first is done and the second begins."""
    def stop(done: GraphDone) -> None:
        if done.graph == "caption":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle(checkpoint, output, precisions=["fp32"], only=TWO, on_graph=stop)


def resumed(checkpoint: Checkpoint, output: Path) -> list[str]:
    """Export `TWO` to the end; the graphs that were made now."""
    done: list[GraphDone] = []
    bundle = export_bundle(checkpoint, output, precisions=["fp32"], only=TWO, on_graph=done.append)
    assert damaged_files(bundle) == []
    assert [d.graph for d in done] == TWO
    return [d.graph for d in done if d.agreement is not None]


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_an_interrupted_export_goes_on_where_it_stopped(checkpoint: Checkpoint, tmp_path: Path) -> None:
    interrupted(checkpoint, tmp_path / "bundle")
    assert [p.name for p in tmp_path.iterdir()] == [".bundle.partial"]
    assert resumed(checkpoint, tmp_path / "bundle") == ["caption"]
    assert resumed(checkpoint, tmp_path / "whole") == TWO
    assert files(tmp_path / "bundle") == files(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "whole"]


@pytest.mark.slow
def test_a_source_that_changed_meanwhile_starts_its_network_anew(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write_weights(tmp_path / "vq", "vq", checkpoint.module("vq").state_dict())
    source = tmp_path / "vq" / "vq.safetensors"
    changing = dataclasses.replace(checkpoint, weights={**checkpoint.weights, "vq": open_state_dict(source)})
    interrupted(changing, tmp_path / "bundle")
    os.utime(source, ns=(0, 0))
    assert resumed(changing, tmp_path / "bundle") == TWO


@pytest.mark.slow
def test_a_damaged_work_folder_is_not_trusted(checkpoint: Checkpoint, tmp_path: Path) -> None:
    interrupted(checkpoint, tmp_path / "bundle")
    with (tmp_path / ".bundle.partial" / "vq" / "onnx" / "vq.data").open("ab") as file:
        file.write(b"more")
    assert resumed(checkpoint, tmp_path / "bundle") == TWO


# -- what was not compared -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_graph_too_large_to_compare_is_said_to_be(checkpoint: Checkpoint, tmp_path: Path) -> None:
    done: list[GraphDone] = []
    bundle = export_bundle(
        checkpoint, tmp_path / "bundle", precisions=["fp32"], only=CAPTION, compare_bytes=0, on_graph=done.append
    )
    assert str(done[0].agreement).startswith("NOT COMPARED (comparing needs 0.0 GiB of memory")
    assert bundle.graph("caption", "fp32").checked.startswith("not compared: comparing needs")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_weights_that_a_graph_does_not_read_take_no_memory(checkpoint: Checkpoint, precision: str) -> None:
    module = network_for(checkpoint.network("dit").loaded(["x_embedder.proj.bias"]), precision)
    taken = {name: p.untyped_storage().nbytes() for name, p in module.named_parameters()}
    assert taken.pop("x_embedder.proj.bias") >= 16 * 2
    assert max(taken.values()) <= 4


def test_feeds_are_made_one_at_a_time_and_caches_count_as_memory() -> None:
    """At full size one feed of the token model holds gigabytes, and there are 64."""
    spec = graph_specs(FULL_SIZE)["ar_step"]
    assert feed_bytes(FULL_SIZE, spec) > 1 << 30
    assert feed_bytes(FULL_SIZE, graph_specs(FULL_SIZE)["vq_decoder"]) < 1 << 24
    order: list[str] = []

    def feed_of(seed: int) -> Feed:
        order.append(f"feed {seed}")
        return {}

    def run(feed: Feed) -> dict[str, object]:
        order.append("run")
        return {t.name: 0 for t in spec.outputs}

    kept = _draws(spec, feed_of, run)
    assert order[:4] == ["feed 0", "run", "feed 1", "run"]
    assert len(kept) == 64
    assert set(kept[0]) == {t.name for t in spec.outputs}
    assert set(kept[1]) == {"next_token"}
