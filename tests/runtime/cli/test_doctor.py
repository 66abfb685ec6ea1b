"""The doctor checks this machine and names a command for what is missing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from arlon_rt.backends.ort import NodeRun, Placement, available_providers
from arlon_rt.bundle import Bundle, demo_bundle_path
from arlon_rt.cli.doctor import (
    Check,
    check_demo_bundle,
    check_devices,
    check_graphs,
    check_package,
    check_placement,
    check_python,
    check_runtimes,
    examine,
)
from arlon_rt.errors import BundleNotFoundError
from arlon_rt.graphs import graph_specs
from ort_on_cuda import OrtOnCuda
from tiny_bundle import TINY, write_tiny_bundle

_RUNTIME = Path(demo_bundle_path.__code__.co_filename).parent.parent.parent


def test_everything_that_generation_needs_is_examined() -> None:
    checks = {check.name: check for check in examine()}
    assert {"python", "numpy", "av", "onnxruntime", "devices", "demo bundle"} <= checks.keys()
    assert all(checks[name].status == "ok" for name in ("python", "numpy", "av", "onnxruntime"))


def test_every_fault_comes_with_a_command() -> None:
    assert all(check.command for check in examine() if check.status != "ok")


def test_no_onnxruntime_is_an_error_with_both_ways_to_install_one() -> None:
    check = check_runtimes({})
    assert check.status == "error"
    assert check.command is not None
    assert "arlon-rt[cpu]" in check.command
    assert "arlon-rt[gpu]" in check.command


def test_two_onnxruntimes_are_an_error_that_removes_both() -> None:
    check = check_runtimes({"onnxruntime": "1.31.0", "onnxruntime-gpu": "1.31.0"})
    assert check.status == "error"
    assert check.command == 'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "arlon-rt[gpu]"'


@pytest.mark.parametrize(("version", "status"), [
    ("1.31.0", "ok"), ("1.100.0rc1", "ok"), ("2.0", "ok"), ("1.30.9", "error"), ("strange", "error"),
])
def test_an_onnxruntime_must_be_new_enough(version: str, status: str) -> None:
    assert check_runtimes({"onnxruntime": version}).status == status


CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.mark.parametrize(("runtime", "providers", "has_gpu", "status", "devices"), [
    ("onnxruntime", [CPU], False, "ok", "cpu (no NVIDIA GPU)"),
    ("onnxruntime", [CPU], True, "warning", "cpu (an NVIDIA GPU; onnxruntime has no CUDA)"),
    ("onnxruntime-gpu", [CPU], False, "warning", "cpu (no NVIDIA GPU; onnxruntime-gpu has no CUDA)"),
    ("onnxruntime-gpu", [CUDA, CPU], True, "ok", "cpu, cuda (an NVIDIA GPU; ONNX Runtime has CUDA)"),
    ("onnxruntime-gpu", [CUDA, CPU], False, "ok", "cpu (no NVIDIA GPU; ONNX Runtime has CUDA)"),
])
def test_a_gpu_counts_if_the_machine_has_one_and_onnxruntime_can_use_it(
    runtime: str, providers: list[str], has_gpu: bool, status: str, devices: str
) -> None:
    check = check_devices({runtime: "1.31.0"}, providers, has_gpu=has_gpu)
    assert (check.status, check.message) == (status, devices)
    assert (check.command is None) == (status == "ok")


def test_an_old_python_is_an_error() -> None:
    assert check_python((3, 10, 1)).status == "error"
    assert check_python((3, 14, 0)).status == "ok"


def test_a_missing_package_names_its_command() -> None:
    assert check_package("no_such") == Check(
        name="no_such", status="error", message="not installed", command="pip install no_such"
    )


def test_the_demo_bundle_is_opened_and_hashed(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path)
    assert check_demo_bundle(lambda: folder).status == "ok"
    (folder / "onnx" / "dit.data").write_bytes(bytes(512))
    check = check_demo_bundle(lambda: folder)
    assert check.status == "error"
    assert "onnx/dit.data" in check.message


def test_a_missing_demo_bundle_is_an_error_and_not_an_exception() -> None:
    def find() -> Path:
        raise BundleNotFoundError("the demo bundle is not installed")

    assert check_demo_bundle(find).message == "the demo bundle is not installed"


@pytest.mark.skipif((_RUNTIME / "arlon_rt" / "demo_bundle").exists(), reason="this installation has the demo bundle")
def test_an_installation_without_demo_bundle_asks_for_a_path() -> None:
    with pytest.raises(BundleNotFoundError, match="--bundle PATH"):
        demo_bundle_path()


def test_every_graph_runs_and_its_large_nodes_on_the_cpu_are_named(folder: Path) -> None:
    checks = {check.name: check for check in check_graphs(Bundle.open(folder), "cpu")}
    assert list(checks) == list(graph_specs(TINY))
    assert re.match(r"fp32, \d+\.\d\d ms, 0 nodes on the GPU, \d+ on the CPU; ", checks["ar_step"].message)
    assert "(TensorScatter, 22.6 KB)" in checks["ar_step"].message
    assert checks["ar_step"].status == "warning"


@pytest.mark.parametrize(("size", "status", "said"), [
    (4096, "ok", "1 nodes on the GPU, 1 on the CPU; of those over 4 KB: none"),
    (8192, "warning", "1 nodes on the GPU, 1 on the CPU; of those over 4 KB: arange (Range, 8.0 KB)"),
])
def test_a_graph_is_ok_unless_it_moves_much_data_on_the_cpu(size: int, status: str, said: str) -> None:
    nodes = (
        NodeRun(name="product", op="MatMul", provider=CUDA, bytes=1 << 20),
        NodeRun(name="arange", op="Range", provider=CPU, bytes=size),
    )
    check = check_placement(Placement(graph="dit", precision="fp16", milliseconds=2.5, nodes=nodes))
    assert (check.name, check.status, check.message) == ("dit", status, f"fp16, 2.50 ms, {said}")


@pytest.mark.skipif(CUDA in available_providers(), reason="this ONNX Runtime has CUDA")
def test_without_cuda_one_error_says_how_to_get_it(folder: Path) -> None:
    (check,) = check_graphs(Bundle.open(folder), "cuda")
    assert check.status == "error"
    assert "this ONNX Runtime has" in check.message
    assert check.command is not None
    assert 'pip install "arlon-rt[gpu]"' in check.command


@pytest.mark.parametrize(("cuda", "said"), [
    (OrtOnCuda(starts=False), "CUDA did not start"),
    (OrtOnCuda(fails="CUDA driver version is insufficient"), "cannot be opened: CUDA driver version is insufficient"),
])
def test_a_fault_that_all_graphs_share_is_listed_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cuda: OrtOnCuda, said: str
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", cuda)
    (check,) = check_graphs(Bundle.open(folder), "cuda")
    assert check.status == "error"
    assert said in check.message
    assert check.command is not None
    assert "onnxruntime-gpu[cuda,cudnn]" in check.command


def test_on_a_gpu_every_graph_runs_in_half_precision(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", OrtOnCuda())
    checks = check_graphs(Bundle.open(folder), "cuda:0")
    assert [check.name for check in checks] == list(graph_specs(TINY))
    assert all(check.message.startswith("fp16, ") for check in checks)


def test_a_damaged_graph_does_not_keep_the_others_from_being_run(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path)
    (bundle / "onnx" / "caption.fp32.onnx").write_bytes(b"")
    checks = {check.name: check for check in check_graphs(Bundle.open(bundle), "cpu")}
    assert len(checks) == len(graph_specs(TINY))
    assert {name for name, check in checks.items() if check.status == "error"} == {"caption"}


def test_examining_imports_no_backend_but_onnxruntime() -> None:
    code = "import sys, arlon_rt.cli.doctor as d; d.examine(); print({'tensorrt', 'torch', 'av'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=_RUNTIME)
    assert done.stdout.strip() == "set()"
