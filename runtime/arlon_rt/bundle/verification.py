"""What is wrong with the files of a bundle and with its manifest, found without opening a graph.

`arlon_rt.backends.ort.verify_opened` opens the graphs and compares what they state themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from arlon_rt.bundle.folder import TOKENIZER, contained, listed_files
from arlon_rt.errors import BundleError
from arlon_rt.files import file_sha256
from arlon_rt.graphs import differences, graph_specs

if TYPE_CHECKING:
    from arlon_rt.bundle.bundle import Bundle


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing wrong with a bundle."""

    where: str
    """A file name, or ``graph.precision``."""
    message: str
    severity: Literal["error", "warning"] = "error"
    """A bundle with warnings alone can be used."""


def verify(bundle: Bundle, progress: Callable[[int, int], None] | None = None) -> Iterator[Finding]:
    """Yield what differs between the folder and its manifest, then between the manifest and graphs.py.

    Args:
        progress: is called with (bytes hashed so far, bytes in all).
    """
    yield from _verify_files(bundle, progress)
    yield from _verify_graphs(bundle)


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
