"""What ships: the wheel, the sdist and their contents."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
NOT_SOURCE = (".*", "build", "dist", "*.egg-info", "__pycache__")
CHECKPOINTS = {ROOT / "checkpoints", ROOT / "export" / "checkpoints"}
"""What training leaves: not the package `arlon_export.checkpoints`."""
MAX_BUNDLE_BYTES = 16_000_000


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("package")
    by_name = shutil.ignore_patterns(*NOT_SOURCE)

    def ignored(parent: str, names: list[str]) -> set[str]:
        return {*by_name(parent, names), *(name for name in names if Path(parent, name) in CHECKPOINTS)}

    shutil.copytree(ROOT, folder / "source", ignore=ignored)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> dict[str, int]:
    """File name -> bytes."""
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {entry.filename: entry.file_size for entry in archive.infolist()}


@pytest.fixture(scope="module")
def sdist(built: Path) -> set[str]:
    """File names, less the leading folder."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: dict[str, int]) -> None:
    tops = {PurePosixPath(name).parts[0] for name in wheel}
    assert {"arlon_rt", "arlon_export", "arlon_engines"} <= tops
    assert {top for top in tops if not top.startswith("arlon_")} == set()


@pytest.mark.parametrize("package", ["runtime/arlon_rt", "export/arlon_export", "engines/arlon_engines"])
def test_the_wheel_holds_every_module(wheel: dict[str, int], package: str) -> None:
    parent = (ROOT / package).parent
    modules = {path.relative_to(parent).as_posix() for path in (ROOT / package).rglob("*.py")}
    assert modules - wheel.keys() == set()


def test_the_wheel_holds_the_demo_bundle_whole_and_small(wheel: dict[str, int]) -> None:
    folder = ROOT / "runtime" / "arlon_rt" / "demo_bundle"
    files = {f"arlon_rt/demo_bundle/{p.relative_to(folder).as_posix()}": p for p in folder.rglob("*") if p.is_file()}
    assert "arlon_rt/demo_bundle/manifest.json" in files
    assert {name: path.stat().st_size for name, path in files.items()} == {
        name: size for name, size in wheel.items() if name.startswith("arlon_rt/demo_bundle/")
    }
    assert sum(path.stat().st_size for path in files.values()) <= MAX_BUNDLE_BYTES


def test_the_wheel_says_that_it_is_typed_and_how_it_is_licensed(wheel: dict[str, int]) -> None:
    names = {PurePosixPath(name).name for name in wheel}
    assert {"py.typed", "LICENSE", "THIRD_PARTY.md", "entry_points.txt"} <= names


def test_the_sdist_holds_what_it_takes_to_build_and_to_read(sdist: set[str]) -> None:
    assert {"pyproject.toml", "README.md", "LICENSE", "THIRD_PARTY.md", "CHANGELOG.md", "docs/spec.md"} <= sdist
    assert "runtime/arlon_rt/pipeline.py" in sdist
