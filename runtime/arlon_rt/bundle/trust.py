"""The record of the engines that this user built: an engine is code, and loads only if the record lists it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from arlon_rt.errors import EngineError, OutputError
from arlon_rt.files import state_folder


def record_path() -> Path:
    """The file of the record: the SHA-256 of each engine's plan, one a line."""
    return state_folder() / "built_engines"


def built_by_this_user(sha256: str) -> bool:
    """Whether the record lists the engine with this hash; `EngineError` if another user could have written it."""
    path = record_path()
    try:
        with path.open(encoding="ascii") as file:
            _check_owner(path, os.fstat(file.fileno()))
            return any(line.strip() == sha256 for line in file)
    except FileNotFoundError:
        return False
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f"the record of engines that you built, {path}, cannot be read: {error}") from error


def record(sha256: str) -> None:
    """Add an engine that this process has just built.

    Raises:
        EngineError: another user could have written the record.
        OutputError: it cannot be written.
    """
    path = record_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            _check_owner(path, os.fstat(handle))
            file.write(f"{sha256}\n")
    except OSError as error:
        raise OutputError(f"the record of engines that you built, {path}, cannot be written: {error}") from error


def _check_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise EngineError(
            f"the record of engines that you built, {path}, belongs to another user or can be written by others; "
            f"delete it and build again, or `chmod 600 {path}` if you know what it lists"
        )
