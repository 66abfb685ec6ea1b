"""Stand-ins for ``--smoke``: both TensorRTs on the GPU of tests/fake_gpu.py, whose engines are ONNX Runtime."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from arlon_rt.backends import Session
from arlon_rt.backends.trt import Gpu
from arlon_rt.bundle import Bundle, Flavour

TESTS = Path(__file__).parents[2] / "tests"


class StandInGpu:
    """A stand-in for a GPU, whose work is done when somebody waits for it."""

    def __init__(self) -> None:
        if str(TESTS) not in sys.path:
            sys.path.append(str(TESTS))
        self.module: Any = import_module("fake_gpu")
        self.fake: Any = self.module.FakeGpu()

    def finish(self) -> None:
        """Do all work that waits."""
        self.fake.settle()

    def used_bytes(self) -> int:
        """Bytes of its memory that are in use."""
        return int(self.fake.live)


class StandInEngines:
    """A TensorRT on a `StandInGpu`; implements `gpu.backends.Backend`."""

    version = "stand-in"

    def __init__(self, flavour: Flavour, gpu: StandInGpu) -> None:
        self.name: Flavour = flavour
        self._module = gpu.module
        self._opened = Gpu(gpu.module.TensorRT(gpu.fake), gpu.fake.stream)

    def build(self, bundle: Bundle, graphs: Sequence[str], precision: str, deadline: float) -> float:
        return 0.0

    def open(self, bundle: Bundle, graphs: Sequence[str], precision: str) -> dict[str, Session]:
        return {
            graph: self._opened.session(
                self._module.plan_of(bundle.path, graph, precision), bundle.spec(graph), precision
            ) for graph in graphs
        }
