"""Builds each engine in a process of its own: it frees TensorRT's memory, and if it is killed, other builds go on."""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing.connection import Connection

from arlon_engines.engine import Job, build_engine
from arlon_engines.errors import BuildError
from arlon_engines.events import Event, OnEvent
from arlon_rt.bundle import EngineEntry
from arlon_rt.errors import ArlonError

STOP_SECONDS = 10.0
"""How long a process may take to end before it is killed."""


def build_in_process(job: Job, on_event: OnEvent) -> EngineEntry:
    """Run `build_engine` in a process of its own.

    Raises:
        BuildError: the process was killed, for example when memory ran out, or could not build the engine.
        ArlonError: `build_engine` raised it.
    """
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(job, theirs), name=f"build {job.graph}", daemon=True)
    process.start()
    theirs.close()
    try:
        outcome = _outcome(ours, on_event)
        process.join(STOP_SECONDS)
    finally:
        _end(process)
        ours.close()
    if isinstance(outcome, ArlonError):
        raise outcome
    if outcome is None:
        raise BuildError(f"{job.graph}.{job.identity.precision}: {_death(process.exitcode)}")
    return outcome


def _outcome(ours: Connection, on_event: OnEvent) -> EngineEntry | ArlonError | None:
    """The last message of the process; ``None`` if it ends without a result."""
    while True:
        try:
            sent: Event | EngineEntry | ArlonError = ours.recv()
        except EOFError:
            return None
        if isinstance(sent, EngineEntry | ArlonError):
            return sent
        on_event(sent)


def _end(process: multiprocessing.process.BaseProcess) -> None:
    if process.is_alive():
        process.terminate()
        process.join(STOP_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        cause = "; the system does this when it is out of memory" if -code == signal.SIGKILL else ""
        return f"its process was ended by {name}{cause}; other engines are not affected"
    return f"its process ended with exit code {code} and no result; its output above says why"


def _run(job: Job, theirs: Connection) -> None:
    """Run the child process. It ignores Ctrl-C, because its parent ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    outcome: EngineEntry | ArlonError
    try:
        outcome = build_engine(job, theirs.send)
    except ArlonError as error:
        error.__traceback__ = None
        outcome = error
    theirs.send(outcome)
    theirs.close()
