"""The manifest of a bundle: its fields, its strict reader and its checks. No model file is read."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import arlon_rt.bundle.limits as limits
from arlon_rt.bundle.schema import from_json
from arlon_rt.config import ModelConfig
from arlon_rt.errors import BundleError, OptionsError
from arlon_rt.graphs import FLOAT_DTYPE, TensorSignature, graph_specs
from arlon_rt.options import GenerateOptions

FORMAT = 1
MAX_BYTES = 4 << 20
"""A larger manifest is refused without being read."""
MAX_FILE_BYTES = 1 << 40

_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of the bundle."""

    size: int
    """Bytes."""
    sha256: str
    """Lower-case hexadecimal."""


@dataclass(frozen=True, kw_only=True)
class GraphEntry:
    """One graph in one precision."""

    file: str
    """The .onnx file, relative to the bundle, with ``/``."""
    data: tuple[str, ...] = ()
    """Its external data files, in the same folder as ``file``."""
    inputs: tuple[TensorSignature, ...]
    outputs: tuple[TensorSignature, ...]
    flops: int = 0
    """Floating-point operations of one run at the ``opt`` sizes of graphs.py."""
    bytes: int = 0
    """Bytes one run must move at the ``opt`` sizes: weights, inputs and outputs."""
    kept_fp32: Mapping[str, str] = field(default_factory=dict)
    """Operations kept in float32 in a half-precision set, with the reason of each."""
    checked: str = ""
    """How the exporter checked the graph, and what it could not check; may be empty."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """manifest.json as a value."""

    format: int = FORMAT
    arlon_rt: str
    """The version of arlon-rt that wrote the bundle."""
    model: ModelConfig
    defaults: Mapping[str, Any]
    """Fields of `GenerateOptions` for a request that leaves them out."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where the weights come from: free-form JSON, which ``arlon-rt inspect`` shows."""
    licence: str = "Apache-2.0"
    parameters: Mapping[str, int] = field(default_factory=dict)
    """The number of weights of each network (``text``, ``ar``, ``vq``, ``dit``, ``vae``)."""
    files: Mapping[str, FileEntry]
    graphs: Mapping[str, Mapping[str, GraphEntry]]
    """graph name -> precision -> entry."""


def parse(content: bytes) -> Manifest:
    """The manifest that the bytes of a manifest.json hold; `BundleError` names what is damaged or does not fit."""
    if len(content) > MAX_BYTES:
        raise BundleError(f"manifest.json has {len(content)} bytes; at most {MAX_BYTES} are read")
    try:
        tree = json.loads(
            content.decode("utf-8"), object_pairs_hook=_object, parse_constant=_number, parse_float=_number
        )
        _check_format(tree)
        manifest = from_json(Manifest, tree, "manifest")
    except BundleError:
        raise
    except RecursionError:
        raise BundleError("manifest.json is nested too deeply") from None
    except ValueError as error:
        raise BundleError(f"manifest.json is not valid JSON ({error}); copy the bundle again") from None
    check(manifest)
    return manifest


def serialize(manifest: Manifest) -> bytes:
    """The bytes of manifest.json; the same manifest always gives the same bytes."""
    return (json.dumps(dataclasses.asdict(manifest), indent=1, allow_nan=False) + "\n").encode("ascii")


