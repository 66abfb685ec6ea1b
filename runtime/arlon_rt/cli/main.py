"""The command ``arlon-rt``: finds the subcommand, runs it, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 a check failed (verify, parity, doctor), 2 an error the message explains, 130 and 143 stopped by
Ctrl-C and SIGTERM. Results go to stdout; progress and errors to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NoReturn, Protocol

from arlon_rt.errors import ArlonError, MissingExtraError, OptionsError, RemovedOptionWarning

GROUP = "arlon_rt.commands"
"""Entry points through which the other packages add commands; they are loaded only when chosen."""
BUILT_IN = {
    "generate": ("arlon_rt.cli.generate:generate", "make a video from a prompt"),
    "options": ("arlon_rt.cli.options:options", "list the options of generate: values, defaults, meaning"),
    "inspect": ("arlon_rt.cli.bundle:inspect", "show what a bundle holds"),
    "verify": ("arlon_rt.cli.bundle:verify", "check a bundle's files, hashes and signatures"),
    "bench": ("arlon_rt.cli.bench:bench", "time a generation, network by network"),
    "doctor": ("arlon_rt.cli.doctor:doctor", "check this machine, and say what to install"),
}
PLUGGED_IN = {
    "build": "build TensorRT engines of a bundle (extra: tensorrt or tensorrt-rtx)",
    "export": "turn a checkpoint into a bundle (extra: export)",
    "parity": "compare the graphs that ship with recorded outputs (extra: export)",
}
"""The help of the other packages' commands, which are not loaded for it."""
DISTRIBUTION = "arlon-rt"


class Command(Protocol):
    """A subcommand; the other packages' entry points are objects of this shape."""

    @property
    def help(self) -> str: ...

    def configure(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


class Parser(argparse.ArgumentParser):
    """A parser that reports a wrong argument like every other error: one line, exit 2."""

    def error(self, message: str) -> NoReturn:
        raise OptionsError(f"{message}; see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``arlon-rt`` with ``argv`` (the process's own when None) and return its exit code."""
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except ArlonError as error:
        message = "; ".join([str(error), *getattr(error, "__notes__", [])])
        print(f"{DISTRIBUTION}: {' '.join(message.split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:   # whoever read our output has gone, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _dispatch(argv: list[str]) -> int:
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print(_help(), end="")
        return 0
    if name in ("-V", "--version"):
        from arlon_rt.version import installed_version

        print(f"{DISTRIBUTION} {installed_version()}")
        return 0
    try:
        command = _load(name)
        parser = Parser(prog=f"{DISTRIBUTION} {name}", description=command.help, allow_abbrev=False)
        command.configure(parser)
        try:
            args = parser.parse_args(argv[1:])
        except SystemExit as stop:   # --help
            return int(stop.code or 0)
        with _removed_options_printed():
            return command.run(args)
    except ModuleNotFoundError as error:
        _explain_missing(name, error)
        raise


@contextlib.contextmanager
def _removed_options_printed() -> Iterator[None]:
    """Print the warning about a removed option as one line, whatever ``python -W`` says."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", RemovedOptionWarning)
        show = warnings.showwarning

        def shown(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if issubclass(category, RemovedOptionWarning):
                print(f"{DISTRIBUTION}: {message}", file=sys.stderr)
            else:
                show(message, category, *rest, **more)

        warnings.showwarning = shown
        yield


def _load(name: str) -> Command:
    plugins = _plugins()
    entry = EntryPoint(name, BUILT_IN[name][0], GROUP) if name in BUILT_IN else plugins.get(name)
    if entry is None:
        what = "option" if name.startswith("-") else "command"
        raise OptionsError(f"there is no {what} {name!r}; the commands are {', '.join([*BUILT_IN, *plugins])}")
    command: Command = entry.load()
    return command


def _plugins() -> dict[str, EntryPoint]:
    return {e.name: e for e in sorted(entry_points(group=GROUP), key=lambda e: e.name) if e.name not in BUILT_IN}


def _explain_missing(name: str, error: ModuleNotFoundError) -> None:
    """Raise `MissingExtraError` about a module that is not installed, unless it is one of the project's own."""
    if error.name is None or error.name.startswith("arlon_"):
        return
    plugin = _plugins().get(name)
    extra = f"[{plugin.module.partition('.')[0].removeprefix('arlon_')}]" if plugin else ""
    command = f"pip install '{DISTRIBUTION}{extra}'"
    raise MissingExtraError(f"{name} needs {error.name}, which is not installed: {command}") from error


def _help() -> str:
    plugins = _plugins()
    width = max(map(len, [*BUILT_IN, *plugins]))
    commands = [f"  {name:<{width}}  {text}" for name, (_, text) in BUILT_IN.items()]
    commands += [f"  {name:<{width}}  {PLUGGED_IN.get(name, f'from {e.module}')}" for name, e in plugins.items()]
    lines = "\n".join(commands)
    return f"""\
usage: {DISTRIBUTION} COMMAND …

Text to long video with ARLON, without PyTorch.

commands:
{lines}

  {DISTRIBUTION} COMMAND --help   what a command takes
  {DISTRIBUTION} --version        the version

example:
  {DISTRIBUTION} generate "a red circle moves right on a black background" -o out.mp4
"""
