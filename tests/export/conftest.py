"""Published files, whole: each test gets its own to spoil; and one export that no test changes."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.onnx._internal.exporter._registration import ONNXRegistry

from arlon_export.checkpoints.checkpoint import read_checkpoint
from arlon_export.events import GraphDone
from arlon_export.export import export_bundle
from arlon_export.onnx_graphs.precision import PRECISIONS
from built_once import built_once
from published_files import Published, State, random_states
from tiny_bundle import tokenizer
from tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture(scope="session", autouse=True)
def _one_registry() -> Iterator[None]:
    """torch 2.13 reads the source of 500 translations to ONNX anew for each graph: an eighth of a small export."""
    read = ONNXRegistry.from_torchlib
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(lambda **options: read(**options))))
        yield


@pytest.fixture(scope="session")
def states() -> dict[str, State]:
    """The state dict of every network under its published keys; the adapters apart from the transformer."""
    return random_states()


@pytest.fixture
def published(tmp_path: Path, states: dict[str, State]) -> Published:
    """All files, without any config.json."""
    made = Published(tmp_path, states)
    for network in states:
        made.save(network)
    (made.paths()["text"] / "spiece.model").write_bytes(b"pieces")
    return made


@pytest.fixture(scope="session")
def tiny_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint, the bundle made of it with every precision set, and the `GraphDone` of each graph, pickled."""
    def build(folder: Path) -> None:
        (folder / "tokenizer").write_bytes(tokenizer())
        checkpoint = read_checkpoint(write_tiny_checkpoint(folder / "checkpoint", tokenizer=folder / "tokenizer"))
        done: list[GraphDone] = []
        export_bundle(checkpoint, folder / "bundle", precisions=PRECISIONS, on_graph=done.append)
        (folder / "done.pickle").write_bytes(pickle.dumps(done))

    return built_once(tmp_path_factory, "tiny_export", build)
