"""A bundle on disk: opened from its manifest alone, its files found safely and verified, its manifest written."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from arlon_rt.bundle.manifest import MAX_BYTES, FileEntry, GraphEntry, Manifest, check, check_name, parse, serialize
from arlon_rt.config import ModelConfig
from arlon_rt.errors import BundleError, BundleNotFoundError
from arlon_rt.files import file_sha256, write_atomically
from arlon_rt.graphs import FLOAT_DTYPE, GraphSpec, differences, graph_specs
from arlon_rt.version import installed_version

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.model"
ENGINES = "engines"
"""The folder of engines that were built on this machine: a cache, which the manifest never lists."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing wrong with a bundle."""

    where: str
    """A file name, or ``graph.precision``."""
    message: str
    severity: Literal["error", "warning"] = "error"
    """A bundle with warnings alone can be used."""


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
        return [*_verify_files(self, progress), *_verify_graphs(self)]


def contained(folder: Path, name: str) -> Path:
    """The path of the regular file ``name``; `BundleError` unless the name is plain and no link leaves ``folder``."""
    check_name(name)
    path = folder / name
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise BundleError(f"{path} is a link that leaves the bundle; copy the file into it")
        if not path.is_file():
            raise BundleError(f"{path} is missing; run `arlon-rt verify {folder}`, or copy the bundle again")
    except (OSError, RuntimeError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    return path


def listed_files(folder: Path) -> list[str]:
    """Names of the files below ``folder`` that a manifest must list: all but itself and the engines."""
    names = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())
    return sorted(n for n in names if n != MANIFEST and not n.startswith(f"{ENGINES}/"))


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


def _verify_files(bundle: Bundle, progress: Callable[[int, int], None] | None) -> Iterator[Finding]:
    files = bundle.manifest.files
    total = sum(entry.size for entry in files.values())
    before = 0

    def report(hashed: int) -> None:
        if progress:
            progress(min(before + hashed, total), total)

    for name, entry in files.items():
        try:
            path = contained(bundle.path, name)
            size, sha256 = path.stat().st_size, file_sha256(path, on_progress=report)
            before += entry.size
            if size != entry.size:
                yield Finding(where=name, message=f"has {size} bytes; the manifest says {entry.size}")
            elif sha256 != entry.sha256:
                yield Finding(where=name, message=f"has SHA-256 {sha256}; the manifest says {entry.sha256}")
        except BundleError as error:
            yield Finding(where=name, message=str(error))
        except OSError as error:
            yield Finding(where=name, message=f"cannot be read: {error}")
    for name in listed_files(bundle.path):
        if name not in files:
            yield Finding(where=name, message="is in the folder, but not in the manifest", severity="warning")


def _verify_graphs(bundle: Bundle) -> Iterator[Finding]:
    manifest = bundle.manifest
    if TOKENIZER not in manifest.files:
        yield Finding(where=TOKENIZER, message="the manifest lists no tokenizer")
    for graph, spec in graph_specs(bundle.model).items():
        if not manifest.graphs.get(graph):
            yield Finding(where=graph, message="the manifest has no such graph, and this model needs it")
        for precision, entry in manifest.graphs.get(graph, {}).items():
            for difference in differences(spec, precision, entry.inputs, entry.outputs, stated_by="manifest"):
                yield Finding(where=f"{graph}.{precision}", message=difference)
