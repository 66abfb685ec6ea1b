"""`arlon-rt options`, the page in docs, every command's help, and an option that was removed."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest

from arlon_rt.bundle import demo_bundle_path
from arlon_rt.cli import main
from arlon_rt.cli.main import BUILT_IN, PLUGGED_IN, Parser, _load
from arlon_rt.options import OPTIONS
from cli_runs import run

PAGE = Path(__file__).parents[3] / "docs" / "options.md"
PROMPT = "a red circle moves right"


def without_default(parser: argparse.ArgumentParser) -> list[str]:
    """Flags whose help does not state their default; required ones have none."""
    expand = parser._get_formatter()._expand_help
    return [
        action.option_strings[-1] for action in parser._actions
        if action.option_strings and not action.required and action.help is not argparse.SUPPRESS
        and action.dest != "help" and not re.search(r"\(default: [^()]+\)$", expand(action) if action.help else "")
    ]


@pytest.mark.parametrize("name", [*BUILT_IN, *PLUGGED_IN])
def test_every_flag_s_help_states_its_default(name: str) -> None:
    parser = Parser(prog=name)
    _load(name).configure(parser)
    assert without_default(parser) == []


def test_a_flag_whose_help_lacks_its_default_is_found() -> None:
    parser = Parser(prog="planted")
    parser.add_argument("folder", help="a positional argument")
    parser.add_argument("--needed", required=True, help="a required one")
    parser.add_argument("--stated", help="another (default: none)")
    parser.add_argument("-l", "--lacking", help="no word of it")
    parser.add_argument("--silent")
    assert without_default(parser) == ["--lacking", "--silent"]


def test_the_page_in_docs_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["options", "--markdown"]) == 0
    assert PAGE.read_text(encoding="utf-8") == capsys.readouterr().out


def test_the_table_has_the_bundle_s_ranges_and_defaults(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["options", "--bundle", str(folder)]) == 0
    out = capsys.readouterr().out
    for option in OPTIONS.values():
        assert all(flag in out for flag in option.flags)
    assert re.search(r"--guidance-scale +number, 0 to 100 +3\.0 ", out)
    assert re.search(r"--top-k +whole number, 0 to 8 ", out)


def test_the_schema_is_the_demo_model_s_unless_a_bundle_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["options", "--json-schema"]) == 0
    demo = json.loads(capsys.readouterr().out)
    assert main(["options", "--json-schema", "--bundle", str(folder)]) == 0
    other = json.loads(capsys.readouterr().out)
    stated = json.loads((demo_bundle_path() / "manifest.json").read_text(encoding="utf-8"))["defaults"]
    assert {name: demo["properties"][name]["default"] for name in stated} == stated
    assert other["properties"]["guidance_scale"]["default"] == 3
    assert demo["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_a_removed_option_is_one_line_and_changes_nothing(folder: Path, tmp_path: Path) -> None:
    code = "import sys; from arlon_rt.cli import main; sys.exit(main(sys.argv[1:]))"
    for name, more in (("plain", []), ("removed", ["--reuse-velocity", "0.1"])):
        request = ["generate", PROMPT, "-o", str(tmp_path / f"{name}.mp4"), "--bundle", str(folder), "--threads", "1"]
        done = run(f"import warnings; warnings.simplefilter('error'); {code}", *request, "--quiet", *more)
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr == ("arlon-rt: reuse_velocity was removed and is ignored; use fewer denoising steps "
                               "(num_inference_steps, --steps)\n" if more else "")
    assert (tmp_path / "plain.mp4").read_bytes() == (tmp_path / "removed.mp4").read_bytes()


def test_a_removed_option_is_not_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--help"]) == 0
    assert "reuse-velocity" not in capsys.readouterr().out
