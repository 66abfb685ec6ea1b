"""The external data file of one network, shared by its graphs and precision sets. Equal tensors are stored once."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor, to_torch_dtype
from torch import Tensor

from arlon_export.checkpoints.state_dict import StateDict, StoredTensor
from arlon_rt.errors import BundleError

PAGE_BYTES = 4096
"""Large tensors start at a multiple of this, so that they can be mapped into memory."""
LARGE_BYTES = 1 << 16
SMALL_ALIGNMENT = 64
INLINE_BYTES = 256
"""Smaller tensors stay inside the .onnx file, where a reference to the data file would take as much space."""
CHUNK_VALUES = 1 << 22
"""Number of a tensor's values that are in memory at a time."""
FP16_OVERFLOW = 65520.0
"""The smallest magnitude that fp16 rounds to infinity."""
HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
FLOATS = {ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16"}


@dataclass(frozen=True)
class _Values:
    """Facts about a tensor's values."""

    half: ir.DataType | None
    """The 16-bit type that holds every value exactly, fp16 before bf16; ``None`` if neither does."""
    largest: float
    """The largest magnitude."""


class WeightFile:
    """Appends tensors to a data file and reads them one by one; use it as a context manager."""

    def __init__(
        self, path: Path, tensors: StateDict, what: str, on_read: Callable[[int], None] = lambda count: None
    ) -> None:
        """Open ``path`` for the ``tensors`` of the network ``what``; ``on_read`` gets each tensor's bytes once."""
        self._path = path
        self._tensors = tensors
        self._what = what
        self._on_read = on_read
        self._file = path.open("wb")
        self._places: dict[bytes, tuple[int, int]] = {}
        self._weights: dict[tuple[str, ir.DataType], tuple[int, int]] = {}
        self._values: dict[str, _Values] = {}

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if error is None:
                self._file.flush()
                os.fsync(self._file.fileno())  # a later export trusts the file

    def externalise(self, model: ir.Model) -> None:
        """Move the tensors of ``model`` into the file.

        A weight that fp16 or bf16 holds exactly is stored in that type, under its own name, for all precision sets. A
        set of another type reads it through a Cast, which ONNX Runtime folds when the session opens.

        Raises:
            BundleError: a weight has a value that is not finite, or is too large for the fp16 set.
        """
        casts = []
        for name, value in list(model.graph.initializers.items()):
            tensor = value.const_value
            if tensor is None:
                continue
            if name in self._tensors and tensor.dtype in FLOATS:
                value.const_value = self._weight(self._tensors[name], tensor.dtype)
                value.dtype = value.const_value.dtype
                if value.dtype != tensor.dtype:
                    casts.append(_read_through_cast(value, tensor.dtype))
            elif tensor.nbytes >= INLINE_BYTES:
                place = self._append(tensor.nbytes, [tensor.tobytes()])
                value.const_value = self._external(name, tensor.dtype, tensor.shape.numpy(), place)
        model.graph.insert_before(model.graph[0], casts)

    def _weight(self, stored: StoredTensor, dtype: ir.DataType) -> ir.TensorProtocol:
        """``stored`` for a set of type ``dtype``: its values if it is small, else its place in the data file."""
        values = self._look_at(stored)
        if dtype == ir.DataType.FLOAT16 and values.largest >= FP16_OVERFLOW:
            raise BundleError(
                f"{self._what}: {stored.name} has values up to {values.largest:.4g}, beyond fp16's largest, 65504; "
                "leave fp16 out, e.g. --precision fp32,bf16"
            )
        count = math.prod(stored.shape)
        if count * dtype.itemsize < INLINE_BYTES:
            return TorchTensor(stored.load().to(to_torch_dtype(dtype)).contiguous(), name=stored.name)
        stored_dtype = dtype if values.half is None else values.half
        key = stored.name, stored_dtype
        if key not in self._weights:
            torch_dtype, size = to_torch_dtype(stored_dtype), int(count * stored_dtype.itemsize)
            self._weights[key] = self._append(size, (_content(c.to(torch_dtype)) for c in _chunks(stored)))
        return self._external(stored.name, stored_dtype, stored.shape, self._weights[key])

    def _look_at(self, stored: StoredTensor) -> _Values:
        """Facts about a weight's values, read once: it must be finite, and a 16-bit type may hold it exactly."""
        if stored.name not in self._values:
            exact, largest = dict.fromkeys(HALVES, True), 0.0
            for chunk in _chunks(stored):
                if not torch.isfinite(chunk).all():
                    raise BundleError(f"{self._what}: {_not_finite(stored)}; the checkpoint is damaged or diverged")
                largest = max(largest, chunk.abs().max().item())
                for half in HALVES:
                    dtype = to_torch_dtype(half)
                    exact[half] = exact[half] and torch.equal(chunk.to(dtype).to(chunk.dtype), chunk)
            self._values[stored.name] = _Values(next((half for half in HALVES if exact[half]), None), largest)
            self._on_read(math.prod(stored.shape) * stored.dtype.itemsize)
        return self._values[stored.name]

    def _append(self, size: int, pieces: Iterable[memoryview | bytes]) -> tuple[int, int]:
        """The (offset, length) of a tensor of ``size`` bytes; an earlier tensor with the same content is shared."""
        end = self._file.tell()
        self._file.write(bytes(-end % (PAGE_BYTES if size >= LARGE_BYTES else SMALL_ALIGNMENT)))
        start, digest = self._file.tell(), hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
            self._file.write(piece)
        place = self._places.setdefault(digest.digest(), (start, size))
        if place[0] != start:
            self._file.seek(end)
            self._file.truncate()
        return place

    def _external(
        self, name: str, dtype: ir.DataType, shape: Sequence[int], place: tuple[int, int]
    ) -> ir.ExternalTensor:
        return ir.ExternalTensor(
            self._path.name, *place, dtype, shape=ir.Shape(shape), name=name, base_dir=self._path.parent
        )


def _chunks(stored: StoredTensor) -> Iterator[Tensor]:
    """The tensor's values in order, flat. A file's values are mapped, so the system can drop pages that were read."""
    values = stored.load().flatten()
    for start in range(0, len(values), CHUNK_VALUES):
        yield values[start : start + CHUNK_VALUES]


def _content(values: Tensor) -> memoryview:
    return memoryview(values.contiguous().view(torch.uint8).numpy())  # type: ignore[arg-type]  # a buffer from Python 3.12 on


def _not_finite(stored: StoredTensor) -> str:
    values = stored.load()
    faults = (~torch.isfinite(values)).nonzero()
    first = tuple(faults[0].tolist())
    others = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
    return f"{stored.name} is {values[first].item()} at {list(first)}{others}; finite numbers are expected"


def _read_through_cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    """A node that casts ``value`` to ``dtype``; every node that read ``value`` now reads its output."""
    cast = ir.node("Cast", [value], attributes={"to": int(dtype)}, name=f"{value.name}.cast")
    output = cast.outputs[0]
    output.name, output.dtype, output.shape = f"{value.name}.{FLOATS[dtype]}", dtype, value.shape
    for use in tuple(value.uses()):
        if use.node is not cast:
            use.node.replace_input_with(use.idx, output)
    return cast
