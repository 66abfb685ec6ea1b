"""A bundle on disk: how it opens from its manifest alone, finds its files safely and gets its manifest written."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arlon_rt.bundle.folder import MANIFEST, TOKENIZER, contained, listed_files
from arlon_rt.bundle.manifest import MAX_BYTES, FileEntry, GraphEntry, Manifest, check, parse, serialize
from arlon_rt.config import ModelConfig
from arlon_rt.errors import BundleError, BundleNotFoundError
from arlon_rt.files import file_sha256, write_atomically
from arlon_rt.graphs import FLOAT_DTYPE, GraphSpec, graph_specs

if TYPE_CHECKING:
    from arlon_rt.bundle.verification import Finding


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. Immutable, and safe to share between threads; no graph is loaded."""

    path: Path
    manifest: Manifest
    hash: str
    """SHA-256 of manifest.json, which holds the hash of every other file."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """The bundle in the folder ``path``; only its manifest is read.

        Raises:
            BundleNotFoundError: there is no such folder, or it has no manifest.json.
            BundleError: the manifest is damaged or hostile; the message names the field.
        """
        folder = Path(path)
        try:
            if not folder.is_dir():
                what = "is not a folder" if folder.exists() else "does not exist"
                raise BundleNotFoundError(f"{os.fspath(path)!r} {what}; a bundle is a folder with a manifest.json")
            content = _read_manifest(folder)
        except BundleError:
            raise
        except (OSError, ValueError) as error:
            raise BundleError(f"the bundle {os.fspath(path)!r} cannot be read: {error}") from error
        return cls(folder, parse(content), hashlib.sha256(content).hexdigest())

    @property
    def model(self) -> ModelConfig:
        """Sizes and assumptions of every network."""
        return self.manifest.model

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Fields of `GenerateOptions` for a request that leaves them out."""
        return self.manifest.defaults

    @property
    def is_baseline(self) -> bool:
        """Whether the model is plain Open-Sora v1.2: no token model, no semantic injection."""
        return self.model.ar is None

    @property
    def tokenizer_path(self) -> Path:
        """The path of the sentencepiece model."""
        return self.file(TOKENIZER)

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions that this bundle has of every graph."""
        sets = [set(p) for p in self.manifest.graphs.values()]
        return tuple(p for p in FLOAT_DTYPE if sets and all(p in s for s in sets))

    def spec(self, graph: str) -> GraphSpec:
        """The contract of ``graph`` for this bundle's sizes."""
        specs = graph_specs(self.model)
        if graph not in specs:
            raise BundleError(f"this bundle's model has no graph {graph!r}; it has {', '.join(specs)}")
        return specs[graph]

    def graph(self, graph: str, precision: str) -> GraphEntry:
        """The manifest's entry of ``graph`` in ``precision``."""
        entries = self.manifest.graphs.get(graph)
        if not entries:
            graphs = ", ".join(self.manifest.graphs) or "none"
            raise BundleError(f"{self.path} has no graph {graph!r}; graphs there: {graphs}")
        if precision not in entries:
            raise BundleError(f"{self.path} has no {precision!r} of {graph}; precisions there: {', '.join(entries)}")
        return entries[precision]

    def graph_file(self, graph: str, precision: str) -> Path:
        """The path of the .onnx of ``graph``; it and its external data have their full size."""
        entry = self.graph(graph, precision)
        for name in entry.data:
            self.file(name)
        return self.file(entry.file)

    def file(self, name: str) -> Path:
        """The path of the listed file ``name``, whose place and size were checked, but not its hash."""
        entry = self.manifest.files.get(name)
        if entry is None:
            raise BundleError(f"{self.path}: manifest.json does not list {name!r:.120}")
        path = contained(self.path, name)
        size = path.stat().st_size
        if size != entry.size:
            raise BundleError(
                f"{path} has {size} bytes, the manifest says {entry.size}: it was truncated or changed; "
                f"run `arlon-rt verify {self.path}`"
            )
        return path

    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[Finding]:
        """What is wrong with the files of this bundle and with its manifest; no graph is opened.

        The deep check, which opens every graph in ONNX Runtime, is `arlon_rt.backends.ort.verify_opened`.

        Args:
            progress: is called with (bytes hashed so far, bytes in all).
        """
        from arlon_rt.bundle.verification import verify

        return list(verify(self, progress))


def demo_bundle_path() -> Path:
    """The path of the small trained bundle that ships in the package.

    Raises:
        BundleNotFoundError: this installation has none.
    """
    path = Path(__file__).parents[1] / "demo_bundle"
    if not (path / MANIFEST).is_file():
        raise BundleNotFoundError(f"the demo bundle is not installed ({path}); name a bundle with --bundle PATH")
    return path


def write_manifest(
    folder: Path,
    *,
    model: ModelConfig,
    defaults: Mapping[str, Any],
    graphs: Mapping[str, Mapping[str, GraphEntry]],
    parameters: Mapping[str, int] | None = None,
    provenance: Mapping[str, Any] | None = None,
    licence: str = "Apache-2.0",
    known: Mapping[str, FileEntry] | None = None,
) -> Manifest:
    """The manifest of all files below ``folder``, checked and written to manifest.json in one step.

    Args:
        known: entries of files that have not changed since they were hashed.

    Raises:
        BundleError: something would be refused when the bundle is opened; nothing is written.
    """
    hashed = known or {}
    files = {name: hashed.get(name) or _entry(contained(folder, name)) for name in listed_files(folder)}
    manifest = Manifest(
        arlon_rt=installed_version(), model=model, defaults=defaults, provenance=provenance or {}, licence=licence,
        parameters=parameters or {}, files=files, graphs=graphs,
    )
    check(manifest)
    content = serialize(manifest)
    parse(content)
    write_atomically(folder / MANIFEST, content)
    return manifest


def installed_version(distribution: str = "arlon-rt") -> str:
    """The version of an installed distribution; ``"0+source"`` in a source folder that is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return "0+source"


def _entry(path: Path) -> FileEntry:
    return FileEntry(size=path.stat().st_size, sha256=file_sha256(path))


def _read_manifest(folder: Path) -> bytes:
    path = folder / MANIFEST
    if not path.exists():
        raise BundleNotFoundError(f"{folder} has no {MANIFEST}; a bundle is a folder with one")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"{path} is a link that leaves the bundle; copy the file into it")
    if not stat.S_ISREG(path.stat().st_mode):
        raise BundleError(f"{path} is not a regular file")
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)
