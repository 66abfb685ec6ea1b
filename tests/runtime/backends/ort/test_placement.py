"""Nodes that keep large tensors on the CPU of a GPU run are found, by name and size."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arlon_rt.backends.ort import NodeRun, Placement, place_graph
from arlon_rt.backends.ort.placement import LARGE_BYTES, read_profile, usual_feed
from arlon_rt.backends.ort.session import OrtHandle
from arlon_rt.backends.session import Front
from arlon_rt.bundle import Bundle, demo_bundle_path
from arlon_rt.errors import ArlonError
from arlon_rt.graphs import graph_specs
from tiny_bundle import TINY

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def node(name: str = "n", op: str = "Add", provider: str = CPU, size: int = LARGE_BYTES + 1) -> NodeRun:
    return NodeRun(name=name, op=op, provider=provider, bytes=size)


def placement(*nodes: NodeRun) -> Placement:
    return Placement(graph="dit", precision="fp16", milliseconds=1.5, nodes=nodes)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("graph", graph_specs(TINY))
def test_on_the_cpu_every_node_is_the_cpus(folder: Path, graph: str, precision: str) -> None:
    found = place_graph(Bundle.open(folder), graph, device="cpu", precision=precision)
    assert {n.provider for n in found.nodes} == {CPU}
    assert all(n.name and n.op and n.bytes >= 0 for n in found.nodes)
    assert {n.name for n in found.large_on_cpu} == {n.name for n in found.nodes if n.bytes > LARGE_BYTES}
    assert found.milliseconds > 0


def test_a_nodes_bytes_are_those_of_its_inputs_and_outputs(folder: Path) -> None:
    assert TINY.ar
    found = place_graph(Bundle.open(folder), "ar_step", device="cpu", precision="fp32")
    scatters = [n for n in found.nodes if n.op == "TensorScatter"]
    cache = 4 * math.prod((2, TINY.ar.num_heads, TINY.ar.max_length, TINY.ar.head_dim))
    update, write_index = cache // TINY.ar.max_length, 2 * 8
    assert [n.bytes for n in scatters] == [2 * cache + update + write_index] * (2 * TINY.ar.num_layers)
    assert set(scatters) <= set(found.large_on_cpu)


def test_large_is_more_than_4_kb_and_the_largest_comes_first() -> None:
    found = placement(node("small", size=4096), node("large", size=4097), node("largest", size=9000))
    assert [n.name for n in found.large_on_cpu] == ["largest", "large"]


def test_a_copy_between_the_devices_counts_as_one_that_is_not_on_the_gpu() -> None:
    nodes = [node(op, op, CUDA) for op in ("MatMul", "MemcpyToHost", "MemcpyFromHost")]
    assert [n.op for n in placement(*nodes).large_on_cpu] == ["MemcpyToHost", "MemcpyFromHost"]


def event(name: str, op: str, provider: str, read: int, weights: int, written: int) -> dict[str, Any]:
    sizes = {"activation_size": read, "parameter_size": weights, "output_size": written}
    return {"cat": "Node", "name": name, "args": {
        "op_name": op, "provider": provider, **{k: str(v) for k, v in sizes.items()}
    }}


def test_a_profile_is_read_node_by_node(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.write_text(json.dumps([
        {"cat": "Session", "name": "model_run", "args": {}},
        {"cat": "Kernel", "name": "sgemm", "args": {}},
        event("a_kernel_time", "MatMul", CUDA, 10, 200, 3000),
        event("b_kernel_time", "Shape", CPU, 20_480, 0, 8),
        event("c_kernel_time", "Range", CPU, 24, 0, 8192),
    ]))
    assert read_profile(file) == (
        node("a", "MatMul", CUDA, 3210), node("b", "Shape", CPU, 8), node("c", "Range", CPU, 8216)
    )


@pytest.mark.parametrize("graph", graph_specs(TINY))
@pytest.mark.parametrize("name", ["tiny", "demo"])
def test_a_usual_feed_fits_the_contract_at_the_sizes_it_is_made_for(folder: Path, name: str, graph: str) -> None:
    spec = Bundle.open(folder if name == "tiny" else demo_bundle_path()).spec(graph)
    feed = usual_feed(spec, "fp16")
    assert Front(spec, "fp16", OrtHandle, "cpu").handles(feed, ()) == {}
    for tensor in spec.inputs:
        named = zip(feed[tensor.name].shape, tensor.axes, strict=True)
        assert all(size == spec.axis(axis).opt for size, axis in named if isinstance(axis, str))
    assert np.all(feed.get("top_k", 1) == 1)


@pytest.mark.parametrize("graph", ["text_encoder", "ar_step"])
def test_the_demo_models_graphs_run_at_their_usual_sizes(graph: str) -> None:
    found = place_graph(Bundle.open(demo_bundle_path()), graph, device="cpu", precision="fp16")
    assert any(n.op == "Attention" for n in found.large_on_cpu)


@pytest.mark.parametrize("sound", [True, False])
def test_no_profile_is_left_behind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sound: bool
) -> None:
    own = shutil.copytree(folder, tmp_path / "bundle")
    (own / "onnx" / "caption.fp32.onnx").write_bytes(
        (own / "onnx" / ("caption.fp32.onnx" if sound else "semantic.fp32.onnx")).read_bytes()
    )
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    try:
        place_graph(Bundle.open(own), "caption", device="cpu", precision="fp32")
    except ArlonError:
        assert not sound
    else:
        assert sound
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
