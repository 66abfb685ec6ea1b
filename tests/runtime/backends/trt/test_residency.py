"""Groups of sessions take turns on the GPU."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from arlon_rt.backends.trt.residency import RESIDENT, OffloadableSession, Residency
from arlon_rt.bundle import Bundle


class Slow:
    """A session that notes when it runs, and runs until ``go`` is set."""

    def __init__(self, name: str, said: list[str], go: threading.Event) -> None:
        self.name, self.said, self.go = name, said, go

    def run(self, feed: Any, hold: Any = ()) -> dict[str, Any]:
        self.said.append(f"{self.name} begins")
        assert self.go.wait(10)
        self.said.append(f"{self.name} ends")
        return {}

    def close(self) -> None:
        self.said.append(f"{self.name} freed")


def test_groups_take_turns_and_one_that_waits_goes_before_new_runs(folder: Path) -> None:
    spec, said, residency = Bundle.open(folder).spec("dit"), [], Residency(lambda: None)
    gates = [threading.Event() for _ in range(3)]
    sessions = [
        OffloadableSession(spec, np.dtype("float16"), residency, group, lambda n=name, g=gate: Slow(n, said, g))
        for name, group, gate in zip(("a", "b", "text"), (RESIDENT, RESIDENT, "text"), gates, strict=True)
    ]
    threads = [threading.Thread(target=sessions[i].run, args=({},)) for i in (0, 2, 1)]
    threads[0].start()
    until(lambda: said == ["a begins"])
    threads[1].start()
    until(lambda: residency._waiting == 1)
    threads[2].start()   # of a's group, but text waits
    gates[1].set()
    gates[2].set()
    assert not gates[0].wait(0.1)
    assert said == ["a begins"]
    gates[0].set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert said == ["a begins", "a ends", "a freed", "text begins", "text ends", "text freed", "b begins", "b ends"]
    for session in sessions:
        session.close()
    assert said[-1] == "b freed"


def until(holds: Any) -> None:
    for _ in range(1000):
        if holds():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not happen in 10 s")
