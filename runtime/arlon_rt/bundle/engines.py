"""The engines of a bundle: their index, their folders, and which of them may be loaded. TensorRT is never called.

engines/index.json lists the files engines/<identity>/<graph>.engine. The folder engines lies in the bundle, or in the
user's cache if the bundle cannot be written. The manifest does not list engines.
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

from arlon_rt.bundle.bundle import ENGINES, Bundle
from arlon_rt.bundle.engine_file import ANY_SIZE, EngineHeader, Identity, check_plan, read_header
from arlon_rt.bundle.manifest import MAX_BYTES, check_name
from arlon_rt.bundle.schema import from_json
from arlon_rt.bundle.trust import built_by_this_user
from arlon_rt.errors import BundleError, EngineError, EngineNotFoundError
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
    """Axis of graphs.py -> its (min, opt, max)."""


@dataclass(frozen=True, kw_only=True)
class EngineEntry:
    """One engine in the index."""

    header: EngineHeader
    profiles: tuple[EngineProfile, ...]
    """In the order that the engine has them."""
    layers: Mapping[str, int]
    """TensorRT's layer type -> number of layers in the compiled network. The layers of the engine itself are fused."""
    wider: Mapping[str, int] = field(default_factory=dict)
    """Layer type -> number of heavy layers that compute in float32 although the precision is half."""
    build_seconds: float
    arlon_rt: str
    """The version of arlon-rt that built it."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """engines/index.json as a value."""

    format: int = INDEX_FORMAT
    engines: tuple[EngineEntry, ...] = ()


@dataclass(frozen=True)
class EngineStore:
    """A folder of engines, in the bundle or in the user's cache."""

    root: Path
    """An engine whose path leaves this folder through a link is refused."""
    folder: Path

    def index(self) -> Index:
        """The index of the folder, empty if the folder has none; `EngineError` if index.json is damaged."""
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
        """Write ``entry`` to the index, in place of one of the same graph and identity. Returns all entries."""
        key = (entry.header.graph, entry.header.identity)
        engines = (*(e for e in others if (e.header.graph, e.header.identity) != key), entry)
        content = json.dumps(dataclasses.asdict(Index(engines=engines)), indent=1).encode("ascii") + b"\n"
        write_atomically(self.folder / INDEX, content)
        return engines

    def path(self, graph: str, identity: Identity) -> Path:
        """The path that an engine has or would have."""
        name = _file_name(graph, identity)
        try:
            check_name(name)
        except BundleError as error:
            raise EngineError(str(error)) from None
        path = self.folder / name
        self._refuse_outside(path)
        return path

    def find(self, bundle: Bundle, graph: str, identity: Identity, *, trust: bool, whole: bool = True) -> Path:
        """The file of the engine in this folder that fits and may be loaded.

        Args:
            trust: accept an engine that this user did not build.
            whole: also hash the plan; without it a flipped bit goes unnoticed.

        Raises:
            EngineError: no engine fits; the message says what differs.
        """
        headers = [e.header for e in self.index().engines if e.header.graph == graph]
        header = next((h for h in headers if h.identity == identity), None)
        if header is None:
            raise _other_identity(self.folder, graph, identity, [h.identity for h in headers])
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
                f"{path} was not built on this machine by this user, and an engine is code "
                f"(--trust-engines loads it if you trust its origin)"
            )
        return path

    def _refuse_outside(self, path: Path) -> None:
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise EngineError(f"{path} is a link that leaves {self.root}; an engine must lie inside")


def find_engine(bundle: Bundle, graph: str, identity: Identity, trust: bool = False) -> Path:
    """The engine file of ``graph`` that fits ``identity`` and may be loaded. Its header and its hash were checked.

    Raises:
        EngineError: no engine fits; the message says what differs and has the command that builds the right one.
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
    """The index entry, with profiles and layers, of a file that `find_engine` found."""
    header = read_header(path)
    store = next(s for s in engine_stores(bundle) if path.is_relative_to(s.folder))
    return next(e for e in store.index().engines if e.header == header)


def engine_stores(bundle: Bundle) -> tuple[EngineStore, EngineStore]:
    """The two folders in which engines of ``bundle`` may lie: its own, and one in the user's cache."""
    cached = cache_folder() / ENGINES / bundle.hash
    return EngineStore(bundle.path, bundle.path / ENGINES), EngineStore(cached, cached)


def store_to_build_in(bundle: Bundle) -> EngineStore:
    """The folder to build engines in: the bundle's own if it can be written and is not part of an installed package."""
    own, cached = engine_stores(bundle)
    existing = own.folder if own.folder.exists() else bundle.path
    installed = bundle.path.resolve().is_relative_to(Path(__file__).resolve().parents[1])
    return own if os.access(existing, os.W_OK | os.X_OK) and not installed else cached


def source_hash(bundle: Bundle, graph: str, precision: str) -> str:
    """The hash of an ONNX file and its external data, from the hashes that the manifest states."""
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


def _other_identity(folder: Path, graph: str, required: Identity, built: Sequence[Identity]) -> EngineError:
    """The error that says how the most similar engine of ``graph`` differs, or that the folder has none."""
    if not built:
        return EngineNotFoundError(f"{folder} has no engine of {graph}")
    names = [f.name for f in dataclasses.fields(Identity)]
    nearest = max(built, key=lambda i: sum(getattr(i, n) == getattr(required, n) for n in names))
    differences = [
        f"{_DIFFERENCES[n]} is {getattr(required, n)} and it was built for {getattr(nearest, n)}"
        for n in names if getattr(nearest, n) != getattr(required, n)
    ]
    return EngineError(f"the engine of {graph} in {folder} does not fit: {', '.join(differences)}")
