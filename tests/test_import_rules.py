"""Who may import whom, read off the source and off running processes; every rule is shown to find a violation.

What the rooms of arlon_rt may import is stated once, in the tables of docs/architecture.md, and read from there.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from import_graph import ROOT, Tree, project

MAY_IMPORT = {
    "torch": {"arlon_export"}, "transformers": {"arlon_export"}, "diffusers": set(), "onnxscript": {"arlon_export"},
    "onnx": {"arlon_export", "arlon_calibration"}, "tensorrt": {"arlon_rt", "arlon_engines"},
    "tensorrt_rtx": {"arlon_rt", "arlon_engines"}, "polygraphy": {"arlon_engines"},
    "arlon_export": {"arlon_export"}, "arlon_engines": {"arlon_engines"}, "arlon_calibration": {"arlon_calibration"},
    "demo": set(), "gpu": set(),
}
"""Modules that only these of the packages that ship may import."""
SHIPPED = ("arlon_rt", "arlon_export", "arlon_engines", "arlon_calibration")
FEW_FILES = {
    "onnxruntime": ("backends.ort.library",), "tensorrt": ("backends.trt.library",),
    "tensorrt_rtx": ("backends.trt.library",), "cuda": ("backends.device", "backends.trt.cuda"),
    "av": ("video.track", "video.encoding", "video.footage"), "sentencepiece": ("networks.text",), "rich": ("cli",),
    "argparse": ("cli",), "filelock": ("files",), "platformdirs": ("files",),
}
"""Modules that only these files and rooms of arlon_rt may import."""
LIGHT = {"argparse", "filelock", "platformdirs"}
"""Those that may be imported with the file; the others are imported inside a function."""
NETWORKS = ("text", "ar", "vq", "dit", "vae")
"""Files of networks/ that know none of the others."""
ARITHMETIC = ("networks.captions", "networks.flow", "networks.noise", "networks.tables", "cli.resolutions")
"""Files of arlon_rt that know the ground floor alone."""
SHOWING = ("arlon_engines.commands", "arlon_engines.display")
"""Files of arlon_engines that write on the screen."""


def architecture() -> tuple[set[str], dict[str, set[str]]]:
    """The ground floor of arlon_rt, and each room with the rooms that it may import, as docs/architecture.md says."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[`([\w/.]+)`\]\([^)]+\) \| [^|\n]+ \|(?: ([^|\n]+) \|)?$", text, re.MULTILINE)
    ground = {room_name(path) for path, may in rows if not may}
    rooms = {room: set(ground) for room in ground}
    for path, may in rows:
        if may:
            named = {room_name(name) for name in re.findall(r"`([\w/.]+)`", may)}
            rooms[room_name(path)] = named | (ground if "the ground floor" in may else set())
    return ground, rooms


def room_name(path: str) -> str:
    return path.removesuffix(".py").strip("/").replace("/", ".")


GROUND_FLOOR, ROOMS = architecture()


def room_of(module: str) -> str:
    """The room of arlon_rt that a module is in."""
    inside = module.removeprefix("arlon_rt").removeprefix(".") or "__init__"
    return max((room for room in ROOMS if within(inside, room)), key=len, default=inside)


