"""Who may import whom, read off the source with ast and off running processes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "arlon_rt": ROOT / "runtime", "arlon_export": ROOT / "export",
    "arlon_engines": ROOT / "engines", "arlon_calibration": ROOT / "calibration",
}
MAY_IMPORT = {
    "torch": {"arlon_export"}, "transformers": {"arlon_export"}, "diffusers": set(), "onnxscript": {"arlon_export"},
    "onnx": {"arlon_export", "arlon_calibration"}, "tensorrt": {"arlon_rt", "arlon_engines"},
    "tensorrt_rtx": {"arlon_rt", "arlon_engines"}, "polygraphy": {"arlon_engines"},
    "arlon_export": {"arlon_export"}, "arlon_engines": {"arlon_engines"}, "arlon_calibration": {"arlon_calibration"},
}
"""Modules that only these packages may import."""
FEW_FILES = {
    "onnxruntime": ("backends/ort/library.py",), "tensorrt": ("backends/trt/library.py",),
    "tensorrt_rtx": ("backends/trt/library.py",), "cuda": ("backends/device.py", "backends/trt/cuda.py"),
    "av": ("video/track.py", "video/encoding.py", "video/footage.py"), "sentencepiece": ("networks/text.py",),
}
"""Modules that only these files of arlon_rt may import, inside a function."""
NETWORKS = ("text", "ar", "vq", "dit", "vae")
FOUNDATION = (
    "graphs", "options", "timeline", "events", "segments", "errors", "config", "units", "files", "networks/captions",
    "networks/flow", "networks/noise", "cli/resolutions",
)
ABOVE_FOUNDATION = ("pipeline", "bundle", "backends", "video", "generation", *(f"networks.{n}" for n in NETWORKS))


@dataclass(frozen=True)
class Import:
    """One imported module, and whether merely importing the file imports it."""

    module: str
    level: int
    at_import: bool


def imports(path: Path) -> Iterator[Import]:
    yield from _imports(ast.parse(path.read_text(encoding="utf-8")), at_import=True)


def _imports(node: ast.AST, *, at_import: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, 0, at_import) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            module = child.module or ""
            yield Import(module, child.level, at_import)
            yield from (Import(f"{module}.{alias.name}", child.level, at_import) for alias in child.names)
        else:
            deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or _is_type_checking(child)
            yield from _imports(child, at_import=at_import and not deferred)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def files(package: str) -> list[Path]:
    return sorted((PACKAGES[package] / package).rglob("*.py"))


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


ALL_FILES = [pytest.param(p, f, id=f"{p}/{f.relative_to(PACKAGES[p] / p)}") for p in PACKAGES for f in files(p)]
RUNTIME_FILES = [p for p in ALL_FILES if p.values[0] == "arlon_rt"]
ENGINES_FILES = [p for p in ALL_FILES if p.values[0] == "arlon_engines"]
SHOWING = ("commands.py", "display.py")
"""Files of arlon_engines that write on the screen."""


@pytest.mark.parametrize(("package", "path"), ALL_FILES)
def test_each_package_imports_only_what_it_may(package: str, path: Path) -> None:
    for found in imports(path):
        for module, allowed in MAY_IMPORT.items():
            assert not within(found.module, module) or package in allowed, f"{path} imports {found.module}"


@pytest.mark.parametrize(("package", "path"), ALL_FILES)
def test_imports_are_absolute(package: str, path: Path) -> None:
    assert [i.module for i in imports(path) if i.level] == []


@pytest.mark.parametrize(("package", "path"), RUNTIME_FILES)
def test_each_backend_and_codec_has_one_file_and_is_imported_in_a_function(package: str, path: Path) -> None:
    name = path.relative_to(PACKAGES[package] / package).as_posix()
    for found in imports(path):
        for module, owners in FEW_FILES.items():
            if within(found.module, module):
                assert name in owners
                assert not found.at_import, f"{name} imports {module} when it is imported"
        if within(found.module, "rich"):
            assert name.startswith("cli/")
            assert not found.at_import


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_knows_no_other_network_and_no_backend(network: str) -> None:
    path = PACKAGES["arlon_rt"] / "arlon_rt" / "networks" / f"{network}.py"
    banned = [f"networks.{n}" for n in NETWORKS if n != network] + ["backends.ort", "backends.trt", "pipeline", "cli"]
    for found in imports(path):
        assert not any(within(found.module, f"arlon_rt.{b}") for b in banned), f"{network} imports {found.module}"


@pytest.mark.parametrize("name", FOUNDATION)
def test_the_foundation_knows_nothing_above_it(name: str) -> None:
    for found in imports(PACKAGES["arlon_rt"] / "arlon_rt" / f"{name}.py"):
        assert not any(within(found.module, f"arlon_rt.{m}") for m in ABOVE_FOUNDATION), found.module


@pytest.mark.parametrize(("package", "path"), RUNTIME_FILES)
def test_only_the_command_prints(package: str, path: Path) -> None:
    calls = [n.func.id for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
             if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    assert path.parent.name == "cli" or "print" not in calls


@pytest.mark.parametrize(("package", "path"), ENGINES_FILES)
def test_the_builder_writes_on_the_screen_in_two_files_and_loads_tensorrt_when_it_builds(
    package: str, path: Path
) -> None:
    for found in imports(path):
        assert not within(found.module, "rich") or path.name in SHOWING
        assert not found.module.startswith("tensorrt"), "flavour.py opens the one that is asked for"
        assert not within(found.module, "polygraphy"), "its scripts import it, the builder does not"
    assert not [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(n, ast.Name) and n.id == "print"]


HEAVY = ("torch", "transformers", "diffusers", "onnx", "onnxruntime", "tensorrt", "av", "sentencepiece", "rich")


def loaded(code: str) -> set[str]:
    """Top-level modules a fresh interpreter has after ``code``."""
    code += "\nimport sys; print('\\nLOADED', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.rpartition("LOADED")[2].split()}


@pytest.mark.parametrize("code", ["import arlon_rt", "import arlon_rt.pipeline", "import arlon_rt.backends.session"])
def test_importing_the_runtime_loads_no_backend(code: str) -> None:
    assert loaded(code) & set(HEAVY) == set()


def test_the_build_command_is_read_without_numpy_and_any_backend() -> None:
    found = loaded("import arlon_engines.commands")
    assert found & {*HEAVY, "numpy", "tensorrt_rtx", "polygraphy", "arlon_export"} == {"rich"}


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_is_instant_because_it_loads_no_numpy(option: str) -> None:
    found = loaded(f"from arlon_rt.cli import main; main(['{option}'])")
    assert found & {*HEAVY, "numpy", "arlon_export"} == set()
