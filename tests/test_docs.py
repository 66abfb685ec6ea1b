"""The documents lead somewhere: sections, links, paths and modules that they name exist, and the figures are true."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from import_graph import ROOT, project

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = (
    "runtime/arlon_rt", "export/arlon_export", "export/demo", "engines/arlon_engines", "benchmarks", "tests", "docs",
    ".ci",
)
FILES = [
    path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*"))
    if "__pycache__" not in path.parts
] + [path.name for path in ROOT.glob("*.*")]


def missing(document: Path, text: str) -> Iterator[str]:
    """What ``text`` leads to that does not exist."""
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, section = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if "://" not in link and not target.exists():
            yield f"link {link}"
        elif section and "://" not in link and section not in sections(target.read_text(encoding="utf-8")):
            yield f"section {link}"
    paths = re.findall(rf"(?<![\w/.-])((?:{'|'.join(map(re.escape, FOLDERS))})/[\w./*-]*[\w*])", text)
    paths += re.findall(r"`([\w./*-]+\.(?:py|md|toml))`", text)
    for path in paths:
        if not any(fnmatch(f"/{file}", f"*/{path.removeprefix('../')}") for file in FILES):
            yield f"path {path}"
    for module in re.findall(r"-m ((?:demo|gpu|arlon_\w+)(?:\.\w+)*)", text):
        if module not in project().files:
            yield f"module {module}"


def sections(text: str) -> set[str]:
    """The anchors of a document's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_everything_that_a_document_names_exists(document: Path) -> None:
    assert sorted(set(missing(document, document.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize("text", [
    "[gone](docs/gone.md)", "[gone](#gone)", "[gone](docs/library.md#gone)", "`gone.py`", "`generation/gone.py`",
    "see runtime/arlon_rt/gone", "python benchmarks/gone.py", "python -m demo.gone", "`networks/gone*.py`",
])
def test_what_is_gone_is_found(text: str) -> None:
    assert len(list(missing(ROOT / "README.md", text))) >= 1


@pytest.mark.parametrize("text", [
    "[here](docs/library.md)", "[here](#install-and-test)", "[there](https://example.org/gone.md)", "`graphs.py`",
    "`generation/job.py`", "python benchmarks/streaming.py", "python -m demo.score", "`networks/*.py`",
    "`-o story.mp4`",
])
def test_what_exists_is_not_missing(text: str) -> None:
    assert list(missing(ROOT / "README.md", text)) == []


# -- the specification -----------------------------------------------------------------------------------------------

REFERENCE = re.compile(r"docs/spec\.md((?:(?:,| and|)\s+\d+(?:\.\d+)?)+)")


def referring() -> list[Path]:
    """Files that may refer to the specification."""
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return [*found, *(path for path in DOCUMENTS if path.name != "spec.md")]


def referred(text: str) -> list[str]:
    """The sections of docs/spec.md that a text refers to."""
    return [number for numbers in REFERENCE.findall(text) for number in re.findall(r"\d+(?:\.\d+)?", numbers)]


def numbered_sections() -> set[str]:
    text = (ROOT / "docs" / "spec.md").read_text(encoding="utf-8")
    return set(re.findall(r"^##+ (\d+(?:\.\d+)?)\.? ", text, re.MULTILINE))


def test_every_reference_to_the_specification_names_a_section_of_it() -> None:
    text = {path: path.read_text(encoding="utf-8") for path in referring()}
    cited = {(path.name, number) for path in text for number in referred(text[path])}
    assert {(name, number) for name, number in cited if number not in numbered_sections()} == set()
    assert len({number for _, number in cited}) >= 8, "the references are not found"


def test_no_reference_leads_to_a_specification_that_a_clone_does_not_have() -> None:
    assert [path.name for path in referring() if re.search(r"\bspec [0-9]", path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(("text", "numbers"), [
    ("(docs/spec.md 5.6)", ["5.6"]), ("(docs/spec.md 4, 5)", ["4", "5"]), ("(docs/spec.md\n    12)", ["12"]),
    ("docs/spec.md 2, 5.6 and 7", ["2", "5.6", "7"]), ("docs/spec.md marks", []),
])
def test_references_are_read(text: str, numbers: list[str]) -> None:
    assert referred(text) == numbers
