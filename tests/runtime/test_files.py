"""A user's folders, files replaced in one step, locks that no dead process holds, and hashes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from arlon_rt.files import READ_BYTES, cache_folder, file_sha256, locked, replacing, state_folder, write_atomically

FOLDERS = pytest.mark.parametrize(("variable", "default", "folder"), [
    ("XDG_CACHE_HOME", ".cache", cache_folder), ("XDG_STATE_HOME", ".local/state", state_folder),
])


@FOLDERS
@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has these folders")
@pytest.mark.parametrize("value", [None, "", "relative/folder", "~/folder"])
def test_a_folder_is_in_the_home_where_no_absolute_path_is_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, default: str, folder: object, value: str | None
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(variable, raising=False)
    if value is not None:
        monkeypatch.setenv(variable, value)
    assert folder() == tmp_path / default / "arlon-rt"  # type: ignore[operator]
    assert list(tmp_path.iterdir()) == []


@FOLDERS
def test_a_folder_is_where_an_absolute_path_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, default: str, folder: object
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "mine"))
    assert folder() == tmp_path / "mine" / "arlon-rt"  # type: ignore[operator]


def test_a_file_that_is_replaced_shows_the_old_content_until_the_new_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_atomically(tmp_path / "folder", b"new")
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(TypeError), replacing(tmp_path / "file", tmp_path / "part") as file:
        file.write("text")  # type: ignore[arg-type]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o644), (0o077, 0o600)])
def test_a_file_is_never_for_others_to_write_and_private_where_the_umask_says_so(
    tmp_path: Path, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", b"content")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


HOLD = """
    import os, sys, time
    from pathlib import Path
    from arlon_rt.files import locked
    with locked(Path(sys.argv[1]), lambda: None):
        child = os.fork() if sys.argv[2:] else 0
        if sys.argv[2:] and not child:
            sys.stdout.close()
            time.sleep(600)
        print(child, flush=True)
        sys.stdin.read()
"""


def refuse() -> None:
    raise BlockingIOError("the lock is held")


@pytest.mark.parametrize("forks", [False, True], ids=["alone", "with a child that lives on"])
def test_a_process_that_is_killed_holds_no_lock(tmp_path: Path, forks: bool) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-c", textwrap.dedent(HOLD), path, *["forks"] * forks]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        with pytest.raises(BlockingIOError, match="held"), locked(path, refuse):
            pass
        holder.kill()
        holder.wait()
    try:
        for _ in range(600):   # the child lets go of its copy when it first runs, which a busy machine delays
            with contextlib.suppress(BlockingIOError), locked(path, refuse):
                break
            time.sleep(0.1)
        else:
            raise AssertionError("the lock is still held, by a child of the process that was killed")
    finally:
        if child:
            os.kill(child, signal.SIGKILL)


def test_a_lock_is_waited_for_and_held_by_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        holder.stdout.readline()
        with locked(path, holder.stdin.close):   # the holder ends when it is told that it is waited for
            assert holder.wait() == 0
            code = textwrap.dedent(HOLD).replace("lambda: None", "sys.exit")
            another = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=False)
            assert (another.returncode, another.stdout, another.stderr) == (0, b"", b"")   # it did not come to print


@pytest.mark.parametrize("size", [0, 5, READ_BYTES, 2 * READ_BYTES + 1])
def test_a_file_is_hashed_from_any_byte_on_and_says_how_far_it_is(tmp_path: Path, size: int) -> None:
    content, steps = os.urandom(size), list[int]()
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file", on_progress=steps.append) == hashlib.sha256(content).hexdigest()
    assert steps == [*range(READ_BYTES, size, READ_BYTES), *([size] if size else [])]
    assert file_sha256(tmp_path / "file", start=3) == hashlib.sha256(content[3:]).hexdigest()
