"""Engines of the demo bundle, built once for all workers; and copies of the bundle whose graphs a test may spoil."""

from __future__ import annotations

import contextlib
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from arlon_rt.bundle import Bundle, demo_bundle_path, engine_stores, record
from built_once import built_once
from engine_builds import GPUS, SMALL, Engines, build_engines, copy_of_demo


@contextlib.contextmanager
def user_of(home: Path) -> Iterator[None]:
    """Let the user's caches and records lie in ``home``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        patch.setenv("XDG_STATE_HOME", str(home / "state"))
        yield


@pytest.fixture(scope="session", autouse=True)
def user_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Caches and records of this worker's tests alone."""
    home = tmp_path_factory.mktemp("user")
    with user_of(home):
        yield home


@pytest.fixture(scope="session")
def demo_engines(tmp_path_factory: pytest.TempPathFactory, user_folders: Path) -> Engines:
    """Every graph of the demo bundle, fp16, for both GPUs; no test changes them."""
    def build(home: Path) -> None:
        with user_of(home):
            (home / "events.pickle").write_bytes(pickle.dumps(build_engines(demo_bundle_path(), gpus=GPUS).events))

    built = built_once(tmp_path_factory, "demo_engines", build)
    shutil.copytree(built / "cache", user_folders / "cache", dirs_exist_ok=True)
    engines = Engines(Bundle.open(demo_bundle_path()), pickle.loads((built / "events.pickle").read_bytes()))
    return _trusted(engines)


def _trusted(engines: Engines) -> Engines:
    """Let them be engines that this worker's user built."""
    for entry in engines.store.index().engines:
        record(entry.header.plan_sha256)
    return engines


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The demo bundle, for a test to spoil."""
    return copy_of_demo(tmp_path / "bundle")


@pytest.fixture(scope="session")
def _small(tmp_path_factory: pytest.TempPathFactory, user_folders: Path) -> Path:
    def build(folder: Path) -> None:
        with user_of(folder):
            build_engines(copy_of_demo(folder / "bundle"), *SMALL)

    folder = built_once(tmp_path_factory, "small", build) / "bundle"
    _trusted(Engines(Bundle.open(folder), ()))
    return folder


@pytest.fixture
def small(_small: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the demo bundle with two trusted engines, for a test to spoil."""
    folder = Path(shutil.copytree(_small, tmp_path / "small"))
    *_, cached = engine_stores(Bundle.open(folder))
    yield folder
    shutil.rmtree(cached.folder, ignore_errors=True)   # other copies have the same hash, and would find them
