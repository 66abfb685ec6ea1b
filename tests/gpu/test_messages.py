"""On a GPU: engines that are not there, of another GPU or damaged are an error that says what to do.

Written without a GPU; not executed on one yet. All of it ran on the stand-in (tests/gpu_files_on_stand_in.py), which
has words of its own for a damaged engine.
"""

from __future__ import annotations

from pathlib import Path

import gpu_checks
from on_gpu import needs_gpu

pytestmark = needs_gpu


def test_an_engine_that_is_not_there_is_told_with_the_command_that_builds_it(flavour: str, tmp_path: Path) -> None:
    gpu_checks.check_engine_that_is_not_there(flavour, tmp_path / "bundle")


def test_engines_of_another_gpu_are_refused_with_both_gpus_named(flavour: str, tmp_path: Path) -> None:
    gpu_checks.check_engines_of_another_gpu(flavour, tmp_path / "bundle")


def test_a_damaged_engine_is_refused_with_what_tensorrt_says(flavour: str, tmp_path: Path) -> None:
    gpu_checks.check_engine_that_is_damaged(flavour, tmp_path / "bundle")
