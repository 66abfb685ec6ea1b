"""Which module of this project imports which, read off the source.

An edge leads to the module that defines what is imported: names that an ``__init__.py`` hands on are followed to their
origin, whether it imports them at once or declares them under TYPE_CHECKING and loads them at first use (PEP 562).
Imports inside functions count; TYPE_CHECKING ones of other files do not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "arlon_rt": ROOT / "runtime", "arlon_export": ROOT / "export", "arlon_engines": ROOT / "engines",
    "arlon_calibration": ROOT / "calibration", "demo": ROOT / "export", ".": ROOT / "benchmarks",
}
"""Every package and the folder it lies in; of benchmarks/ also the scripts."""


@dataclass(frozen=True)
class Import:
    """``import module``, or ``from module import name``."""

    module: str
    name: str | None
    alias: str | None
    level: int
    """Leading dots of a relative import."""
    in_function: bool
    type_checking: bool

    def reaches(self, package: str) -> bool:
        """Whether this imports ``package`` or something in it."""
        whole = f"{self.module}.{self.name}" if self.name else self.module
        return not self.level and f"{whole}.".startswith(f"{package}.")


def _imports(nodes: Iterable[ast.AST], *, in_function: bool, type_checking: bool) -> Iterator[Import]:
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, None, alias.asname, 0, in_function, type_checking)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield Import(node.module or "", alias.name, alias.asname, node.level, in_function, type_checking)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from _imports(node.body, in_function=in_function, type_checking=True)
            yield from _imports(node.orelse, in_function=in_function, type_checking=type_checking)
        else:
            inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from _imports(ast.iter_child_nodes(node), in_function=inside, type_checking=type_checking)


@dataclass(frozen=True)
class Edge:
    """One import of a module of the project by another."""

    importer: str
    defining: str
    """The module that defines what is imported; a package where the package itself is imported."""
    named: str
    """The module that the import statement names."""


class Tree:
    """The modules of some packages and their imports."""

    def __init__(self, packages: Mapping[str, Path]) -> None:
        self.files: dict[str, Path] = {}
        for package, folder in packages.items():
            for path in sorted((folder / package).rglob("*.py")):
                name = ".".join(path.relative_to(folder).with_suffix("").parts)
                self.files[name.removesuffix(".__init__")] = path
        self.sources = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in self.files.items()}
        self.imports = {
            module: list(_imports(source.body, in_function=False, type_checking=False))
            for module, source in self.sources.items()
        }
        self._packages = {module for module, path in self.files.items() if path.name == "__init__.py"}
        self._handed_on = {
            (package, found.alias or found.name): (found.module, found.name)
            for package in self._packages for found in self.imports[package]
            if found.name and not found.in_function and found.module != package
        }

    def edges(self) -> Iterator[Edge]:
        """Every import of a module of the tree by another."""
        for importer, found in self.imports.items():
            for one in found:
                if one.level or (one.type_checking and importer not in self._packages):
                    continue
                defining = self._defining(one.module, one.name)
                if defining and defining != importer:
                    yield Edge(importer, defining, one.module if one.module in self.files else defining)

    def graph(self) -> dict[str, set[str]]:
        """Each module and those that define what it imports."""
        graph: dict[str, set[str]] = {module: set() for module in self.files}
        for edge in self.edges():
            graph[edge.importer].add(edge.defining)
        return graph

    def _defining(self, module: str, name: str | None) -> str | None:
        """Where ``name`` of ``module`` is defined; ``None`` outside the tree."""
        followed = set()
        while name and (module, name) in self._handed_on and (module, name) not in followed:
            followed.add((module, name))
            module, name = self._handed_on[module, name]
        if name and f"{module}.{name}" in self.files:
            return f"{module}.{name}"
        return module if module in self.files else None


@cache
def project() -> Tree:
    """All packages of this repository."""
    return Tree(PACKAGES)


def circle(graph: Mapping[str, set[str]]) -> list[str] | None:
    """Modules that import each other in turn, the first again at the end; ``None`` where there is no circle."""
    try:
        TopologicalSorter({module: sorted(imported) for module, imported in graph.items()}).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return None
