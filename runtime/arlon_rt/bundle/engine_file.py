"""An engine on disk: a header of fixed size with its identity, then the plan that TensorRT wrote."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from arlon_rt.bundle.schema import from_json
from arlon_rt.errors import BundleError, EngineError
from arlon_rt.files import file_sha256

MAGIC = b"arlon-rt engine 1\n"
HEADER_BYTES = 4096
"""Size of the header: one page, so that the plan can be mapped. ``tail -c +4097`` cuts the header off."""

Flavour = Literal["tensorrt", "tensorrt-rtx"]
FLAVOURS: tuple[Flavour, ...] = ("tensorrt", "tensorrt-rtx")
MODULES: Mapping[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Flavour -> its Python module. arlon-rt uses nothing in which the two modules differ."""
ANY_SIZE = "any"
"""The profile of an engine for every size that the bundle allows."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What must match, besides the ONNX graph it was built from, for an engine to be usable."""

    flavour: Flavour
    version: str
    """The exact version of TensorRT: ``"1.7.1.116"``."""
    compute_capability: str
    """``"sm89"``."""
    precision: str
    profile: str = ANY_SIZE
    """``"any"``, or the sizes that it was built for, joined by ``_``: ``"512x512x68"``."""
    weight_streaming: bool = False
    """Whether it can keep a part of its weights in the host's memory."""

    @property
    def folder(self) -> str:
        """The name of the folder of its engines."""
        return "-".join(self._words)

    def __str__(self) -> str:
        return " ".join(self._words)

    @property
    def _words(self) -> tuple[str, ...]:
        streaming = ("streaming",) if self.weight_streaming else ()
        return (self.flavour, self.version, self.compute_capability, self.precision, self.profile, *streaming)


@dataclass(frozen=True, kw_only=True)
class EngineHeader:
    """What an engine file states about itself."""

    graph: str
    identity: Identity
    source: str
    """The `source_hash` of the graph that it was built from."""
    plan_bytes: int
    plan_sha256: str


def encode_header(header: EngineHeader) -> bytes:
    """The first `HEADER_BYTES` of an engine file."""
    content = MAGIC + json.dumps(dataclasses.asdict(header), indent=1).encode("ascii") + b"\n"
    if len(content) > HEADER_BYTES:
        raise EngineError(f"{header.graph}: {len(header.identity.profile)} characters of profile; build fewer sizes")
    return content.ljust(HEADER_BYTES)


def read_header(path: Path) -> EngineHeader:
    """The header of the engine file ``path``, if the file is as long as its header states.

    Raises:
        EngineError: it is not an engine of arlon-rt, was truncated, or its header is damaged.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            content = file.read(HEADER_BYTES)
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error}") from error
    if not content.startswith(MAGIC):
        raise EngineError(f"{path} is no engine that arlon-rt built: it does not begin with its header")
    if size < HEADER_BYTES:
        raise EngineError(f"{path} was truncated: it has {size} bytes, less than a header")
    try:
        header = from_json(EngineHeader, json.loads(content[len(MAGIC) :].decode("ascii")), "header")
    except (ValueError, RecursionError, BundleError) as error:
        raise EngineError(f"{path} has a damaged header: {error}") from None
    if size != HEADER_BYTES + header.plan_bytes:
        what = "truncated" if size < HEADER_BYTES + header.plan_bytes else "changed"
        raise EngineError(f"{path} was {what}: {size} bytes, its header says {HEADER_BYTES + header.plan_bytes}")
    return header


def check_plan(path: Path, header: EngineHeader) -> None:
    """Raise `EngineError` unless the whole plan has the hash that the header states."""
    try:
        sha256 = file_sha256(path, start=HEADER_BYTES)
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error}") from error
    if sha256 != header.plan_sha256:
        raise EngineError(f"{path} was changed since it was built: its SHA-256 is not the one stated for it")


def read_plan(path: Path) -> bytes:
    """The plan, which TensorRT deserialises, of a file that `find_engine` found."""
    with path.open("rb") as file:
        file.seek(HEADER_BYTES)
        return file.read()
