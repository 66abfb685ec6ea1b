"""What a build says while it runs: plain values that cross from a graph's process to whoever shows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from arlon_rt.bundle import EngineEntry, Identity


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Another build holds the folder."""

    folder: Path


@dataclass(frozen=True, kw_only=True)
class Working:
    """How far TensorRT is with a phase of one engine."""

    graph: str
    identity: Identity
    phase: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Built:
    """An engine is on the disk."""

    entry: EngineEntry


@dataclass(frozen=True, kw_only=True)
class Kept:
    """An engine was there already."""

    graph: str
    identity: Identity


@dataclass(frozen=True, kw_only=True)
class NotBuilt:
    """A graph has no engine; the others are built all the same."""

    graph: str
    identity: Identity
    message: str


Event = Waiting | Working | Built | Kept | NotBuilt
OnEvent = Callable[[Event], None]
