"""Engines of a bundle: the index, where they lie, and which may be loaded. TensorRT itself is never asked.

engines/index.json lists them, engines/<identity>/<graph>.engine are they: in the bundle, or for a bundle that cannot
be written in the user's cache. The manifest knows nothing of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from arlon_rt.bundle.bundle import Bundle, demo_bundle_path
from arlon_rt.bundle.engine_file import ANY_SIZE, EngineHeader, Identity, check_plan, read_header
from arlon_rt.bundle.folder import ENGINES
from arlon_rt.bundle.manifest import MAX_BYTES, check_name
from arlon_rt.bundle.schema import from_json, to_json
from arlon_rt.bundle.trust import built_by_this_user
from arlon_rt.errors import BundleError, BundleNotFoundError, EngineError, EngineNotFoundError
from arlon_rt.files import cache_folder, write_atomically

INDEX = "index.json"
INDEX_FORMAT = 1
_DIFFERENCES = {
    "flavour": "the backend", "version": "the version of TensorRT", "compute_capability": "the GPU",
    "precision": "the precision", "profile": "the profile", "weight_streaming": "--weight-streaming",
}


@dataclass(frozen=True, kw_only=True)
class EngineProfile:
    """One optimisation profile of an engine."""

    name: str
    """``"any"`` or a size; for the token model's step also ``"prefill"`` or ``"decode"``."""
    ranges: Mapping[str, tuple[int, int, int]]
    """Axis of graphs.py -> (min, opt, max)."""


@dataclass(frozen=True, kw_only=True)
class EngineEntry:
    """One engine in the index."""

    header: EngineHeader
    profiles: tuple[EngineProfile, ...]
    """In the engine's own order."""
    layers: Mapping[str, int]
    """Layers of the network that was compiled, by TensorRT's type; not of the engine, whose layers are fused."""
    wider: Mapping[str, int] = field(default_factory=dict)
    """Heavy layers that compute in float32 in a half-precision set, by type."""
    build_seconds: float
    arlon_rt: str
    """Version that built it."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """engines/index.json as a value."""

    format: int = INDEX_FORMAT
    engines: tuple[EngineEntry, ...] = ()


@dataclass(frozen=True)
class EngineStore:
    """A folder of engines: a bundle's own, or one in the user's cache."""

    root: Path
    """Links that leave it are refused."""
    folder: Path

    def index(self) -> Index:
        """What is there; an empty index where there is none.

        Raises:
            EngineError: index.json is damaged.
        """
        path = self.folder / INDEX
        try:
            self._refuse_outside(path)
            if not path.exists():
                return Index()
            with path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise EngineError(f"{path} has more than {MAX_BYTES} bytes")
            tree = json.loads(content.decode("utf-8"))
            if isinstance(tree, dict) and tree.get("format") != INDEX_FORMAT:
                raise EngineError(f"{path} has format {tree.get('format')!r:.24}; this version reads {INDEX_FORMAT}")
            index = from_json(Index, tree, INDEX)
            for entry in index.engines:
                check_name(_file_name(entry.header.graph, entry.header.identity))
        except (OSError, ValueError, RecursionError, BundleError) as error:
            raise EngineError(f"{path} is damaged: {error}") from error
        return index

    def add(self, entry: EngineEntry, others: Sequence[EngineEntry]) -> tuple[EngineEntry, ...]:
        """Write the index with ``entry`` in place of any of the same graph and identity; return what it lists."""
        key = (entry.header.graph, entry.header.identity)
        engines = (*(e for e in others if (e.header.graph, e.header.identity) != key), entry)
        content = json.dumps(to_json(Index(engines=engines)), indent=1).encode("ascii") + b"\n"
        write_atomically(self.folder / INDEX, content)
        return engines

    def path(self, graph: str, identity: Identity) -> Path:
        """Where an engine lies or would lie."""
        name = _file_name(graph, identity)
        try:
            check_name(name)
        except BundleError as error:
            raise EngineError(str(error)) from None
        path = self.folder / name
        self._refuse_outside(path)
        return path

    def find(self, bundle: Bundle, graph: str, identity: Identity, *, trust: bool, whole: bool = True) -> Path:
        """The engine of this store that fits and may be loaded.

        Args:
            trust: take an engine that this user did not build.
            whole: also hash the plan; without it a flipped bit is not seen.

        Raises:
            EngineError: none fits; the message says what differs.
        """
        mine = [e.header for e in self.index().engines if e.header.graph == graph]
        header = next((h for h in mine if h.identity == identity), None)
        if header is None:
            raise _other_identity(self.folder, graph, identity, [h.identity for h in mine])
        if header.source != source_hash(bundle, graph, identity.precision):
            raise EngineError(f"the engine of {graph} was built from another ONNX graph than the bundle's {graph}")
        path = self.path(graph, identity)
        if not path.is_file():
            raise EngineError(f"{path} is missing, though the index lists it")
        if read_header(path) != header:
            raise EngineError(f"{path} is not the engine that the index lists: it was renamed or copied there")
        if whole:
            check_plan(path, header)
        if not trust and not built_by_this_user(header.plan_sha256):
            raise EngineError(
                f"{path} was not built here by this user, and an engine is code "
                f"(if you trust where it comes from: --trust-engines)"
            )
        return path

    def _refuse_outside(self, path: Path) -> None:
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise EngineError(f"{path} is a link that leaves {self.root}; an engine must lie inside")


def find_engine(bundle: Bundle, graph: str, identity: Identity, trust: bool = False) -> Path:
    """The engine file of ``graph`` that fits ``identity``, found by the index and its header, hashed, and trusted.

    Raises:
        EngineError: none fits; the message says what differs and gives the command that builds the right one.
    """
    bundle.graph(graph, identity.precision)
    faults: list[EngineError] = []
    for store in engine_stores(bundle):
        try:
            return store.find(bundle, graph, identity, trust=trust)
        except EngineError as error:
            faults.append(error)
    fault = next((f for f in faults if not isinstance(f, EngineNotFoundError)), faults[0])
    raise type(fault)(f"{fault}; build it: `{build_command(bundle, graph, identity)}`") from fault


def find_entry(bundle: Bundle, path: Path) -> EngineEntry:
    """What the index says of a file that `find_engine` gave: its profiles and layers."""
    header = read_header(path)
    store = next(s for s in engine_stores(bundle) if path.is_relative_to(s.folder))
    return next(e for e in store.index().engines if e.header == header)


def engine_stores(bundle: Bundle) -> tuple[EngineStore, EngineStore]:
    """Where engines of ``bundle`` may lie: its own folder, the user's cache."""
    cached = cache_folder() / ENGINES / bundle.hash
    return EngineStore(bundle.path, bundle.path / ENGINES), EngineStore(cached, cached)


