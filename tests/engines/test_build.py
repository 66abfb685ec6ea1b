"""The demo bundle becomes engines for two GPUs that are not here: compiled, never executed."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from multiprocessing import active_children
from pathlib import Path

import pytest

import arlon_engines
import arlon_rt
from arlon_engines.engine import write_engine
from arlon_engines.events import EngineProgress, Event, WaitingForBuild
from arlon_engines.lock import building_in
from arlon_engines.profiles import profiles_of
from arlon_rt.bundle import HEADER_BYTES, Bundle, demo_bundle_path, find_engine, find_entry, read_plan
from arlon_rt.errors import OutputError
from engine_builds import GPUS, SMALL, Engines, build_engines, change_graph

LAYERS = {   # graph: (attention, cache updates)
    "text_encoder": (2, 0), "ar_prefix": (4, 10), "ar_step": (5, 10), "vq_decoder": (0, 0), "vq_encoder": (0, 0),
    "caption": (0, 0), "semantic": (0, 0), "dit": (16, 0), "vae_decoder": (1, 0), "vae_encoder": (1, 0),
}
SOURCES = [str(Path(package.__path__[0]).parent) for package in (arlon_rt, arlon_engines)]


@pytest.mark.parametrize("gpu", GPUS)
def test_every_graph_of_the_demo_bundle_compiles(demo_engines: Engines, gpu: str) -> None:
    assert demo_engines.failed == {}
    counts = {graph: built.entry.layers for (graph, name), built in demo_engines.built.items() if name == gpu}
    found = {g: (c.get("ATTENTION_INPUT", 0), c.get("KV_CACHE_UPDATE", 0)) for g, c in counts.items()}
    assert found == LAYERS
    assert counts["ar_step"]["TOPK"] == counts["ar_step"]["CUMULATIVE"] == 1


def test_what_computes_in_float32_in_a_half_precision_set_is_counted(demo_engines: Engines) -> None:
    wider = {graph: dict(built.entry.wider) for (graph, gpu), built in demo_engines.built.items() if gpu == "sm89"}
    assert {graph: count for graph, count in wider.items() if count} == {
        "text_encoder": {"MATRIX_MULTIPLY": 2}, "dit": {"MATRIX_MULTIPLY": 8}, "vq_encoder": {"MATRIX_MULTIPLY": 1},
    }


def test_the_engines_lie_where_they_are_looked_for_and_hold_what_tensorrt_wrote(demo_engines: Engines) -> None:
    bundle = demo_engines.bundle
    for built in demo_engines.built.values():
        header = built.entry.header
        path = find_engine(bundle, header.graph, header.identity)
        assert path.stat().st_size == HEADER_BYTES + header.plan_bytes
        assert read_plan(path)[1:4] == b"trt"
        assert find_entry(bundle, path) == built.entry


def test_the_token_models_step_has_a_profile_for_one_token_and_one_for_many(demo_engines: Engines) -> None:
    step = demo_engines.built["ar_step", "sm120"].entry
    assert [(p.name, p.ranges["length"]) for p in step.profiles] == [
        ("any prefill", (1, 128, 256)), ("any decode", (1, 1, 1)),
    ]


def test_engines_of_an_installed_bundle_go_to_the_users_cache(demo_engines: Engines, user_folders: Path) -> None:
    assert demo_engines.store.folder == user_folders / "cache" / "arlon-rt" / "engines" / demo_engines.bundle.hash
    assert not (demo_bundle_path() / "engines").exists()


def test_progress_is_reported(copy: Path) -> None:
    seen: list[Event] = []
    build_engines(copy, "vq_decoder", on_event=seen.append)
    working = [event for event in seen if isinstance(event, EngineProgress)]
    assert working
    assert all(0 < event.done <= event.total for event in working)
    assert any(event.phase for event in working)


@pytest.mark.slow
def test_float32_graphs_compile_though_their_attention_has_no_kernel(copy: Path) -> None:
    engines = build_engines(copy, "text_encoder", "vae_decoder", precision="fp32")
    assert engines.failed == {}
    assert [built.entry.layers["ATTENTION_INPUT"] for built in engines.built.values()] == [2, 1]


def test_a_bundle_is_the_same_with_and_without_engines(copy: Path) -> None:
    before = Bundle.open(copy)
    build_engines(copy, "caption")
    assert Bundle.open(copy) == before
    assert (copy / "engines" / "index.json").is_file()
    assert before.verify() == []


def test_a_second_build_does_nothing(small: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (small / "engines").rglob("*.*") if path.name != ".lock"}
    engines = build_engines(small, *SMALL)
    assert (engines.kept, engines.built) == ([*SMALL], {})
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_one_changed_graph_rebuilds_one_engine(small: Path) -> None:
    change_graph(small, "caption", lambda model: setattr(model, "doc_string", "another file"))
    engines = build_engines(small, *SMALL)
    assert engines.kept == ["semantic"]
    assert [*engines.built] == [("caption", "sm89")]
    assert [e.header.graph for e in engines.store.index().engines] == ["semantic", "caption"]


@pytest.mark.slow
def test_a_process_that_is_killed_names_its_graph_and_leaves_the_others_done(copy: Path) -> None:
    def kill(event: Event) -> None:
        if isinstance(event, EngineProgress) and event.graph == "vq_decoder":
            for child in active_children():
                os.kill(child.pid or 0, signal.SIGKILL)

    engines = build_engines(copy, "vq_decoder", *SMALL, on_event=kill)
    assert list(engines.failed) == ["vq_decoder"]
    assert "vq_decoder.fp16: its process was ended by SIGKILL" in engines.failed["vq_decoder"]
    assert "out of memory" in engines.failed["vq_decoder"]
    assert [graph for graph, _ in engines.built] == [*SMALL]
    assert list(engines.store.folder.rglob(".vq_decoder*")) == []


@pytest.mark.slow
def test_an_interrupted_build_keeps_what_is_done_and_leaves_nothing_else(copy: Path) -> None:
    def interrupt(event: Event) -> None:
        if isinstance(event, EngineProgress) and event.graph == "semantic":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engines(copy, *SMALL, on_event=interrupt)
    assert active_children() == []
    assert sorted(p.name for p in (copy / "engines").rglob("*") if p.is_file()) == [
        ".lock", "caption.engine", "index.json",
    ]
    assert build_engines(copy, *SMALL).kept == ["caption"]


def test_a_second_build_waits_for_the_first_and_then_finds_it_done(small: Path) -> None:
    events: list[Event] = []
    code = """
        import sys
        from pathlib import Path
        from arlon_engines.lock import building_in
        with building_in(Path(sys.argv[1]), lambda: None):
            print("held", flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), small / "engines"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as first:
        assert first.stdout
        assert first.stdin
        assert first.stdout.readline() == "held\n"
        let_go = first.stdin.close
        engines = build_engines(
            small, *SMALL,
            on_event=lambda e: (events.append(e), let_go() if isinstance(e, WaitingForBuild) else None)[0],
        )
    assert [type(event) for event in events][:1] == [WaitingForBuild]
    assert engines.kept == [*SMALL]


