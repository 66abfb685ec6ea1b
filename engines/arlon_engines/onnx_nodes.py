"""The nodes of an ONNX file, read from its protobuf encoding. TensorRT's parser does not report inputs that it ignores.

ModelProto.graph is field 7, GraphProto.node 1, NodeProto.input 1, .name 3, .op_type 4. Weights are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from arlon_engines.errors import BuildError

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operator of the main graph."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    """Names of its inputs; the name of an omitted one is empty."""


def read_nodes(path: Path) -> list[Node]:
    """The nodes of the main graph, in the file's order, without those in the bodies of loops and branches.

    Raises:
        BuildError: the file is no ONNX model.
    """
    content = memoryview(path.read_bytes())
    try:
        graphs = [graph for number, graph in _fields(content) if number == 7]
        return [_node(node) for graph in graphs for number, node in _fields(graph) if number == 1]
    except (IndexError, ValueError) as error:
        raise BuildError(f"{path} is no ONNX model: {error}") from error


def _node(content: memoryview) -> Node:
    found: dict[int, list[str]] = {1: [], 3: [], 4: []}
    for number, value in _fields(content):
        if number in found:
            found[number].append(str(value, "utf-8"))
    return Node(name="".join(found[3]), operator="".join(found[4]), inputs=tuple(found[1]))


def _fields(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, content) of each field that has a length; the others are skipped."""
    place = 0
    while place < len(content):
        key, place = _varint(content, place)
        kind = key & 7
        if kind == _VARINT:
            _, place = _varint(content, place)
        elif kind == _LENGTH:
            length, place = _varint(content, place)
            if place + length > len(content):
                raise ValueError("it was truncated")
            yield key >> 3, content[place : place + length]
            place += length
        elif kind in (_FIXED64, _FIXED32):
            place += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"field {key >> 3} has the unknown kind {kind}")


def _varint(content: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not byte & 0x80:
            return value, place
