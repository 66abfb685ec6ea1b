"""Fixtures that all tests share, and how the tests run: one thread, seeded, spread over workers."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are loaded: the other core has a worker, too
# torch 2.13: with symbolic sizes the cache of fake tensors costs a quarter of an export; without it, inner values of
# two graphs have other numbers in their names, and nothing else differs.
os.environ.setdefault("TORCH_FAKE_TENSOR_DISPATCH_CACHE", "0")

import gc
import random
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
LONGEST_FIRST: tuple[tuple[str, ...], ...] = (
    ("engines/test_full_width.py",),
    (
        "export/onnx_graphs/test_to_onnx.py", "export/onnx_graphs/test_tensorrt_rtx.py",
        "export/parity/test_checkpoint.py",
    ),
    ("export/onnx_graphs/test_full_width.py",),
    ("export/test_baseline.py",),
    ("engines/test_build.py", "engines/test_command.py", "engines/test_identity.py"),
    ("test_demo_bundle.py",),
    ("export/parity/test_parity.py",),
    ("runtime/cli/test_resume.py",),
    ("export/onnx_graphs/test_streaming.py",),
    ("benchmarks/gpu/test_smoke.py",),
)
"""Files that begin, where several workers run. Those of a group share what takes long to build: one worker has them."""
SLOW_FIXTURES = frozenset({"tiny_export", "demo_engines", "baseline"})
"""What takes so long to build that every test of it is marked slow."""
_RANK = {f"tests/{file}": rank for rank, files in enumerate(LONGEST_FIRST) for file in files}


@pytest.hookimpl(tryfirst=True)  # before pytest's own deselects what `-m` leaves out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if not SLOW_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
    if not config.pluginmanager.hasplugin("randomly"):
        items.sort(key=lambda item: _RANK.get(item.nodeid.partition("::")[0], len(_RANK)))


def pytest_collection_finish() -> None:
    gc.freeze()  # what was collected takes a second of each `gc.collect` in a test


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return str(_RANK.get(file, file))

    config.option.loadscopereorder = False  # the files of most tests would begin
    return ByFile(config, log)


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    """Let no test depend on the one before it; another name, or ARLON_TEST_SEED, draws other numbers."""
    seed = zlib.crc32((request.node.nodeid + os.environ.get("ARLON_TEST_SEED", "")).encode())
    random.seed(seed)
    np.random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


@pytest.fixture(scope="session")
def reference() -> Path:
    """Inputs and outputs recorded from Open-Sora v1.2's own code; they lie beside the repository, not in it."""
    path = ROOT.parent / "shared" / "reference"
    if not path.is_dir():
        pytest.skip(f"the recorded reference is not there ({path})")
    return path
