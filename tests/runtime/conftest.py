"""One tiny bundle, and a pipeline of it that is open all the while."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from arlon_rt import Pipeline
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
