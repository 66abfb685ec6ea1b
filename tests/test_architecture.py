"""docs/architecture.md is true: its map shows every room, and a prompt takes the way that it describes."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import arlon_rt
from arlon_rt import GenerateOptions, Pipeline
from import_graph import ROOT, project
from test_import_rules import GROUND_FLOOR, ROOMS, room_name, room_of, whole_room
from tiny_bundle import write_tiny_bundle

RUNTIME = Path(arlon_rt.__file__).parent
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
WALK = re.findall(r"^\| \[([\w/]+\.py)\]", TEXT, re.MULTILINE)
"""The six files of a prompt's way, in their order."""


def named_in(image: str) -> list[str]:
    """The files and folders that a figure shows, in the order in which it is read."""
    return re.findall(r'class="name"[^>]*>([^<]+)<', (ROOT / "docs" / "images" / image).read_text(encoding="utf-8"))


def reached(pipeline: Pipeline) -> list[str]:
    """Files of the runtime in the order in which a prompt reaches them.

    A prompt reaches a file when one of its functions is called, or when one of its generators hands on its first value:
    each lane asks the one before it, so that the last lane is entered first.
    """
    files: list[str] = []

    def note(frame: FrameType, event: str, value: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == ("return" if frame.f_code.co_flags & inspect.CO_GENERATOR else "call") and RUNTIME in path.parents:
            files.append(path.relative_to(RUNTIME).as_posix())

    sys.setprofile(note)
    try:
        chunks = list(pipeline.stream("a red circle", GenerateOptions(num_frames=85, seed=1)))
    finally:
        sys.setprofile(None)
    assert sum(len(chunk.frames) for chunk in chunks) == 85
    return list(dict.fromkeys(files))


def test_a_prompt_takes_the_way_that_the_figure_shows(tmp_path: Path) -> None:
    with Pipeline.open(write_tiny_bundle(tmp_path, precisions=("fp32",)), threads=1) as pipeline:
        files = reached(pipeline)
    assert [file for file in files if file in WALK] == WALK
    assert len(WALK) == 6
    assert named_in("architecture.svg") == WALK


def test_every_room_of_the_runtime_is_on_the_map() -> None:
    modules = [module for module in project().files if module.partition(".")[0] == "arlon_rt"]
    assert {room_of(module) for module in modules} == set(ROOMS)
    assert {room_name(name) for name in named_in("house.svg")} == set(ROOMS) - {"__init__"}


def test_the_map_shows_each_room_above_those_that_it_imports() -> None:
    order = [room_name(name) for name in named_in("house.svg")]
    for room in set(order) - GROUND_FLOOR:
        below = {*order[order.index(room) :], *(other for other in order if whole_room(other) == whole_room(room))}
        assert ROOMS[room] - below == set(), room


@pytest.mark.parametrize("image", ["architecture.svg", "house.svg"])
def test_the_figures_can_be_read_on_a_dark_page(image: str) -> None:
    svg = (ROOT / "docs" / "images" / image).read_text(encoding="utf-8")
    width, height = re.findall(r'viewBox="0 0 (\d+) (\d+)" role', svg)[0]
    assert f'class="paper" x="0.5" y="0.5" width="{int(width) - 1}" height="{int(height) - 1}"' in svg
    assert min(map(int, re.findall(r"font-size: (\d+)px", svg))) >= 12
