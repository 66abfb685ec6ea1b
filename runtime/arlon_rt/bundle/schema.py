"""Dataclasses from JSON values, with every type checked; `dataclasses.asdict` is the way back."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from arlon_rt.errors import BundleError

T = TypeVar("T")
_hints = functools.cache(typing.get_type_hints)


def from_json(cls: type[T], value: Any, where: str) -> T:
    """The dataclass ``cls`` that JSON values describe; ``where`` names them in messages.

    Raises:
        BundleError: a field is unknown, missing or of the wrong type; the message names it.
    """
    return typing.cast(T, _build(cls, value, where))


def _build(kind: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        kinds = [a for a in args if a is not type(None)]
        return _build(next((a for a in kinds if a is type(value)), kinds[0]), value, where)
    if (origin is Mapping or dataclasses.is_dataclass(kind)) and not isinstance(value, Mapping):
        raise BundleError(f"{where} is {value!r:.80}; an object is expected")
    if origin is Mapping:
        return {name: _build(args[1], item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        fields = {f.name: f for f in dataclasses.fields(kind)}
        for name in value:
            if name not in fields and name not in getattr(kind, "REMOVED", ()):
                raise BundleError(f"{where}.{name} is not a field this version knows ({', '.join(fields)})")
        for name, field in fields.items():
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if required and name not in value:
                raise BundleError(f"{where}.{name} is missing")
        hints = _hints(kind)
        return kind(**{name: _build(hints.get(name, Any), item, f"{where}.{name}") for name, item in value.items()})
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise BundleError(f"{where} is {value!r:.80}; a list is expected")
        if args[-1] is Ellipsis:
            return tuple(_build(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if len(value) != len(args):
            raise BundleError(f"{where} has {len(value)} entries; {len(args)} are expected")
        return tuple(_build(a, item, f"{where}[{i}]") for i, (a, item) in enumerate(zip(args, value, strict=True)))
    if origin is typing.Literal:
        if value not in args:
            raise BundleError(f"{where} is {value!r:.80}; it must be one of {', '.join(map(repr, args))}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1 << 1000 else math.inf
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BundleError(f"{where} is {value!r:.80}; {kind.__name__} is expected")
    if isinstance(value, float) and not math.isfinite(value):
        raise BundleError(f"{where} is {value}; a finite number is expected")
    return value