@pytest.mark.slow
def test_a_full_disk_is_one_error_and_leaves_nothing_half_written(copy: Path) -> None:
    """The system's limit on the size of a file stands in for the disk's end; the engines have a megabyte."""
    code = """
        import sys
        from pathlib import Path
        from engine_builds import build_engines
        engines = build_engines(Path(sys.argv[1]), "caption", "semantic")
        print(engines.failed["caption"])
        print(sorted(engines.failed))
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*SOURCES, str(Path(__file__).parent.parent)])}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), copy], env=env, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
    )
    assert done.returncode == 0, done.stderr
    message, graphs = done.stdout.splitlines()[-2:]
    assert "cannot be written: File too large; no part of it was kept" in message
    assert graphs == "['caption', 'semantic']"
    assert [p for p in (copy / "engines").rglob("*") if p.is_file() and p.name != ".lock"] == []
    assert Bundle.open(copy).verify() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system takes rights that this user has not")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_really_full(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_disk))
    engines = build_engines(demo_bundle_path(), "caption")
    assert "cannot be written: No space left on device; no part of it was kept" in engines.failed["caption"]
    assert [p.name for p in small_disk.rglob("*") if p.is_file()] == [".lock"]


def test_an_engine_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "dit.engine"
    target.write_bytes(b"the old one")

    def write(file: object) -> object:
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left on device"):
        write_engine(target, write)  # type: ignore[arg-type]
    assert target.read_bytes() == b"the old one"
    assert os.listdir(tmp_path) == ["dit.engine"]


def test_a_folder_that_cannot_be_made_is_an_error_that_says_where_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="set XDG_CACHE_HOME"), building_in(tmp_path / "file" / "x", lambda: None):
        pass


def test_the_index_says_how_long_each_engine_took(demo_engines: Engines) -> None:
    index = json.loads((demo_engines.store.folder / "index.json").read_text(encoding="ascii"))
    assert len(index["engines"]) == 2 * len(LAYERS)
    assert all(0 < engine["build_seconds"] < 300 for engine in index["engines"])


def test_profiles_cover_what_the_graphs_take(demo_engines: Engines) -> None:
    model = demo_engines.bundle.model
    for spec in map(demo_engines.bundle.spec, demo_engines.bundle.manifest.graphs):
        (first, *_) = profiles_of(model, spec.name, ())
        assert {name: (low, high) for name, (low, _, high) in first.ranges.items()} == {
            axis.name: (axis.min, axis.max) for axis in spec.axes
        }
