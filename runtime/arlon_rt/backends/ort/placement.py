"""Where ONNX Runtime runs the nodes of a graph, and which of them keep large tensors on the CPU."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from arlon_rt.backends.ort.library import CUDA
from arlon_rt.backends.ort.session import OrtSession
from arlon_rt.backends.session import Array
from arlon_rt.bundle import Bundle
from arlon_rt.graphs import GraphSpec, signature

LARGE_BYTES = 4096
"""Bytes from which a node on the CPU of a GPU run is worth a look; shapes and indices take less."""
TIMED_RUNS = 5

_COPIES = ("MemcpyToHost", "MemcpyFromHost")
"""Nodes that ONNX Runtime puts between devices; they count as CUDA's."""
_SHAPE_ONLY = ("Shape", "Size")
"""Operators that read the shape of their input, but not its content."""


@dataclass(frozen=True, kw_only=True)
class NodeRun:
    """One node in one run."""

    name: str
    op: str
    provider: str
    bytes: int
    """Bytes of its inputs, weights and outputs; for Shape and Size, of the outputs alone."""

    @property
    def on_gpu(self) -> bool:
        """Whether the node computes on the GPU; a copy from or to the CPU does not."""
        return self.provider == CUDA and self.op not in _COPIES


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the nodes of one graph ran."""

    graph: str
    precision: str
    milliseconds: float
    """The median time of `TIMED_RUNS` runs after a first; inputs and outputs stay on the device."""
    nodes: tuple[NodeRun, ...]
    """In the order of their run, after ONNX Runtime's optimisations."""

    @property
    def large_on_cpu(self) -> list[NodeRun]:
        """Nodes off the GPU that touch more than `LARGE_BYTES`, the largest first."""
        found = [node for node in self.nodes if not node.on_gpu and node.bytes > LARGE_BYTES]
        return sorted(found, key=lambda node: -node.bytes)


def place_graph(bundle: Bundle, graph: str, *, device: str, precision: str) -> Placement:
    """Where the nodes of ``graph`` ran on ``device``, in a run at the sizes that the graph is meant for.

    Raises:
        BundleError: the bundle has no such graph or its file is damaged.
        BackendError: ONNX Runtime cannot run the graph on that device.
    """
    opened = partial(OrtSession.open, bundle, graph, device=device, precision=precision, threads=None)
    with (
        tempfile.TemporaryDirectory(prefix="arlon-rt-") as folder,
        closing(opened(profile=Path(folder) / "profile")) as session,
    ):
        _run(session, precision, 1)
        nodes = read_profile(session.end_profile())
    with closing(opened()) as session:
        seconds = _run(session, precision, 1 + TIMED_RUNS)[1:]
    return Placement(graph=graph, precision=precision, milliseconds=1e3 * statistics.median(seconds), nodes=nodes)


def usual_feed(spec: GraphSpec, precision: str) -> dict[str, Array]:
    """Valid inputs at the sizes a graph is meant for: tokens and indices 0, ``top_k`` 1, masks True, numbers 0.5."""
    sizes = {axis.name: axis.opt for axis in spec.axes}
    feed = {}
    for name, dtype, axes in signature(spec.inputs, precision):
        kind = np.dtype(dtype).kind
        value = 0.5 if kind == "f" else kind == "b" or name == "top_k"
        feed[name] = np.full([sizes[axis] if isinstance(axis, str) else axis for axis in axes], value, dtype)
    return feed


def read_profile(file: Path) -> tuple[NodeRun, ...]:
    """The nodes in a profile of ONNX Runtime (tried with 1.32): its events of the category ``Node``."""
    found = []
    for event in json.loads(file.read_text(encoding="utf-8")):
        name, end = event["name"], "_kernel_time"
        if event["cat"] != "Node" or not name.endswith(end):
            continue
        of = event["args"]
        read = 0 if of["op_name"] in _SHAPE_ONLY else int(of["activation_size"]) + int(of["parameter_size"])
        found.append(NodeRun(
            name=name.removesuffix(end), op=of["op_name"], provider=of["provider"], bytes=read + int(of["output_size"])
        ))
    return tuple(found)


def _run(session: OrtSession, precision: str, times: int) -> list[float]:
    """Seconds of each run. Inputs are on the device before the first run, and outputs stay on it."""
    spec, seconds = session.spec, []
    feed = {name: session.upload(name, array) for name, array in usual_feed(spec, precision).items()}
    for _ in range(times):
        began = time.perf_counter()
        session.run(feed, hold=[t.name for t in spec.outputs])
        seconds.append(time.perf_counter() - began)
    return seconds