def check(manifest: Manifest) -> None:
    """Raise `BundleError` unless names, sizes, cross-references and the model configuration make sense."""
    limits.check_model(manifest.model)
    from_json(GenerateOptions, manifest.defaults, "manifest.defaults")
    try:
        GenerateOptions().resolved(manifest)
    except OptionsError as error:
        raise BundleError(f"manifest.defaults: {error}") from None
    spellings: dict[str, str] = {}
    for name, entry in manifest.files.items():
        check_name(name)
        other = spellings.setdefault(name.lower(), name)
        if other != name:
            raise BundleError(f"manifest.files has {other!r} and {name!r}, which differ only in case")
        if not 0 <= entry.size <= MAX_FILE_BYTES:
            raise BundleError(f"manifest.files.{name}.size is {entry.size!s:.24}; it must be 0..{MAX_FILE_BYTES}")
        if not _SHA256.fullmatch(entry.sha256):
            raise BundleError(f"manifest.files.{name}.sha256 is {entry.sha256!r:.80}; 64 hexadecimal digits expected")
    known = graph_specs(manifest.model)
    networks = {spec.network for spec in known.values()}
    for network, count in manifest.parameters.items():
        if network not in networks or count < 0:
            known_networks = ", ".join(sorted(networks))
            raise BundleError(f"manifest.parameters.{network} is {count!s:.24}; networks are {known_networks}")
    for graph, precisions in manifest.graphs.items():
        if graph not in known:
            raise BundleError(f"manifest.graphs has {graph!r:.80}; this model has {', '.join(known)}")
        for precision, graph_entry in precisions.items():
            _check_graph(f"manifest.graphs.{graph}.{precision}", precision, graph_entry, manifest.files)


def check_name(name: str) -> None:
    """Raise `BundleError` unless ``name`` is a plain relative name such as ``onnx/dit.fp32.onnx``."""
    for part in name.split("/"):
        if len(name) > 255 or not _PART.fullmatch(part) or _RESERVED.fullmatch(part):
            raise BundleError(
                f"{name!r:.120} is not a plain file name inside the bundle "
                "(letters, digits, '.', '_', '-', folders divided by '/'; no absolute path, no '..')"
            )
    if name.lower() == "manifest.json":
        raise BundleError("manifest.files lists manifest.json, which cannot hold its own hash")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for name, _ in pairs:
        if not name.isprintable() or len(name) > 255:
            raise BundleError(f"manifest.json has a field named {name!r:.80}")
    tree = dict(pairs)
    if len(tree) != len(pairs):
        names = [name for name, _ in pairs]
        raise BundleError(f"manifest.json has {next(n for n in names if names.count(n) > 1)!r} twice in one object")
    return tree


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise BundleError(f"manifest.json has the number {text:.40}; a finite number is expected")
    return value


def _check_format(tree: Any) -> None:
    if not isinstance(tree, dict):
        raise BundleError("manifest.json does not hold a JSON object")
    found = tree.get("format")
    if type(found) is not int:
        raise BundleError(f"manifest.format is {found!r:.80}; the integer {FORMAT} is expected")
    if found != FORMAT:
        way_out = "upgrade arlon-rt to read it" if found > FORMAT else "export the bundle again"
        raise BundleError(f"manifest.format is {found!s:.24}; this version reads {FORMAT}: {way_out}")


def _check_graph(where: str, precision: str, entry: GraphEntry, files: Mapping[str, FileEntry]) -> None:
    if precision not in FLOAT_DTYPE:
        raise BundleError(f"{where}: the precision must be one of {', '.join(FLOAT_DTYPE)}")
    for name in (entry.file, *entry.data):
        if name not in files:
            raise BundleError(f"{where} names {name!r:.120}, which manifest.files does not list")
        if name.rpartition("/")[0] != entry.file.rpartition("/")[0]:
            raise BundleError(f"{where}: {name} must lie in the folder of {entry.file}")
    if not entry.file.endswith(".onnx"):
        raise BundleError(f"{where}.file is {entry.file}; a name that ends in .onnx is expected")
    for name, count in (("flops", entry.flops), ("bytes", entry.bytes)):
        if not 0 <= count <= 1 << 62:
            raise BundleError(f"{where}.{name} is {count!s:.24}; a count of 0 or more is expected")
    for tensor, _, axes in (*entry.inputs, *entry.outputs):
        if any(isinstance(axis, int) and not 1 <= axis <= limits.MAX_SIZE for axis in axes):
            raise BundleError(f"{where}: {tensor!r:.80} has the axes {axes!s:.80}; sizes are 1..{limits.MAX_SIZE}")
