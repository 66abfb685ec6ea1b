"""A generation's state between two segments, in a small file from which it goes on to the same frames.

It is a safetensors file: the last chunk, the newest tokens, and a JSON text with everything else. The file counts as
hostile until `Pipeline.resume` has checked it against the bundle.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from arlon_rt.conditioning import NOTHING, Conditions, Placement, Reference
from arlon_rt.errors import OptionsError, OutputError
from arlon_rt.files import replacing
from arlon_rt.networks import TokenState
from arlon_rt.options import GenerateOptions
from arlon_rt.request import Boundary
from arlon_rt.timeline import Timeline

FORMAT = "2"
MAX_BYTES = 1 << 30
"""The largest file that is read; a snapshot of a 2K video has 200 MB."""
COUNTS = ("dropped", "window", "context", "fed")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a pipeline runs on. Only the same machine computes the same frames."""

    backend: str
    device: str
    precision: str
    threads: int | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """A generation's state between two segments; see `Generation.snapshot`."""

    bundle: str
    """The bundle's hash."""
    machine: Machine
    options: GenerateOptions
    prompts: Timeline
    """In seconds, as they stood when the snapshot was taken."""
    boundary: Boundary
    tokens: NDArray[np.int64] | None = None
    """The tokens (code_frame, row, column) that came with the request."""
    conditions: Conditions = NOTHING
    lead: int = 0
    """As in `arlon_rt.request.Request`."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """For the record: the files that the request's frames were read from, and their hashes."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the snapshot; an existing file is replaced in one step.

        Raises:
            OutputError: the file cannot be written.
        """
        from safetensors.numpy import save

        boundary = self.boundary
        state = {
            "bundle": self.bundle, "machine": dataclasses.asdict(self.machine), "segment": boundary.segment,
            "options": dataclasses.asdict(self.options), "prompts": [list(entry) for entry in self.prompts.entries],
            "placements": [dataclasses.asdict(p) for p in self.conditions.placements], "lead": self.lead,
            "sources": dict(self.sources),
        }
        tensors: dict[str, NDArray[Any] | None] = {"before": boundary.before, "given_tokens": self.tokens}
        if boundary.tokens is not None:
            state |= {name: getattr(boundary.tokens, name) for name in COUNTS}
            tensors["codes"] = np.array(boundary.tokens.codes, np.int64)
        for i, reference in enumerate(self.conditions.references):
            tensors |= {f"latents_{i}": reference.latents, f"drafted_{i}": reference.drafted}
        # safetensors 0.8 writes a view's values in the order in which they lie in memory
        contents = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items() if tensor is not None}
        path = Path(path)
        try:
            with replacing(path, path.with_name(path.name + ".part")) as file:   # a killed process leaves one at most
                file.write(save(contents, {"arlon_rt_snapshot": FORMAT, "state": json.dumps(state)}))
        except OSError as error:
            raise OutputError(f"snapshot {str(path)!r} cannot be written: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a snapshot back.

        Raises:
            OptionsError: the file is missing or is no snapshot.
        """
        from safetensors import SafetensorError, safe_open

        try:
            if Path(path).stat().st_size > MAX_BYTES:
                raise OptionsError(f"snapshot {str(path)!r} is larger than {MAX_BYTES} bytes; it is none")
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            if metadata.get("arlon_rt_snapshot") != FORMAT:
                raise ValueError("it says nothing of this format")
            return cls._of(json.loads(metadata["state"]), tensors)
        except OptionsError:
            raise
        except OSError as error:
            raise OptionsError(f"snapshot {str(path)!r} cannot be read: {error.strerror or error}") from error
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise OptionsError(f"snapshot {str(path)!r} is damaged or none of this version: {error}") from error

    @classmethod
    def _of(cls, state: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Self:
        codes, counts = tensors.get("codes"), {name: state[name] for name in COUNTS if name in state}
        placements = tuple(Placement(**placement) for placement in state["placements"])
        whole = [n for p in placements for n in dataclasses.astuple(p)[:-1]]
        if not all(type(value) is int for value in [*counts.values(), state["segment"], state["lead"], *whole]):
            raise ValueError("its counts are no whole numbers")
        if codes is not None and (codes.dtype != np.int64 or codes.ndim != 1):
            raise ValueError(f"its codes are {codes.dtype} {codes.shape}")
        tokens = None if codes is None else TokenState(codes=tuple(codes.tolist()), **counts)
        boundary = Boundary(segment=state["segment"], before=tensors.get("before"), tokens=tokens)
        return cls(
            bundle=str(state["bundle"]), machine=Machine(**state["machine"]), boundary=boundary,
            options=GenerateOptions(**state["options"]), prompts=Timeline.of(tuple(map(tuple, state["prompts"]))),
            tokens=tensors.get("given_tokens"), lead=state["lead"],
            conditions=Conditions(references=tuple(_references(tensors)), placements=placements),
            sources={str(name): str(source) for name, source in state["sources"].items()},
        )


def _references(tensors: Mapping[str, NDArray[Any]]) -> Iterator[Reference]:
    for i in itertools.takewhile(lambda i: f"latents_{i}" in tensors, itertools.count()):
        latents, drafted = tensors[f"latents_{i}"], tensors[f"drafted_{i}"]
        for tensor in (latents, drafted):
            if tensor.dtype != np.float32 or tensor.ndim != 5 or not tensor.size or not np.isfinite(tensor).all():
                raise ValueError(f"its reference {i} is no latents")
        yield Reference(latents=latents, drafted=drafted)
