"""What is shown while engines are built: a bar on a terminal, a line for each engine everywhere."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from arlon_engines.display import Display
from arlon_engines.events import EngineBuilt, EngineFailed, EngineKept, EngineProgress, Event, WaitingForBuild
from arlon_rt.bundle import EngineEntry, EngineHeader, Identity

ADA = Identity(flavour="tensorrt-rtx", version="1.7.1.116", compute_capability="sm89", precision="fp16")
HEADER = EngineHeader(graph="dit", identity=ADA, source="0" * 64, plan_bytes=26_600_000, plan_sha256="1" * 64)
ENTRY = EngineEntry(
    header=HEADER, profiles=(), layers={"ATTENTION_INPUT": 16, "CAST": 265}, wider={"MATRIX_MULTIPLY": 8},
    build_seconds=4.04, arlon_rt="0.1.0",
)
WORKING = EngineProgress(graph="dit", identity=ADA, phase="Compiling [all]", done=30, total=100)


def shown(*events: Event, terminal: bool) -> str:
    out = io.StringIO()
    with Display(Console(file=out, force_terminal=terminal, width=200, highlight=False)) as display:
        for event in events:
            display.event(event)
    return out.getvalue()


@pytest.mark.parametrize(("event", "line"), [
    (EngineBuilt(entry=ENTRY), "dit for tensorrt-rtx 1.7.1.116 sm89 fp16 any: 26.6 MB in 4.0 s, 281 layers, "
     "16 attention, 8 MATRIX_MULTIPLY in float32"),
    (EngineKept(graph="dit", identity=ADA), "dit for tensorrt-rtx 1.7.1.116 sm89 fp16 any: built already"),
    (EngineFailed(graph="dit", identity=ADA, message="no [layer] reads fps"),
     "dit for tensorrt-rtx 1.7.1.116 sm89 fp16 any: NOT BUILT: no [layer] reads fps"),
    (WaitingForBuild(folder=Path("engines")), "another build is writing to engines; waiting for it"),
])
def test_each_event_is_a_line(event: Event, line: str) -> None:
    assert shown(event, terminal=False) == f"{line}\n"
    assert line in shown(event, terminal=True)


def test_progress_is_a_bar_on_a_terminal_and_nothing_in_a_file() -> None:
    assert shown(WORKING, terminal=False) == ""
    assert "dit sm89: Compiling [all]" in shown(WORKING, terminal=True)
