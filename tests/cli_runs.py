"""Runs of the command and of Python, and what a refusal looks like."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest


def run(code: str, *argv: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


def refused(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> None:
    """One line on stderr that holds ``words``, nothing on stdout, exit 2."""
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("arlon-rt: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for word in words:
        assert word in err
