"""What a build reports while it runs: plain values, which a graph's process sends to the one that prints them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from arlon_rt.bundle import EngineEntry, Identity


@dataclass(frozen=True, kw_only=True)
class WaitingForBuild:
    """Another build holds the folder's lock; this one waits for it."""

    folder: Path


@dataclass(frozen=True, kw_only=True)
class EngineProgress:
    """TensorRT finished a step of a phase of one engine."""

    graph: str
    identity: Identity
    phase: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class EngineBuilt:
    """An engine was built and is on the disk."""

    entry: EngineEntry


@dataclass(frozen=True, kw_only=True)
class EngineKept:
    """An engine exists already and fits the bundle."""

    graph: str
    identity: Identity


@dataclass(frozen=True, kw_only=True)
class EngineFailed:
    """An engine could not be built; the build goes on with the others."""

    graph: str
    identity: Identity
    message: str


Event = WaitingForBuild | EngineProgress | EngineBuilt | EngineKept | EngineFailed
OnEvent = Callable[[Event], None]
