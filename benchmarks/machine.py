"""The machine and the versions with which a benchmark's results were measured."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def machine(*packages: str) -> dict[str, Any]:
    """The date, the processor, and the versions of Python and of ``packages``."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "date": datetime.date.today().isoformat(), "device": f"{cpu}, {len(os.sched_getaffinity(0))} cores",
        "python": platform.python_version(), "versions": {name: version(name) for name in packages},
    }
