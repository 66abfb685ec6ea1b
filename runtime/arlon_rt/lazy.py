"""Names that a package hands on and loads at their first use (PEP 562), so that importing the package stays cheap."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazily(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """The package's ``__all__``, ``__getattr__`` and ``__dir__``; ``homes`` says where names come from.

    The package declares the same names to mypy under TYPE_CHECKING, and calls this in the ``else``: a ``__getattr__``
    that mypy sees would make every unknown name an Any.
    """
    home_of = {name: module for module, names in homes.items() for name in names}
    exported = sorted(home_of)

    def load(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(home_of[name]), name)

    return exported, load, lambda: exported
