"""No circle of imports anywhere, and planted circles are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from import_graph import Tree, circle, project


def test_no_modules_import_each_other_in_a_circle() -> None:
    found = circle(project().graph())
    assert found is None, " -> ".join(found or [])


def test_the_graph_holds_every_package_and_the_scripts() -> None:
    tops = {module.partition(".")[0] for module in project().files}
    assert {"arlon_rt", "arlon_export", "arlon_engines", "demo", "gpu", "streaming"} <= tops


def planted(folder: Path, files: dict[str, str]) -> Tree:
    """A tree of the package ``house``, whose rooms ``hall`` and ``attic`` hold these files."""
    for room in ("", "hall/", "attic/"):
        files = {f"{room}__init__.py": "", **files}
    for name, source in files.items():
        (folder / "house" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "house" / name).write_text(source)
    return Tree({"house": folder})


HANDED_ON_LAZILY = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from house.hall.lamp import Lamp as Lamp
__getattr__ = lazily(__name__, {"house.hall.lamp": ("Lamp",)})
"""
CIRCLES = {
    "at import": {
        "hall/lamp.py": "import house.attic.chest",
        "attic/chest.py": "from house.hall import lamp",
    },
    "through a lazy import": {
        "hall/lamp.py": "from house.attic.chest import Chest",
        "attic/chest.py": "class Chest:\n    def open(self):\n        from house.hall.lamp import Lamp",
    },
    "through a name that an __init__ hands on": {
        "hall/__init__.py": "from house.hall.lamp import Lamp",
        "hall/lamp.py": "from house.attic.chest import Chest",
        "attic/chest.py": "from house.hall import Lamp",
    },
    "through a name that an __init__ hands on under another name": {
        "hall/__init__.py": "from house.hall.lamp import Lamp as Light",
        "hall/lamp.py": "from house.attic.chest import Chest",
        "attic/chest.py": "from house.hall import Light",
    },
    "through two __init__ files": {
        "__init__.py": "from house.hall import Lamp",
        "hall/__init__.py": "from house.hall.lamp import Lamp",
        "hall/lamp.py": "from house.attic.chest import Chest",
        "attic/chest.py": "from house import Lamp",
    },
    "through a name that an __init__ hands on lazily": {
        "hall/__init__.py": HANDED_ON_LAZILY,
        "hall/lamp.py": "from house.attic.chest import Chest",
        "attic/chest.py": "from house.hall import Lamp",
    },
    "through a package that is imported as a whole": {
        "hall/__init__.py": "from house.hall.lamp import Lamp",
        "hall/lamp.py": "from house.attic.chest import Chest",
        "attic/chest.py": "import house.hall",
    },
    "in the else of TYPE_CHECKING": {
        "hall/lamp.py": "if TYPE_CHECKING:\n    pass\nelse:\n    import house.attic.chest",
        "attic/chest.py": "import house.hall.lamp",
    },
}


@pytest.mark.parametrize("files", CIRCLES.values(), ids=CIRCLES)
def test_a_planted_circle_is_found_and_named(tmp_path: Path, files: dict[str, str]) -> None:
    found = circle(planted(tmp_path, files).graph())
    assert found is not None
    assert {"house.hall.lamp", "house.attic.chest"} <= set(found)
    assert found[0] == found[-1]


NO_CIRCLES = {
    "TYPE_CHECKING": {
        "hall/lamp.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.attic.chest import Chest",
        "attic/chest.py": "from house.hall.lamp import Lamp",
    },
    "typing.TYPE_CHECKING": {
        "hall/lamp.py": "import typing\nif typing.TYPE_CHECKING:\n    from house.attic.chest import Chest",
        "attic/chest.py": "from house.hall.lamp import Lamp",
    },
    "two files of a room that use each other's rooms": {
        "hall/__init__.py": "from house.hall.lamp import Lamp\nfrom house.hall.door import Door",
        "hall/lamp.py": "from house.attic import Chest",
        "hall/door.py": "",
        "attic/__init__.py": "from house.attic.chest import Chest",
        "attic/chest.py": "from house.hall import Door",
    },
    "a package that names its own files": {
        "hall/__init__.py": "from house.hall import lamp",
        "hall/lamp.py": "",
        "attic/chest.py": "from house.hall import lamp",
    },
}


@pytest.mark.parametrize("files", NO_CIRCLES.values(), ids=NO_CIRCLES)
def test_what_only_looks_like_a_circle_is_none(tmp_path: Path, files: dict[str, str]) -> None:
    assert circle(planted(tmp_path, files).graph()) is None


def test_the_edges_lead_to_the_module_that_defines_a_name(tmp_path: Path) -> None:
    tree = planted(tmp_path, {
        "hall/__init__.py": HANDED_ON_LAZILY,
        "hall/lamp.py": "Lamp = 1",
        "attic/chest.py": "def open():\n    from house.hall import Lamp, lamp, unknown\n    import numpy",
    })
    assert tree.graph()["house.attic.chest"] == {"house.hall.lamp", "house.hall"}
