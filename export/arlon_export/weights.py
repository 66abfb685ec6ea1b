"""The external data file of one network, shared by its graphs and precision sets: equal tensors are stored once."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

PAGE_BYTES = 4096
"""Large tensors start at a page, so that they can be mapped into memory as they lie."""
LARGE_BYTES = 1 << 16
SMALL_ALIGNMENT = 64
INLINE_BYTES = 256
"""Smaller tensors stay inside the .onnx file: a reference to the data file would take as much."""


class WeightFile:
    """Appends tensors to a data file; use as a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._places: dict[bytes, tuple[int, int]] = {}

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def externalise(self, model: ir.Model, weights: Collection[str]) -> None:
        """Move the tensors of ``model`` into the file.

        A float32 weight that fp16 holds exactly is stored as fp16, under its own name, and read through a Cast, which
        ONNX Runtime folds when the session opens.
        """
        casts = []
        for name, value in list(model.graph.initializers.items()):
            tensor = value.const_value
            if tensor is None or tensor.nbytes < INLINE_BYTES:
                continue
            if name in weights and tensor.dtype == ir.DataType.FLOAT and _fits_half(tensor.numpy()):
                casts.append(_read_through_cast(value))
                tensor = ir.Tensor(tensor.numpy().astype(np.float16), name=name)
            value.const_value = self._place(name, tensor)
            value.dtype = tensor.dtype
        model.graph.insert_before(model.graph[0], casts)

    def _place(self, name: str, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        content = tensor.tobytes()
        key = hashlib.sha256(content).digest()
        if key not in self._places:
            alignment = PAGE_BYTES if len(content) >= LARGE_BYTES else SMALL_ALIGNMENT
            self._file.write(bytes(-self._file.tell() % alignment))
            self._places[key] = (self._file.tell(), len(content))
            self._file.write(content)
        offset, length = self._places[key]
        return ir.ExternalTensor(
            self._path.name, offset, length, tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()), name=name, base_dir=self._path.parent,
        )


def _fits_half(values: npt.NDArray[Any]) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.array_equal(values.astype(np.float16).astype(np.float32), values))


def _read_through_cast(value: ir.Value) -> ir.Node:
    """The node Cast(value) -> float32, which everything that used ``value`` now reads."""
    cast = ir.node("Cast", [value], attributes={"to": int(ir.DataType.FLOAT)}, name=f"{value.name}.cast")
    wide = cast.outputs[0]
    wide.name, wide.dtype, wide.shape = f"{value.name}.float32", ir.DataType.FLOAT, value.shape
    for use in tuple(value.uses()):
        if use.node is not cast:
            use.node.replace_input_with(use.idx, wide)
    return cast