def within(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


def plug_ins() -> set[str]:
    """Modules whose commands the other packages add to ``arlon-rt``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {entry.partition(":")[0] for entry in project["entry-points"]["arlon_rt.commands"].values()}


PLUG_INS = plug_ins()
FOR_PLUG_INS = ("arlon_rt.cli.arguments", "arlon_rt.cli.display")

# -- the rules: each yields its violations ---------------------------------------------------------------------------


def rooms_import_what_the_architecture_says(tree: Tree) -> Iterator[str]:
    for edge in tree.edges():
        if within(edge.importer, "arlon_rt") and within(edge.defining, "arlon_rt"):
            room, other = room_of(edge.importer), room_of(edge.defining)
            if room != other and other not in ROOMS.get(room, ()):
                yield f"{edge.importer} imports {edge.defining}, and {room} may not import {other}"


def a_room_is_entered_by_its_door(tree: Tree) -> Iterator[str]:
    """Others import from the package, so that a file can move within its room."""
    for edge in tree.edges():
        room = room_of(edge.named)
        is_file = within(edge.named, f"arlon_rt.{room}") and edge.named != f"arlon_rt.{room}"
        if is_file and edge.named not in FOR_PLUG_INS and whole_room(room) != whole_room(room_of(edge.importer)):
            yield f"{edge.importer} imports from {edge.named}; arlon_rt.{room} hands on what others may use"


def whole_room(room: str) -> str:
    """``"backends.ort"`` is a room within ``"backends"``."""
    return room.partition(".")[0]


def the_command_is_imported_by_plug_ins_alone(tree: Tree) -> Iterator[str]:
    for edge in tree.edges():
        if within(edge.defining, "arlon_rt.cli") and not within(edge.importer, "arlon_rt"):
            if edge.importer not in PLUG_INS:
                yield f"{edge.importer} imports {edge.defining} and adds no command"
            elif edge.defining not in FOR_PLUG_INS:
                yield f"{edge.importer} imports {edge.defining}, and a command may import {', '.join(FOR_PLUG_INS)}"


def packages_import_what_they_may(tree: Tree) -> Iterator[str]:
    for module, found in tree.imports.items():
        package = module.partition(".")[0]
        for one in found:
            for name, allowed in MAY_IMPORT.items():
                if package in SHIPPED and one.reaches(name) and package not in allowed:
                    yield f"{module} imports {one.module}"


def imports_are_absolute(tree: Tree) -> Iterator[str]:
    for module, found in tree.imports.items():
        yield from (f"{module} imports .{one.module}" for one in found if one.level)


def each_library_has_its_files(tree: Tree) -> Iterator[str]:
    for module, found in tree.imports.items():
        for one in found if within(module, "arlon_rt") else ():
            for library, owners in FEW_FILES.items():
                if one.reaches(library):
                    if not any(within(module, f"arlon_rt.{owner}") for owner in owners):
                        yield f"{module} imports {library}, and only {', '.join(owners)} may"
                    if library not in LIGHT and not one.in_function and not one.type_checking:
                        yield f"{module} imports {library} when it is imported"


def networks_know_no_other_network(tree: Tree) -> Iterator[str]:
    for edge in tree.edges():
        names = {module.removeprefix("arlon_rt.networks.") for module in (edge.importer, edge.defining)}
        if names <= set(NETWORKS):
            yield f"{edge.importer} imports {edge.defining}"


def arithmetic_knows_the_ground_floor_alone(tree: Tree) -> Iterator[str]:
    for edge in tree.edges():
        importer, imported = (module.removeprefix("arlon_rt.") for module in (edge.importer, edge.defining))
        if importer in ARITHMETIC and imported not in {*ARITHMETIC, *GROUND_FLOOR}:
            yield f"{edge.importer} imports {edge.defining}"


def only_the_command_prints(tree: Tree) -> Iterator[str]:
    for module, source in tree.sources.items():
        silent = within(module, "arlon_rt") and not within(module, "arlon_rt.cli")
        if silent or within(module, "arlon_engines"):
            yield from (f"{module}, line {node.lineno}: print" for node in ast.walk(source)
                        if isinstance(node, ast.Name) and node.id == "print")


def the_builder_shows_in_two_files_and_opens_tensorrt_when_it_builds(tree: Tree) -> Iterator[str]:
    for module, found in tree.imports.items():
        for one in found if within(module, "arlon_engines") else ():
            if one.reaches("rich") and module not in SHOWING:
                yield f"{module} imports rich"
            if any(one.reaches(name) for name in ("tensorrt", "tensorrt_rtx", "polygraphy")):
                yield f"{module} imports {one.module}, and only flavour.py opens TensorRT, by its name"


Rule = Callable[[Tree], Iterator[str]]
RULES: list[Rule] = [
    rooms_import_what_the_architecture_says, a_room_is_entered_by_its_door, the_command_is_imported_by_plug_ins_alone,
    packages_import_what_they_may, imports_are_absolute, each_library_has_its_files, networks_know_no_other_network,
    arithmetic_knows_the_ground_floor_alone, only_the_command_prints,
    the_builder_shows_in_two_files_and_opens_tensorrt_when_it_builds,
]


@pytest.mark.parametrize("rule", RULES)
def test_the_project_keeps_the_rule(rule: Rule) -> None:
    assert list(rule(project())) == []


# -- each rule finds what is planted ---------------------------------------------------------------------------------

SKELETON = (
    *(f"arlon_rt/{room.replace('.', '/')}.py" for room in (*GROUND_FLOOR, "pipeline", "request", "conditioning")),
    *(f"arlon_rt/{room}/__init__.py" for room in (
        ".", "backends", "backends/ort", "backends/trt", "bundle", "cli", "generation", "memory", "networks", "video",
    )),
    "arlon_rt/recording.py", "arlon_rt/cli/main.py", "arlon_rt/cli/arguments.py", "arlon_rt/cli/display.py",
    "arlon_rt/bundle/bundle.py", *(f"arlon_rt/networks/{name}.py" for name in NETWORKS),
    "arlon_export/__init__.py", "arlon_engines/__init__.py", "demo/__init__.py", "gpu/__init__.py",
)
"""Empty files that a planted import can lead to."""


def planted(folder: Path, file: str, source: str) -> Tree:
    for name in SKELETON:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(source)
    return Tree(dict.fromkeys(("arlon_rt", "arlon_export", "arlon_engines", "demo", "gpu"), folder))


VIOLATIONS = {
    rooms_import_what_the_architecture_says: [
        *((f"arlon_rt/networks/{name}.py", "from arlon_rt.generation import Chunk") for name in NETWORKS),
        *(("arlon_rt/networks/open.py", f"from arlon_rt.{room} import X") for room in (
            "generation", "video", "cli", "backends.ort", "backends.trt", "request", "pipeline", "recording",
        )),
        ("arlon_rt/networks/open.py", "def open():\n    from arlon_rt.backends import ort"),
        *(("arlon_rt/bundle/manifest.py", f"from arlon_rt.{room} import X") for room in (
            "backends", "backends.ort", "networks", "generation", "memory", "video", "cli", "pipeline",
        )),
        *(("arlon_rt/memory/plan.py", f"from arlon_rt.{room} import X") for room in (
            "backends", "backends.trt", "networks", "generation", "video", "cli",
        )),
        *(("arlon_rt/video/sinks.py", f"from arlon_rt.{room} import X") for room in (
            "bundle", "backends", "networks", "generation", "options", "recording", "cli",
        )),
        *(("arlon_rt/generation/job.py", f"from arlon_rt.{room} import X") for room in (
            "cli", "video", "backends.ort", "backends.trt", "pipeline", "recording",
        )),
        *(("arlon_rt/backends/session.py", f"from arlon_rt.{room} import X") for room in ("networks", "cli")),
        *((f"arlon_rt/{name}.py", "from arlon_rt.bundle import Bundle") for name in sorted(GROUND_FLOOR)),
        *(("arlon_rt/graphs.py", f"import arlon_rt.{room}") for room in ("networks", "memory", "request", "pipeline")),
        *(("arlon_rt/pipeline.py", f"from arlon_rt.{room} import X") for room in ("cli", "recording", "backends.ort")),
        ("arlon_rt/recording.py", "from arlon_rt.cli.display import print_json"),
        ("arlon_rt/new_room.py", "from arlon_rt.errors import ArlonError"),
    ],
    a_room_is_entered_by_its_door: [
        ("arlon_rt/networks/open.py", "from arlon_rt.bundle.bundle import Bundle"),
        ("arlon_export/export.py", "def run():\n    import arlon_rt.bundle.bundle"),
    ],
    the_command_is_imported_by_plug_ins_alone: [
        ("arlon_engines/build.py", "from arlon_rt.cli.arguments import open_bundle"),
        ("demo/score.py", "from arlon_rt.cli import main"),
        ("gpu/report.py", "from arlon_rt.cli.display import print_json"),
        *((f"{module.replace('.', '/')}.py", "import arlon_rt.cli.main") for module in sorted(PLUG_INS)),
    ],
    packages_import_what_they_may: [
        ("arlon_rt/networks/dit.py", "def denoise():\n    import torch"),
        ("arlon_rt/bundle/bundle.py", "from arlon_export.export import export"),
        ("arlon_rt/bundle/bundle.py", "import onnx"),
        ("arlon_engines/gate.py", "import torch.nn"),
        ("arlon_engines/gate.py", "import arlon_export"),
        ("arlon_export/export.py", "import tensorrt"),
        ("arlon_export/export.py", "from demo import score"),
        ("arlon_export/part.py", "import diffusers"),
    ],
    imports_are_absolute: [("arlon_rt/networks/dit.py", "from . import flow")],
    each_library_has_its_files: [
        ("arlon_rt/networks/dit.py", "def run():\n    import onnxruntime"),
        ("arlon_rt/backends/ort/library.py", "import onnxruntime"),
        ("arlon_rt/video/writer.py", "def run():\n    import av"),
        ("arlon_rt/video/track.py", "import av"),
        ("arlon_rt/generation/job.py", "def run():\n    from rich import print"),
        ("arlon_rt/cli/display.py", "from rich.console import Console"),
        ("arlon_rt/recording.py", "import argparse"),
        ("arlon_rt/bundle/bundle.py", "import filelock"),
        ("arlon_rt/memory/plan.py", "from platformdirs import user_state_path"),
    ],
    networks_know_no_other_network: [
        (f"arlon_rt/networks/{name}.py", f"from arlon_rt.networks import {other}")
        for name, other in zip(NETWORKS, (*NETWORKS[1:], NETWORKS[0]), strict=True)
    ],
    arithmetic_knows_the_ground_floor_alone: [
        ("arlon_rt/networks/flow.py", "from arlon_rt.networks.dit import Denoiser"),
        ("arlon_rt/networks/noise.py", "from arlon_rt.backends import Array"),
        ("arlon_rt/cli/resolutions.py", "from arlon_rt.pipeline import Pipeline"),
    ],
    only_the_command_prints: [
        ("arlon_rt/generation/job.py", "print('done')"),
        ("arlon_engines/display.py", "show = print"),
    ],
    the_builder_shows_in_two_files_and_opens_tensorrt_when_it_builds: [
        ("arlon_engines/build.py", "from rich.console import Console"),
        ("arlon_engines/flavour.py", "import tensorrt_rtx"),
        ("arlon_engines/standard.py", "def build():\n    import polygraphy"),
    ],
}


@pytest.mark.parametrize(("file", "source"), [
    ("arlon_rt/cli/generate.py", "from arlon_rt.pipeline import Pipeline"),
    ("arlon_rt/networks/dit.py", "if TYPE_CHECKING:\n    from arlon_rt.generation import Chunk"),
    ("arlon_rt/backends/open.py", "from arlon_rt.backends.ort.session import OrtSession"),
    *((f"{plug_in.replace('.', '/')}.py", "import arlon_rt.cli.arguments") for plug_in in sorted(PLUG_INS)),
])
def test_what_is_allowed_violates_no_rule(tmp_path: Path, file: str, source: str) -> None:
    tree = planted(tmp_path, file, source)
    assert [found for rule in RULES for found in rule(tree)] == []


@pytest.mark.parametrize(
    ("rule", "file", "source"), [(rule, *case) for rule in RULES for case in VIOLATIONS[rule]]
)
def test_a_planted_violation_is_found(tmp_path: Path, rule: Rule, file: str, source: str) -> None:
    module = file.removesuffix(".py").replace("/", ".")
    assert [found for found in rule(planted(tmp_path, file, source)) if found.startswith(module)]


# -- what a running process loads ------------------------------------------------------------------------------------

HEAVY = {"torch", "transformers", "diffusers", "onnx", "onnxruntime", "tensorrt", "av", "sentencepiece", "rich"}


def loaded(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after ``code``."""
    code += "\nimport sys; print('\\nLOADED', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.rpartition("LOADED")[2].split()}


@pytest.mark.parametrize("module", ["pipeline", "video", "recording", "memory", "backends.session"])
def test_importing_the_runtime_loads_no_backend_and_no_codec(module: str) -> None:
    assert loaded(f"import arlon_rt.{module}") & HEAVY == set()


@pytest.mark.parametrize("code", [
    "import arlon_rt", "import arlon_rt.backends", "import arlon_rt.bundle", "import arlon_rt.cli",
    "from arlon_rt.cli import main; main(['--help'])", "from arlon_rt.cli import main; main(['--version'])",
])
def test_what_answers_at_once_loads_no_numpy(code: str) -> None:
    assert loaded(code) & {*HEAVY, "numpy", "arlon_export", "arlon_engines"} == set()


def test_the_build_command_is_read_without_numpy_and_any_backend() -> None:
    found = loaded("import arlon_engines.commands")
    assert found & {*HEAVY, "numpy", "tensorrt_rtx", "polygraphy", "arlon_export"} == {"rich"}