def store_to_build_in(bundle: Bundle) -> EngineStore:
    """The bundle's own folder if it can be written; files of an installed package are left alone."""
    own, cached = engine_stores(bundle)
    there = own.folder if own.folder.exists() else bundle.path
    return own if os.access(there, os.W_OK | os.X_OK) and not _is_installed(bundle.path) else cached


def source_hash(bundle: Bundle, graph: str, precision: str) -> str:
    """One hash of an ONNX file and its external data, from the hashes that the manifest states."""
    entry = bundle.graph(graph, precision)
    digest = hashlib.sha256()
    for name in (entry.file, *sorted(entry.data)):
        digest.update(f"{name}\0{bundle.manifest.files[name].sha256}\n".encode())
    return digest.hexdigest()


def build_command(bundle: Bundle, graph: str, identity: Identity) -> str:
    """The command that builds one engine."""
    sizes = [] if identity.profile == ANY_SIZE else identity.profile.split("_")
    return shlex.join([
        "arlon-rt", "build", str(bundle.path), "--backend", identity.flavour, "--precision", identity.precision,
        "--gpu", identity.compute_capability, *(word for size in sizes for word in ("--profile", size)),
        *(["--weight-streaming"] if identity.weight_streaming else []), "--only", graph,
    ])


def _file_name(graph: str, identity: Identity) -> str:
    return f"{identity.folder}/{graph}.engine"


def _other_identity(folder: Path, graph: str, wanted: Identity, there: Sequence[Identity]) -> EngineError:
    """What the nearest engine of ``graph`` has otherwise, or that there is none."""
    if not there:
        return EngineNotFoundError(f"{folder} has no engine of {graph}")
    names = [f.name for f in dataclasses.fields(Identity)]
    nearest = max(there, key=lambda i: sum(getattr(i, n) == getattr(wanted, n) for n in names))
    differences = [
        f"{_DIFFERENCES[n]} is {getattr(wanted, n)} and it was built for {getattr(nearest, n)}"
        for n in names if getattr(nearest, n) != getattr(wanted, n)
    ]
    return EngineError(f"the engine of {graph} in {folder} does not fit: {', '.join(differences)}")


def _is_installed(path: Path) -> bool:
    try:
        return path.resolve() == demo_bundle_path().resolve()
    except BundleNotFoundError:
        return False
