"""``arlon-rt options``: what may be asked of a generation, as a table, as Markdown or as a JSON schema."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from arlon_rt.cli.arguments import open_bundle
from arlon_rt.options import OPTIONS, GenerateOptions, Option, json_schema, options_of

INTRODUCTION = """\
# Options

What may be asked of a generation: fields of `GenerateOptions` in the library, flags of `arlon-rt generate` and
`arlon-rt bench`. A bundle may have other defaults and narrower ranges: `arlon-rt options --bundle DIR` shows them, and
`arlon-rt options --json-schema --bundle DIR` prints them for programs. This page is what
`arlon-rt options --markdown` prints.
"""
COLUMNS = ("option", "flag", "values", "default", "meaning")
WIDTHS = (22, 20, 12, None)
"""Most characters of a line of a cell on the screen, which has no column for the option's name."""


class Options:
    """The command; see `arlon_rt.cli.main.Command`."""

    help = "List what may be asked of a generation: flags, values and defaults, as a bundle has them."

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--bundle", type=Path, metavar="DIR",
            help="whose ranges and defaults are shown (default: the demo model; with --markdown none)",
        )
        form = parser.add_mutually_exclusive_group()
        form.add_argument("--json-schema", action="store_true", help="print a JSON Schema, 2020-12 (default: off)")
        form.add_argument("--markdown", action="store_true", help="print docs/options.md (default: off)")

    def run(self, args: argparse.Namespace) -> int:
        if args.json_schema:
            print(json.dumps(json_schema(open_bundle(args)), ensure_ascii=False, indent=2))
        elif args.markdown:
            print(markdown(OPTIONS if args.bundle is None else options_of(open_bundle(args))), end="")
        else:
            print_table(options_of(open_bundle(args)))
        return 0


def rows(options: Mapping[str, Option]) -> Iterator[tuple[str, ...]]:
    """A row of `COLUMNS` for each option."""
    for name, option in options.items():
        yield name, ", ".join(option.flags), option.values_in_words(), option.default_in_words(), option.help


def markdown(options: Mapping[str, Option]) -> str:
    """The page docs/options.md."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| `{name}` | `{flags}` | {' | '.join(rest)} |" for name, flags, *rest in rows(options)]
    removed = [f"* `{name}` was removed and is ignored: {text}." for name, text in GenerateOptions.REMOVED.items()]
    return "\n".join([INTRODUCTION, *lines, "", *removed, ""])


def print_table(options: Mapping[str, Option]) -> None:
    """Print the options on the screen, in 120 columns where it is no terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False)
    for column, width in zip(COLUMNS[1:], WIDTHS, strict=True):
        table.add_column(column, max_width=width)
    for _, *cells in rows(options):
        table.add_row(*cells)
    Console(highlight=False, width=None if Console().is_terminal else 120).print(table)


options = Options()
