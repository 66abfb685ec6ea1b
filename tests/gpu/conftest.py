"""Every backend that is installed, with the demo bundle, its engines built once for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import on_gpu
from arlon_rt.backends import BACKENDS
from arlon_rt.bundle import FLAVOURS, Bundle, demo_bundle_path
from arlon_rt.cli import main
from on_gpu import UnderTest

SLACK_BYTES = 8_000_000
"""Allocators take memory by pages of 2 MiB; the weights and activations of the demo bundle are more than this twice."""


@pytest.fixture(scope="session", autouse=True)
def user_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Engines and records of these tests alone."""
    home = tmp_path_factory.mktemp("user")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
            patch.setenv(name, str(home / name.lower()))
        yield


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest, user_folders: None) -> UnderTest:
    """A backend on GPU 0, in fp16."""
    if why := on_gpu.backend_missing(request.param):
        pytest.skip(why)
    if request.param in FLAVOURS:
        assert main(["build", str(demo_bundle_path()), "--backend", request.param]) == 0
    return UnderTest(request.param, "cuda", Bundle.open(demo_bundle_path()), on_gpu.gpu_used_bytes, SLACK_BYTES)


@pytest.fixture(params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> str:
    """A TensorRT that is installed."""
    if why := on_gpu.backend_missing(request.param):
        pytest.skip(why)
    return str(request.param)
