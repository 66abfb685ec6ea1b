"""Engines of the demo bundle, built once for all tests; and copies of the bundle whose graphs a test may spoil."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from arlon_rt.bundle import demo_bundle_path
from engine_builds import GPUS, SMALL, Engines, build_engines, copy_of_demo


@pytest.fixture(scope="session", autouse=True)
def user_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Caches and records of these tests alone."""
    home = tmp_path_factory.mktemp("user")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        patch.setenv("XDG_STATE_HOME", str(home / "state"))
        yield home


@pytest.fixture(scope="session")
def demo_engines(user_folders: Path) -> Engines:
    """Every graph of the demo bundle, fp16, for both GPUs; no test changes them."""
    return build_engines(demo_bundle_path(), gpus=GPUS)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The demo bundle, for a test to spoil."""
    return copy_of_demo(tmp_path / "bundle")


@pytest.fixture(scope="session")
def _small(tmp_path_factory: pytest.TempPathFactory, user_folders: Path) -> Path:
    folder = copy_of_demo(tmp_path_factory.mktemp("small") / "bundle")
    build_engines(folder, *SMALL)
    return folder


@pytest.fixture
def small(_small: Path, tmp_path: Path) -> Path:
    """A copy of the demo bundle with two engines, built here, for a test to spoil."""
    return Path(shutil.copytree(_small, tmp_path / "small"))
