"""The command `arlon-rt`."""

from arlon_rt.cli.main import main
