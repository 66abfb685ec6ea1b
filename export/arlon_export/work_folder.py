"""The work folder of an export: it keeps finished networks for a later run, and checks that the disk has room."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from arlon_export.checkpoints.network import Network
from arlon_rt.bundle import Bundle
from arlon_rt.errors import ArlonError, BundleError, OutputError
from arlon_rt.files import locked
from arlon_rt.version import installed_version

ORIGIN = "made_from"
"""Entry of a finished network's provenance; `origin` says what it holds."""
GRAPH_BYTES = 8 << 20
"""Upper bound on an .onnx file without its weights; the published transformer's has 2 MB."""


class WorkFolder:
    """``.NAME.partial`` beside the bundle ``NAME``: one bundle a network, finished once it says its `ORIGIN`."""

    def __init__(self, output: Path) -> None:
        self.path = output.with_name(f".{output.name}.partial")

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Create and lock the folder. When the block fails, only finished networks stay; without any, the folder goes.

        Raises:
            OutputError: another export uses the folder.
        """
        self.path.mkdir(exist_ok=True)
        with locked(self.path / "lock", self._refuse):
            self._tidy()
            try:
                yield
            except ArlonError as error:
                if self._tidy():
                    error.add_note(f"finished networks are kept in {self.path}; the same command exports the others")
                raise
            except BaseException:
                self._tidy()
                raise
            finally:
                if not self._finished():
                    shutil.rmtree(self.path)

    def finished(self, network: str, origin: Mapping[str, Any]) -> Bundle | None:
        """The bundle of a network that an earlier run finished from the same origin; ``None`` if there is none."""
        bundle = self._complete(network)
        same = bundle is not None and bundle.manifest.provenance[ORIGIN] == json.loads(json.dumps(origin))
        return bundle if same else None

    def discard(self) -> None:
        """Remove every bundle in the folder."""
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)

    def fresh(self, name: str) -> Path:
        """A new, empty bundle folder; an existing one of that name is removed."""
        folder = self.path / name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "onnx").mkdir(parents=True)
        return folder

    def _refuse(self) -> None:
        raise OutputError(f"another export is at work in {self.path}; wait, or choose another name")

    def _tidy(self) -> bool:
        """Remove unfinished networks; return whether a finished one is left."""
        kept = self._finished()
        for path in self.path.iterdir():
            if path.is_dir() and path not in kept:
                shutil.rmtree(path)
        return bool(kept)

    def _finished(self) -> list[Path]:
        return [path for path in self.path.iterdir() if path.is_dir() and self._complete(path.name)]

    def _complete(self, network: str) -> Bundle | None:
        try:
            bundle = Bundle.open(self.path / network)
            for name in bundle.manifest.files:
                bundle.file(name)
        except BundleError:
            return None
        return bundle if ORIGIN in bundle.manifest.provenance else None


def origin(network: Network, tokenizer: Path | None, **settings: Any) -> dict[str, Any]:
    """What an export of ``network`` depends on: files by size and time, tensors in memory by their hash, settings."""
    files = {stored.source for stored in network.tensors.values() if stored.source}
    if tokenizer:
        files.add(tokenizer)
    digest = hashlib.sha256()
    for name, stored in network.tensors.items():
        if stored.source is None:
            digest.update(name.encode() + stored.load().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {
        "files": {str(file.resolve()): _stamp(file) for file in sorted(files)}, "in_memory": digest.hexdigest(),
        "versions": [installed_version(name) for name in ("arlon-rt", "torch", "onnxscript")], **settings,
    }


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def largest_size(network: Network, graphs: int, precisions: Sequence[str]) -> int:
    """Upper bound on the disk space that exporting ``network`` takes, in bytes.

    A weight whose file holds it in 16 bits is stored once. Only the values of an fp32 weight tell whether all sets can
    share it, so each set is counted.
    """
    all_sets = sum(4 if precision == "fp32" else 2 for precision in precisions)
    weights = sum(
        math.prod(stored.shape) * (2 if stored.dtype.itemsize == 2 else all_sets) for stored in network.tensors.values()
    )
    return weights + graphs * len(precisions) * GRAPH_BYTES


def free_bytes(folder: Path) -> int:
    """Free space on the disk of ``folder``, in bytes."""
    return shutil.disk_usage(folder).free


def require_room(sizes: Iterable[int], folder: Path, free: int) -> None:
    """Raise `OutputError` if files of these ``sizes`` need more than ``free`` bytes."""
    needed = sum(sizes)
    if needed > free:
        raise OutputError(
            f"the export needs up to {needed / 1e9:.2f} GB in {folder}, {free / 1e9:.2f} GB are free; make room, "
            "choose another disk with --output, or export fewer graphs (--only) or precision sets (--precision)"
        )


@contextlib.contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Turn the system's error on a full disk into an `OutputError` that names the disk and the way out."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OutputError(
            f"the disk of {folder} is full ({free_bytes(folder) / 1e9:.2f} GB free); make room and run the same "
            "command again"
        ) from error
