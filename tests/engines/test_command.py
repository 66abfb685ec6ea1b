"""`arlon-rt build` as a user runs it: what it says, and that it needs neither PyTorch nor onnx."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import arlon_engines
import arlon_rt
from arlon_engines.commands import build_command
from arlon_rt.cli.main import GROUP, PLUGGED_IN, Parser, main
from arlon_rt.errors import ArlonError, MissingExtraError, OptionsError
from engine_builds import GPUS, Engines

ROOT = Path(__file__).parent.parent.parent
SOURCES = [str(Path(package.__path__[0]).parent) for package in (arlon_rt, arlon_engines)]
RTX = ("--backend", "tensorrt-rtx")


def command(*argv: object) -> tuple[int, str]:
    """Run the command; its exit code and what it printed."""
    parser = Parser(prog="arlon-rt build")
    build_command.configure(parser)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = build_command.run(parser.parse_args([str(word) for word in argv]))
    return code, out.getvalue()


def python(code: str, *argv: object, path: list[str]) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*path, *SOURCES])}
    words = [sys.executable, "-c", textwrap.dedent(code), *map(str, argv)]
    return subprocess.run(words, env=env, capture_output=True, text=True)


def test_the_command_is_plugged_in_under_its_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    stated = project["entry-points"][GROUP]["build"]
    assert EntryPoint("build", stated, GROUP).load() is build_command
    assert "build" in PLUGGED_IN


def test_a_dry_run_says_what_and_why_and_builds_nothing(small: Path) -> None:
    before = sorted(small.rglob("*"))
    code, said = command(small, *RTX, "--gpu", "sm89", "--gpu", "sm86", "--only", "caption,vq_decoder", "--dry-run")
    assert code == 0
    store = small / "engines"
    assert said.splitlines() == [
        f"vq_decoder for tensorrt-rtx 1.7.1.116 sm89 fp16 any: build: {store} has no engine of vq_decoder",
        f"vq_decoder for tensorrt-rtx 1.7.1.116 sm86 fp16 any: build: {store} has no engine of vq_decoder",
        "caption for tensorrt-rtx 1.7.1.116 sm89 fp16 any: keep: built already",
        f"caption for tensorrt-rtx 1.7.1.116 sm86 fp16 any: build: the engine of caption in {store} does not fit: "
        f"the GPU is sm86 and it was built for sm89",
        "3 of 4 engines would be built",
    ]
    assert sorted(small.rglob("*")) == before


def test_a_build_for_a_size_says_size_time_and_layers(small: Path) -> None:
    code, said = command(small, *RTX, "--gpu", "sm120", "--profile", "64x64x68", "--profile", "32x32x17",
                         "--only", "semantic")
    assert code == 0
    assert re.fullmatch(
        r"semantic for tensorrt-rtx 1\.7\.1\.116 sm120 fp16 32x32x17_64x64x68: [\d.]+ MB in [\d.]+ s, 96 layers\n", said
    )
    (_, again) = command(small, *RTX, "--gpu", "sm120", "--profile", "32x32x17", "--profile", "64x64x68",
                         "--only", "semantic")
    assert again.endswith("built already\n")


def test_a_graph_that_fails_is_an_error_after_the_others_are_done(small: Path) -> None:
    (small / "onnx" / "vq_decoder.fp16.onnx").write_bytes(bytes(6795))
    with pytest.raises(ArlonError, match="no engine of vq_decoder for sm89; the reasons are printed above"):
        command(small, *RTX, "--gpu", "sm89", "--only", "vq_decoder,caption")


@pytest.mark.parametrize(("argv", "said"), [
    (["--gpu", "8.9"], "gpu is '8.9'; sm and the compute capability are expected"),
    (["--gpu", "sm90"], "does not compile for sm90; it knows sm75, sm80"),
    (["--gpu", "sm89", "--only", "dot"], "only is 'dot'; this bundle has text_encoder"),
    (["--gpu", "sm89", "--profile", "8x8x8"], "profile is 8x8x8"),
    (["--gpu", "sm89", "--precision", "bf16"], "no 'bf16' of"),
])
def test_what_cannot_be_built_is_one_line(small: Path, argv: list[str], said: str) -> None:
    with pytest.raises(ArlonError, match=said.replace("(", r"\(")):
        command(small, *RTX, *argv)


def test_without_a_gpu_and_without_naming_one_the_error_says_how() -> None:
    with pytest.raises(OptionsError, match=r"has no --gpu \(e\.g\. --gpu sm89\), and "):
        command(*RTX)


def test_a_tensorrt_that_is_not_installed_names_the_extra(small: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'arlon-rt\[tensorrt\]'"):
        command(small, "--backend", "tensorrt", "--gpu", "sm90")


def test_inspect_lists_engines_identity_sizes_and_layers(
    demo_engines: Engines, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for gpu in GPUS:
        start = next(i for i, line in enumerate(lines) if line.startswith(f"engines for tensorrt-rtx 1.7.1.116 {gpu} "))
        block = {line.split()[0]: line.split() for line in lines[start + 2 : start + 11]}
        assert block["ar_step"][3:] == ["614", "5", "10", "2"]
        assert block["dit"][3:] == ["2551", "16", "0", "1"]
        assert block["vae_decoder"][2] == "MB"
    assert main(["inspect", "--json"]) == 0
    engines = json.loads(capsys.readouterr().out)["engines"]
    assert len([e for e in engines if e["fault"] is None]) >= 20
    assert engines[0]["entry"]["header"]["identity"]["flavour"] == "tensorrt-rtx"


def test_inspect_says_which_engines_would_not_be_loaded(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = next(small.rglob("caption.engine"))
    os.truncate(engine, 5000)
    assert main(["inspect", str(small)]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "was truncated" in line)
    assert line.startswith("caption ")
    (small / "engines" / "index.json").write_text("{", encoding="ascii")
    assert main(["inspect", str(small)]) == 0
    assert "index.json is damaged" in capsys.readouterr().out


BLOCKER = """
    import sys

    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in ("torch", "onnx", "onnxruntime", "transformers", "arlon_export", "polygraphy"):
                raise ModuleNotFoundError(f"{name} is not here", name=name)

    sys.meta_path.insert(0, Blocker())
