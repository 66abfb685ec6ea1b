"""The files in a bundle's folder: their names, and paths that never lead out of it."""

from __future__ import annotations

from pathlib import Path

from arlon_rt.bundle.manifest import check_name
from arlon_rt.errors import BundleError

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.model"
ENGINES = "engines"
"""The folder of engines that were built on this machine: a cache, which the manifest never lists."""


def contained(folder: Path, name: str) -> Path:
    """The path of the regular file ``name`` inside ``folder``.

    Raises:
        BundleError: the name is not plain and relative, a link leaves the folder, or there is no such file.
    """
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
