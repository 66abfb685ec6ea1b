"""A pytest plugin: tests/gpu as if this machine had a GPU, which is the stand-in, with TensorRT for RTX alone.

    PYTHONPATH=tests pytest -p gpu_files_on_stand_in tests/gpu
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from arlon_rt import cli
from arlon_rt.backends import device
from arlon_rt.bundle import Bundle
from fake_engines import COMPUTE_CAPABILITY, identity_here, put_engines, use_fake_gpu

_patch = pytest.MonkeyPatch()
_home = tempfile.TemporaryDirectory(prefix="arlon-user-")
_fake = use_fake_gpu(_patch, Path(_home.name))
_patch.setattr(device, "compute_capability", lambda number: COMPUTE_CAPABILITY)


def _build(arguments: list[str]) -> int:
    """`arlon-rt build BUNDLE --backend tensorrt-rtx`."""
    command, bundle, _, flavour = arguments
    assert (command, flavour) == ("build", "tensorrt-rtx")
    put_engines(Bundle.open(bundle), identity_here("tensorrt-rtx"))
    return 0


_patch.setattr(cli, "main", _build)


def pytest_collection_modifyitems() -> None:
    """Before the first test: what would ask the GPU asks the stand-in."""
    import on_gpu

    others = "the stand-in is TensorRT for RTX"
    _patch.setattr(on_gpu, "backend_missing", lambda name: None if name == "tensorrt-rtx" else others)
    _patch.setattr(on_gpu, "gpu_used_bytes", lambda: _fake.live)


def pytest_unconfigure() -> None:
    _patch.undo()
    _home.cleanup()