"""
"""As sitecustomize it rules every process of the build, those of its graphs too."""


@pytest.mark.slow
def test_the_build_needs_neither_pytorch_nor_onnx(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(textwrap.dedent(BLOCKER), encoding="utf-8")
    code = """
        import sys
        from arlon_rt.cli.main import Parser
        from arlon_engines.commands import build_command
        try:
            import onnx
        except ModuleNotFoundError:
            print("blocked")
        parser = Parser()
        build_command.configure(parser)
        code = build_command.run(parser.parse_args(sys.argv[1:]))
        print({"torch", "onnx", "arlon_export"} & sys.modules.keys())
        sys.exit(code)
    """
    done = python(code, copy, *RTX, "--gpu", "sm89", "--only", "ar_step", path=[str(tmp_path / "blocked")])
    assert done.returncode == 0, done.stderr
    first, built, modules = done.stdout.splitlines()
    assert (first, modules) == ("blocked", "set()")
    assert "614 layers, 5 attention, 10 cache updates" in built


STANDARD = """
    # TensorRT 11's names, no others, and TensorRT for RTX behind them: it compiles for "this machine's GPU".
    import json
    import pathlib
    import tensorrt_rtx as _rtx

    __version__ = "11.4.0.106"
    _NAMES = json.loads(pathlib.Path({names!r}).read_text())["module"]

    class Builder(_rtx.Builder):
        def create_builder_config(self):
            config = super().create_builder_config()
            config.num_compute_capabilities = 1
            config.set_compute_capability(_rtx.ComputeCapability.SM89, 0)
            return config

    def __getattr__(name):
        if name not in _NAMES:
            raise AttributeError(f"TensorRT 11 has no {{name}}")
        return getattr(_rtx, name)
"""
GPU = """
    class Device:
        def __init__(self, number):
            self.compute_capability = (8, 9)
"""


def test_the_path_of_standard_tensorrt_runs_with_its_names_alone(
    copy: Path, tmp_path: Path, user_folders: Path
) -> None:
    """No TensorRT 11 runs here: what is tried is that no other name is asked of it, and the files it leaves."""
    stand_ins = {"tensorrt.py": STANDARD.format(names=str(Path(__file__).with_name("tensorrt_names.json"))),
                 "cuda/__init__.py": "", "cuda/core.py": GPU}
    for name, text in stand_ins.items():
        path = tmp_path / "stand_ins" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
    code = """
        import sys
        from arlon_rt.cli.main import Parser
        from arlon_engines.commands import build_command
        for gpu in ([], ["--gpu", "sm89"], ["--gpu", "sm90"]):
            parser = Parser()
            build_command.configure(parser)
            try:
                build_command.run(parser.parse_args([sys.argv[1], "--backend", "tensorrt", "--only", "caption", *gpu]))
            except Exception as error:
                print(type(error).__name__, error)
    """
    done = python(code, copy, path=[str(tmp_path / "stand_ins")])
    assert done.returncode == 0, done.stderr
    built, kept, refused = done.stdout.splitlines()
    assert built.startswith("caption for tensorrt 11.4.0.106 sm89 fp16 any: ")
    assert kept == "caption for tensorrt 11.4.0.106 sm89 fp16 any: built already"
    assert refused.startswith("BuildError TensorRT compiles only for this machine's GPU, which is sm89, not sm90")
    assert (user_folders / "cache" / "arlon-rt" / "timings" / "tensorrt-11.4.0.106-sm89.cache").is_file()
