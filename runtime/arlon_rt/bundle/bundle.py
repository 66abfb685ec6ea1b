"""A bundle on disk: opening it (manifest only), finding its files safely, writing its manifest."""

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
from arlon_rt.graphs import GraphSpec, graph_specs

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
        """Read the manifest of the bundle folder ``path``.

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
        """Fields of `GenerateOptions` that a request takes from here where it says nothing."""
        return self.manifest.defaults

    @property
    def is_baseline(self) -> bool:
        """Whether this is plain Open-Sora v1.2: no token model, no semantic injection."""
        return self.model.ar is None

    @property
    def tokenizer_path(self) -> Path:
        """The sentencepiece model."""
        return self.file(TOKENIZER)

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions in which every graph of this bundle is there."""
        sets = [set(p) for p in self.manifest.graphs.values()]
        return tuple(p for p in ("fp32", "fp16", "bf16") if sets and all(p in s for s in sets))

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
            there = ", ".join(self.manifest.graphs) or "none"
            raise BundleError(f"{self.path} has no graph {graph!r}; graphs there: {there}")
        if precision not in entries:
            raise BundleError(f"{self.path} has no {precision!r} of {graph}; precisions there: {', '.join(entries)}")
        return entries[precision]

    def graph_file(self, graph: str, precision: str) -> Path:
        """The .onnx of ``graph``, after it and its external data were found there in full size."""
        entry = self.graph(graph, precision)
        for name in entry.data:
            self.file(name)
        return self.file(entry.file)

    def file(self, name: str) -> Path:
        """Where the listed file ``name`` lies, after a check of its place and size (not of its hash)."""
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
        """Everything wrong with the files of this bundle; see `arlon_rt.bundle.verification.verify`."""
        from arlon_rt.bundle.verification import verify

        return list(verify(self, progress))


def demo_bundle_path() -> Path:
    """The small trained bundle that ships in the package.

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
    """Hash every file below ``folder``, check the whole and write manifest.json in one step (old or new, never half).

    Args:
        known: files that are not hashed again, as the caller has not touched them since.

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
    """Version of an installed distribution; ``"0+source"`` when it runs from a source folder alone."""
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
