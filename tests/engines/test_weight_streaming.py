"""Engines that can stream their weights: an identity of their own, and the names that loading them takes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import tensorrt_rtx

from arlon_engines.build import Request
from arlon_engines.polygraphy_files import write_scripts
from arlon_rt.bundle import Bundle, Identity, build_command, find_engine, read_header
from arlon_rt.errors import EngineError
from engine_builds import build_engines

PLAIN = Identity(flavour="tensorrt-rtx", version="1.7.1.116", compute_capability="sm89", precision="fp16")
STREAMING = dataclasses.replace(PLAIN, weight_streaming=True)
LOADING = ("streamable_weights_size", "weight_streaming_budget_v2", "get_device_memory_size_for_profile_v2")


def test_they_stand_beside_those_that_cannot(small: Path) -> None:
    bundle = Bundle.open(small)
    with pytest.raises(EngineError, match=r"--weight-streaming is True .* for False; build it: .* --weight-streaming"):
        find_engine(bundle, "caption", STREAMING)
    engines = build_engines(small, "caption", weight_streaming=True)
    assert [graph for graph, _ in engines.built] == ["caption"]
    path = find_engine(bundle, "caption", STREAMING)
    assert path.parent.name == "tensorrt-rtx-1.7.1.116-sm89-fp16-any-streaming"
    assert read_header(path).identity == STREAMING
    assert read_header(find_engine(bundle, "caption", PLAIN)).identity == PLAIN
    again = build_engines(small, "caption", weight_streaming=True)
    assert again.kept == ["caption"]


def test_the_command_that_builds_them_says_so(small: Path) -> None:
    bundle = Bundle.open(small)
    assert build_command(bundle, "dit", STREAMING).endswith("--gpu sm89 --weight-streaming --only dit")
    assert build_command(bundle, "dit", PLAIN).endswith("--gpu sm89 --only dit")


def test_a_header_of_before_is_one_of_an_engine_that_cannot(small: Path) -> None:
    path = find_engine(Bundle.open(small), "caption", PLAIN)
    content = path.read_bytes()
    line = b',\n  "weight_streaming": false'
    assert line in content
    path.write_bytes(content.replace(line, b"").replace(b"\n}\n", b"\n}\n" + b" " * len(line), 1))
    assert read_header(path).identity == PLAIN


def test_polygraphy_builds_them_alike(small: Path, tmp_path: Path) -> None:
    request = Request(
        flavour="tensorrt-rtx", precision="fp16", gpus=("sm89",), only=("caption",), weight_streaming=True
    )
    script, = write_scripts(Bundle.open(small), request, tmp_path)
    assert "--strongly-typed --weight-streaming" in script.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", LOADING)
def test_what_loading_them_takes_is_in_both_bindings(name: str) -> None:
    recorded = json.loads(Path(__file__).with_name("tensorrt_names.json").read_text(encoding="ascii"))
    assert hasattr(tensorrt_rtx.ICudaEngine, name)
    assert name in recorded["classes"]["ICudaEngine"]
