"""One tiny bundle, a pipeline of it that is open all the while, and a GPU that is not there."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from arlon_rt import Pipeline
from arlon_rt.backends.trt import Gpu
from fake_gpu import FakeGpu, TensorRT
from tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Iterator[Pipeline]:
    with Pipeline.open(folder, threads=1) as opened:
        yield opened


@pytest.fixture(params=[False, True], ids=["in sequence", "overlapped"])
def overlap(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def fake() -> Iterator[FakeGpu]:
    """Whose memory is all given back at the end."""
    gpu = FakeGpu()
    yield gpu
    gc.collect()
    assert gpu.live == 0, "memory leaked"


@pytest.fixture
def gpu(fake: FakeGpu) -> Gpu:
    return Gpu(TensorRT(fake), fake.stream)
