"""The names of TensorRT that the builder uses exist in the real bindings: of 11.4 as recorded, of RTX as installed.

In these files a variable named as in VARIABLES holds TensorRT's object of that class; what is read of it is looked up.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorrt_rtx

import arlon_engines
from arlon_engines.display import LAYER_LABELS
from arlon_engines.gate import _OPERATORS
from arlon_rt.backends.trt.library import TYPES

FOLDER = Path(arlon_engines.__path__[0])
RECORDED = json.loads(Path(__file__).with_name("tensorrt_names.json").read_text(encoding="ascii"))
SHARED = ("engine.py", "gate.py", "network.py")
"""Run with either TensorRT; standard.py and rtx.py with theirs alone."""
VARIABLES = {
    "trt": "module", "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser",
    "refusal": "ParserError", "config": "IBuilderConfig", "profile": "IOptimizationProfile", "layer": "ILayer",
    "cache": "ITimingCache",
}
RESULTS = {   # (class, name) -> class of what it is or returns
    ("ILayer", "attention"): "IAttention", ("ILayer", "get_input"): "ITensor", ("ILayer", "get_output"): "ITensor",
    ("ILogger", "Severity"): "ILogger.Severity",
}
Use = tuple[str, str]
"""(class, name)."""


def uses(file: str) -> set[Use]:
    """Every name of TensorRT that a file reads, and every method of TensorRT's classes that it overrides."""
    tree = ast.parse((FOLDER / file).read_text(encoding="utf-8"))
    return {use for node in ast.walk(tree) for use in _uses(node)}


def _uses(node: ast.AST) -> Iterator[Use]:
    if isinstance(node, ast.Attribute) and (owner := _class_of(node.value)):
        yield owner, node.attr
    if isinstance(node, ast.ClassDef):
        for base in node.bases:
            if isinstance(base, ast.Attribute) and _class_of(base.value) == "module":
                methods = (m.name for m in node.body if isinstance(m, ast.FunctionDef))
                yield from ((base.attr, name) for name in methods if not name.startswith("_"))


def _class_of(node: ast.expr) -> str | None:
    """The class of TensorRT that an expression has, as far as the names tell."""
    if isinstance(node, ast.Name):
        return VARIABLES.get(node.id)
    if isinstance(node, ast.Call):
        return _class_of(node.func)
    if isinstance(node, ast.Attribute):
        if node.attr == "trt":
            return "module"
        owner = _class_of(node.value)
        if owner == "module" and node.attr in RECORDED["classes"]:
            return node.attr
        return RESULTS.get((owner, node.attr)) if owner else None
    return None


def recorded(use: Use) -> bool:
    """Whether TensorRT 11.4's bindings have it."""
    owner, name = use
    if name in ("__version__", "__class__"):
        return True
    if owner == "module":
        return name in RECORDED["module"]
    classes = RECORDED["classes"]
    return name in classes[owner] or (owner == "ILayer" and name in classes["IAttentionInputLayer"])


def installed(use: Use) -> bool:
    """Whether the installed TensorRT for RTX has it."""
    owner, name = use
    found: Any = tensorrt_rtx
    for part in () if owner == "module" else owner.split("."):
        found = getattr(found, part)
    return hasattr(found, name) or (owner == "ILayer" and hasattr(tensorrt_rtx.IAttentionInputLayer, name))


@pytest.mark.parametrize("file", [*SHARED, "standard.py"])
def test_tensorrt_11_has_every_name(file: str) -> None:
    assert RECORDED["version"].startswith("11.")
    found = uses(file)
    assert len(found) >= 3
    assert [use for use in sorted(found) if not recorded(use)] == []


@pytest.mark.parametrize("file", [*SHARED, "rtx.py"])
def test_tensorrt_for_rtx_has_every_name(file: str) -> None:
    found = uses(file)
    assert len(found) >= 3
    assert [use for use in sorted(found) if not installed(use)] == []


def test_no_other_file_touches_tensorrt() -> None:
    others = {p.name for p in FOLDER.glob("*.py")} - {*SHARED, "standard.py", "rtx.py"}
    allowed = {("module", "__version__"), ("module", "__getattr__")}
    for file in others:
        found = {use for use in uses(file) if use[0] == "module"} - allowed
        assert found == set(), file


def test_every_variable_of_the_rule_is_seen() -> None:
    seen = {owner for file in (*SHARED, "standard.py", "rtx.py") for owner, _ in uses(file)}
    assert {*VARIABLES.values(), *RESULTS.values()} <= seen


def test_a_name_that_tensorrt_11_lacks_is_noticed() -> None:
    assert not recorded(("IBuilderConfig", "set_compute_capability"))
    assert [use for use in uses("rtx.py") if not recorded(use)] != []


def test_layer_and_element_types_are_named_as_tensorrt_names_them() -> None:
    layers = {*RECORDED["classes"]["LayerType"]}
    assert {*_OPERATORS, *LAYER_LABELS} <= layers & {*tensorrt_rtx.LayerType.__members__}
    assert {*TYPES} <= {*RECORDED["classes"]["DataType"]} & {*tensorrt_rtx.DataType.__members__}
