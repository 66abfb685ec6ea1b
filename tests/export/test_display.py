"""What the export shows: lines with bytes and the time left, off a terminal and on one."""

from __future__ import annotations

import io

from rich.console import Console

from arlon_export.display import LINE_SECONDS, Display
from arlon_export.events import ExportProgress, GraphDone
from arlon_export.onnx_graphs.check import Agreement


def shown(terminal: bool, seconds: float) -> str:
    """Of an export that has read 3 of 12 GB after ``seconds``, and finished one of two graphs."""
    times = iter([0.0, *[seconds] * 9])
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200, highlight=False)
    with Display(console, clock=lambda: next(times)) as display:
        display.progress(ExportProgress(task="writing dit.fp32", bytes_done=3_000_000_000, bytes_total=12_000_000_000))
        display.graph(GraphDone(
            graph="dit", precision="fp32", done=1, total=2, onnx_bytes=2048, agreement=Agreement({"latents_out": 2e-6})
        ))
        display.graph(GraphDone(graph="dit", precision="fp16", done=2, total=2, onnx_bytes=2048, agreement=None))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_lines_say_bytes_and_the_time_left() -> None:
    assert shown(False, LINE_SECONDS).splitlines() == [
        "writing dit.fp32: 3.00 of 12.00 GB of weights read, about 60 s left",
        "[ 1/2] dit.fp32: 2 KiB, latents_out within 2.0e-06",
        "[ 2/2] dit.fp16: 2 KiB, kept from the run before",
    ]


def test_lines_are_not_many() -> None:
    assert "GB of weights" not in shown(False, LINE_SECONDS - 1)


def test_a_terminal_has_a_bar_and_the_same_lines_of_graphs() -> None:
    text = shown(True, 1.0)
    assert "writing dit.fp32" in text
    assert "3.0/12.0 GB" in text
    assert "[ 1/2] dit.fp32: 2 KiB, latents_out within 2.0e-06" in text
