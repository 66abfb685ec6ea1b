"""Polygraphy takes what `arlon-rt build --polygraphy` writes: it builds every graph, and runs ONNX Runtime's half."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from arlon_engines.build import Request
from arlon_engines.polygraphy_files import write_scripts
from arlon_rt.bundle import Bundle, demo_bundle_path

pytestmark = pytest.mark.slow

BUNDLE = Bundle.open(demo_bundle_path())
ENV = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory, user_folders: Path) -> dict[str, Path]:
    """Graph -> script."""
    request = Request(flavour="tensorrt-rtx", precision="fp16", gpus=("sm89",))
    written = write_scripts(BUNDLE, request, tmp_path_factory.mktemp("polygraphy"))
    return {path.name.partition(".")[0]: path for path in written}


@pytest.mark.parametrize("graph", BUNDLE.manifest.graphs)
def test_polygraphy_converts_the_graph(scripts: dict[str, Path], graph: str) -> None:
    done = subprocess.run([scripts[graph], "convert"], env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (scripts[graph].parent / f"{graph}.plan").stat().st_size > 500_000


def test_onnxruntimes_half_of_the_comparison_runs(scripts: dict[str, Path]) -> None:
    """The other half deserialises the engine, for which it takes the GPU."""
    script = scripts["ar_prefix"]
    line = next(line for line in script.read_text(encoding="utf-8").splitlines() if "--onnxrt" in line)
    ran = subprocess.run(["sh", "-c", line], env=ENV, cwd=script.parent, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "PASSED" in ran.stdout
    assert (script.parent / "ar_prefix.onnxrt.json").is_file()


@pytest.mark.parametrize("graph", BUNDLE.manifest.graphs)
def test_polygraphy_finds_no_node_that_tensorrt_lacks(tmp_path: Path, graph: str) -> None:
    file = BUNDLE.graph_file(graph, "fp16")
    found = subprocess.run(
        ["polygraphy", "inspect", "capability", file, "-o", tmp_path / "out"],
        env={**ENV, "POLYGRAPHY_USE_TENSORRT_RTX": "1"}, capture_output=True, text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "Graph is fully supported by TensorRT" in found.stdout
