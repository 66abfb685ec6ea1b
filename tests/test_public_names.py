"""Names that others rely on: the library's, all documented, and those that packages load at their first use."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import arlon_rt
import arlon_rt.backends
from import_graph import project

LIBRARY = Path(__file__).parent.parent / "docs" / "library.md"
CLASSES = [name for name in arlon_rt.__all__ if inspect.isclass(getattr(arlon_rt, name))]


def test_the_public_names_are_those_the_documentation_states() -> None:
    stated = re.findall(r"^\| `(\w+)`", LIBRARY.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(stated) == sorted(arlon_rt.__all__)


def test_the_names_are_what_dir_shows() -> None:
    assert set(arlon_rt.__all__) <= set(dir(arlon_rt))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Pipelin'"):
        _ = arlon_rt.Pipelin


@pytest.mark.parametrize("name", CLASSES)
def test_each_class_and_each_of_its_public_methods_is_documented(name: str) -> None:
    kind = getattr(arlon_rt, name)
    assert kind.__doc__
    assert not kind.__doc__.startswith(f"{name}("), "the docstring is the one that dataclass makes up"
    for attribute, value in vars(kind).items():
        if not attribute.startswith("_") and (callable(value) or isinstance(value, classmethod | staticmethod)):
            assert inspect.getdoc(getattr(kind, attribute)), f"{name}.{attribute} has no docstring"


def test_the_example_of_the_documentation_uses_real_names() -> None:
    for block in re.findall(r"```python\n(.*?)```", LIBRARY.read_text(encoding="utf-8"), re.DOTALL):
        compile(block, str(LIBRARY), "exec")
        for names in re.findall(r"^from arlon_rt import (.+)$", block, re.MULTILINE):
            assert set(names.replace(" ", "").split(",")) <= set(arlon_rt.__all__)


LAZY = [
    package for package, path in project().files.items()
    if path.name == "__init__.py" and any(found.type_checking for found in project().imports[package])
]


def test_the_packages_that_must_stay_cheap_load_names_lazily() -> None:
    assert {"arlon_rt", "arlon_rt.backends", "arlon_rt.backends.trt"} <= set(LAZY)


@pytest.mark.parametrize("package", LAZY)
def test_a_name_that_loads_lazily_is_the_one_that_mypy_sees(package: str) -> None:
    loaded = import_module(package)
    declared = {
        found.name: found.module for found in project().imports[package]
        if found.type_checking
    }
    assert sorted(declared) == loaded.__all__
    for name, home in declared.items():
        assert getattr(loaded, name) is getattr(import_module(home), name)


def test_the_paths_that_scripts_rely_on_stay() -> None:
    from arlon_rt.bundle import demo_bundle_path
    from arlon_rt.cli import main

    assert (demo_bundle_path() / "manifest.json").is_file()
    assert inspect.isfunction(main)
    assert arlon_rt.cli.main is main
    shown = subprocess.run(
        [sys.executable, "-m", "arlon_rt.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.startswith("arlon-rt ")
