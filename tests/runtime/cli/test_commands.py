"""The commands beside `generate`, and the help: what they say and how they end."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from arlon_rt.backends.ort import available_providers
from arlon_rt.cli import main
from arlon_rt.cli.doctor import examine
from cli_runs import refused, run


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_verify_passes_a_sound_bundle(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder), "--deep"]) == 0
    assert "no fault found" in capsys.readouterr().out


def test_verify_names_the_damaged_file_and_exits_1(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy / "onnx" / "dit.data"
    path.write_bytes(path.read_bytes()[::-1])
    assert main(["verify", str(copy)]) == 1
    assert "onnx/dit.data" in capsys.readouterr().out


def test_inspect_names_every_graph(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder)]) == 0
    out = capsys.readouterr().out
    for part in ("text_encoder", "ar_step", "vq_decoder", "semantic", "dit", "vae_decoder", 'trained_on: "nothing"'):
        assert part in out


def test_doctor_names_the_runtime_that_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    sound = not any(check.status == "error" for check in examine())
    assert main(["doctor"]) == (0 if sound else 1)
    assert "onnxruntime" in capsys.readouterr().out


@pytest.mark.skipif("CUDAExecutionProvider" in available_providers(), reason="this ONNX Runtime has CUDA")
def test_doctor_without_a_gpu_fails_on_it_only_when_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--gpu", "--bundle", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "error    cuda " in out
    assert 'pip install "arlon-rt[gpu]"' in out


def test_doctor_runs_no_graph_of_a_bundle_unless_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, main(["doctor", "--bundle", str(folder)]), "without --gpu no graph runs")


def test_bench_prints_a_row_for_each_network(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--bundle", str(folder), "--runs", "1", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    for row in ("denoising", "decoding frames", "total", "real time"):
        assert row in out


@pytest.mark.parametrize("command", ["generate", "options", "inspect", "verify", "bench", "doctor"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: arlon-rt {command}")


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in ("generate", "options", "inspect", "verify", "bench", "doctor", "export", "parity"):
        assert f"\n  {command} " in out
    assert "\n  export    turn a checkpoint into a bundle" in out


def test_an_unknown_command_lists_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, main(["genrate"]), "'genrate'", "generate, options, inspect")


def test_a_command_whose_extra_is_missing_says_what_to_install() -> None:
    code = """
        import sys
        sys.modules["torch"] = None   # importing it raises ModuleNotFoundError
        from arlon_rt.cli import main
        sys.exit(main(["parity", "nowhere"]))
    """
    done = run(code)
    assert done.returncode == 2
    assert done.stderr == "arlon-rt: parity needs torch, which is not installed: pip install 'arlon-rt[export]'\n"
