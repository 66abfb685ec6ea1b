"""The command, run as a user runs it: what it makes, what it says, what it leaves behind when something is wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from arlon_rt.cli import main
from arlon_rt.config import VideoConfig
from arlon_rt.video.writer import unfinished_path
from cli_runs import refused, run
from stored_video import read_video
from tiny_bundle import baseline_model, write_tiny_bundle

ONE_THREAD = ["--threads", "1"]   # more only wait for each other on graphs this small
PROMPT = "a red circle moves right on a black background"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle like the published ones: no token model, prompts with scores, frames of several sizes."""
    model = baseline_model()
    model = dataclasses.replace(
        model, video=VideoConfig(height=32, width=32, max_height=256, max_width=256),
        text=dataclasses.replace(model.text, prompt_suffix=" aesthetic score: 6.5.", max_length=150),
        dit=dataclasses.replace(model.dit, model_max_length=150),
    )
    return write_tiny_bundle(tmp_path_factory.mktemp("scored"), model=model, precisions=["fp32"])


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def generate(bundle: Path, output: Path, *arguments: str, prompt: str | None = PROMPT) -> int:
    prompts = [] if prompt is None else [prompt]
    return main(["generate", *prompts, "-o", str(output), "--bundle", str(bundle), *ONE_THREAD, *arguments])


def test_a_prompt_becomes_a_video(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(bundle, tmp_path / "out.mp4", "--num-frames", "17") == 0
    video = read_video(tmp_path / "out.mp4")
    assert video.frames.shape == (17, 32, 32, 3)
    out, err = capsys.readouterr()
    assert out.startswith(f"{tmp_path / 'out.mp4'}: 17 frames, 0.71 s of video in ")
    assert "segment 1/1: reading the prompt " in err
    assert err.count("\n") == 2
    assert os.listdir(tmp_path) == ["out.mp4"]


def test_the_file_says_how_to_make_it_again(bundle: Path, tmp_path: Path) -> None:
    generate(bundle, tmp_path / "out.mp4", "--seed", "7", "--steps", "3", "--quiet")
    metadata = read_video(tmp_path / "out.mp4").metadata
    comment = json.loads(metadata["comment"])
    assert metadata["title"] == PROMPT
    assert comment["prompts"] == [{"seconds": 0.0, "prompt": PROMPT}]
    assert (comment["options"]["seed"], comment["options"]["num_inference_steps"]) == (7, 3)
    assert (len(comment["bundle"]), comment["precision"]) == (64, "fp32")


def test_the_same_seed_gives_the_same_file_and_seed_steps_and_prompt_change_it(bundle: Path, tmp_path: Path) -> None:
    def made(*arguments: str, prompt: str = PROMPT) -> tuple[bytes, bytes]:
        path = tmp_path / "out.mp4"
        assert generate(bundle, path, "--quiet", "--num-frames", "119", *arguments, prompt=prompt) == 0
        return path.read_bytes(), read_video(path).frames.tobytes()

    usual = made()
    assert all(made() == usual for _ in range(6))   # several, because a race or a stale register shows now and then
    others = made("--seed", "1"), made("--steps", "3"), made(prompt="a blue square")
    assert len({frames for _, frames in (usual, *others)}) == 4


def test_seconds_and_num_frames_say_the_same_length(bundle: Path, tmp_path: Path) -> None:
    for name, length in (("s", ["--seconds", "0.5"]), ("n", ["--num-frames", "12"])):
        generate(bundle, tmp_path / f"{name}.mp4", "--quiet", *length)
    assert (tmp_path / "s.mp4").read_bytes() == (tmp_path / "n.mp4").read_bytes()


def test_prompts_may_change_with_time_from_arguments_or_a_file(bundle: Path, tmp_path: Path) -> None:
    story = tmp_path / "story.json"
    story.write_text('[{"seconds": 0, "prompt": "a red circle"}, {"seconds": 2, "prompt": "a blue square"}]')
    length = ["--num-frames", "119", "--quiet"]
    generate(bundle, tmp_path / "file.mp4", "--prompts", str(story), *length, prompt=None)
    spoken = ["--prompt", "0:a red circle", "--prompt", "2:a blue square"]
    generate(bundle, tmp_path / "arguments.mp4", *spoken, *length, prompt=None)
    generate(bundle, tmp_path / "one.mp4", *length, prompt="a red circle")
    by_name = {name: read_video(tmp_path / f"{name}.mp4").frames for name in ("file", "arguments", "one")}
    assert (by_name["file"] == by_name["arguments"]).all()
    assert (by_name["file"][:60] == by_name["one"][:60]).mean() > 0.9
    assert (by_name["file"] != by_name["one"]).any()


def test_prompts_may_change_by_segment_as_open_sora_writes_it(bundle: Path, tmp_path: Path) -> None:
    output, length = tmp_path / "out.mp4", ["--num-frames", "119", "--quiet"]
    assert generate(bundle, output, *length, prompt="|0| a red circle |1| a blue square") == 0
    comment = json.loads(read_video(output).metadata["comment"])
    assert comment["prompts"] == [
        {"seconds": 0.0, "prompt": "a red circle"}, {"seconds": 68 / 24, "prompt": "a blue square"}
    ]


@pytest.mark.parametrize(("shape", "size"), [
    ([], (144, 256)), (["--aspect-ratio", "16:9"], (144, 256)), (["--aspect-ratio", "9:16"], (256, 144))
])
def test_a_resolution_may_have_a_name(scored: Path, tmp_path: Path, shape: list[str], size: tuple[int, int]) -> None:
    request = ["--num-frames", "1", "--quiet", "--resolution", "144p", *shape]
    assert generate(scored, tmp_path / "out.mp4", *request) == 0
    assert read_video(tmp_path / "out.mp4").frames.shape == (1, *size, 3)


def test_the_file_says_which_scores_were_asked_for(scored: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    assert generate(scored, output, "--quiet", "--motion-score", "20", "--camera-motion", "pan left") == 0
    options = json.loads(read_video(output).metadata["comment"])["options"]
    asked = [options[name] for name in ("aesthetic_score", "motion_score", "camera_motion")]
    assert asked == [None, 20, "pan left"]


def test_inspect_says_which_scores_a_model_knows(
    bundle: Path, scored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(bundle)]) == main(["inspect", str(scored)]) == 0
    out = capsys.readouterr().out
    assert "at most 60 tokens; trained without scores" in out
    assert 'at most 150 tokens; "aesthetic score: 6.5." appended' in out
    assert "Open-Sora v1.2 (no token model)" in out


def test_a_prompt_that_is_too_long_is_said(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(bundle, tmp_path / "out.mp4", "--num-frames", "119", prompt=40 * "a ") == 0
    said = "a …' is too long: of its 81 tokens the model reads 60; left out is 'a a"
    assert capsys.readouterr().err.count(said) == 1


def test_a_terminal_gets_bars_and_ends_with_the_result(bundle: Path, tmp_path: Path) -> None:
    screen, terminal = pty.openpty()
    command = [sys.executable, "-m", "arlon_rt.cli", "generate", PROMPT, "-o", "out.mp4", "--bundle", str(bundle)]
    with subprocess.Popen([*command, *ONE_THREAD], cwd=tmp_path, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):   # how Linux says that the other end of a terminal has closed
            while piece := os.read(screen, 65536):
                shown += piece
    os.close(screen)
    assert process.returncode == 0
    assert "segment 1/1: denoising" in shown.decode()
    assert "out.mp4: 17 frames" in shown.decode().splitlines()[-1]


def test_a_disk_that_fills_up_is_one_line_and_leaves_no_file_under_the_final_name(bundle: Path, tmp_path: Path) -> None:
    code = """
        import resource, sys
        from arlon_rt.cli import main
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        sys.exit(main(sys.argv[1:]))
    """
    output = tmp_path / "out.mp4"
    request = ["generate", PROMPT, "-o", str(output), "--bundle", str(bundle), "--seconds", "60", "--quiet"]
    done = run(code, *request, *ONE_THREAD)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "cannot be written: File too large; what was written of " in done.stderr
    assert not output.exists()


def test_overlapped_lanes_are_told_by_when_segments_are_done(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual, overlapped = tmp_path / "usual.mp4", tmp_path / "overlapped.mp4"
    assert generate(bundle, usual, "--num-frames", "119") == 0
    capsys.readouterr()
    assert generate(bundle, overlapped, "--num-frames", "119", "--overlap") == 0
    told = capsys.readouterr().err
    assert "segment 2/2: done" in told
    assert "in all: reading the prompt" in told
    assert overlapped.read_bytes() == usual.read_bytes()


def test_json_prints_events_and_a_summary(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(bundle, tmp_path / "out.mp4", "--json") == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [lines[0]["event"], lines[-1]["event"]] == ["started", "summary"]
    assert {"progress", "chunk_ready", "finished"} <= {line["event"] for line in lines}
    assert lines[-1]["file"] == str(tmp_path / "out.mp4")
    assert (lines[-1]["num_frames"], lines[-1]["stopped"], err) == (17, False, "")


def test_quiet_prints_nothing(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(bundle, tmp_path / "out.mp4", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_generating_uses_no_network_and_no_torch(bundle: Path, tmp_path: Path) -> None:
    code = """
        import sys
        def refuse(event, args):
            if event.startswith("socket."):
                raise RuntimeError(f"network: {event} {args}")
        sys.addaudithook(refuse)
        from arlon_rt.cli import main
        code = main(sys.argv[1:])
        print(*sorted({"torch", "transformers", "onnx", "diffusers"} & sys.modules.keys()), file=sys.stderr, end="")
        sys.exit(code)
    """
    command = ["generate", PROMPT, "-o", str(tmp_path / "out.mp4"), "--bundle", str(bundle), "--quiet", *ONE_THREAD]
    done = run(code, *command)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "prompt", "words"),
    [
        ([], "", ["prompt is ''"]),
        ([], None, ["there is no prompt"]),
        (["--prompt", "0:a red circle"], PROMPT, ["more than once"]),
        (["--prompt", "2:a red circle"], None, ["must start at 0"]),
        (["--prompts", "gone.json"], None, ["gone.json", "cannot be read"]),
        (["--steps", "0"], PROMPT, ["num_inference_steps is 0", "1"]),
        (["--steps", "many"], PROMPT, ["--steps", "many"]),
        (["--seconds", "0"], PROMPT, ["seconds is 0"]),
        (["--seconds", "nan"], PROMPT, ["seconds is nan"]),
        (["--seconds", "1", "--num-frames", "24"], PROMPT, ["not allowed with"]),
        (["--num-frames", "0"], PROMPT, ["num_frames is 0"]),
        (["--guidance-scale", "nan"], PROMPT, ["guidance_scale is nan"]),
        (["--top-p", "1.5"], PROMPT, ["top_p is 1.5"]),
        (["--threads", "0"], PROMPT, ["threads is 0"]),
        (["--fast"], PROMPT, ["--fast"]),
        ([], "|1| a red circle", ["starts at segment 1"]),
        ([], "|0| a red circle |1| a blue square", ["at segment 1 would never be shown"]),
        (["--prompt", "0:a red circle", "--prompt", "5:a blue square"], None, ["at 5 seconds would never be shown"]),
        (["--resolution", "4k"], PROMPT, ["resolution is '4k'", "144p, 240p"]),
        (["--resolution", "480p"], PROMPT, ["height is 480; it must be 16 to 32"]),
        (["--resolution", "480p", "--aspect-ratio", "2:1"], PROMPT, ["aspect_ratio is '2:1'"]),
        (["--resolution", "480p", "--width", "32"], PROMPT, ["size is given twice"]),
        (["--aspect-ratio", "1:1"], PROMPT, ["aspect_ratio is '1:1'", "--resolution"]),
        (["--motion-score", "4"], PROMPT, ["motion_score is 4.0", "without scores"]),
    ],
)
def test_a_wrong_argument_is_one_line_and_leaves_nothing(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], prompt: str | None,
    words: list[str],
) -> None:
    refused(capsys, generate(bundle, tmp_path / "out.mp4", *arguments, prompt=prompt), *words)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("output", ["gone/out.mp4", "out.avi", ".", f"{300 * 'long'}.mp4"])
def test_an_unwritable_output_is_one_line_before_any_work(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    refused(capsys, generate(bundle, tmp_path / output), "output")
    assert os.listdir(tmp_path) == []


def test_a_missing_bundle_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, generate(tmp_path / "gone", tmp_path / "out.mp4"), "gone", "does not exist")
    assert os.listdir(tmp_path) == []


def test_a_manifest_that_points_outside_its_folder_is_one_line(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(manifest.replace("onnx/dit.fp32.onnx", "../dit.fp32.onnx"))
    refused(capsys, generate(copy, copy.parent / "out.mp4"), "../dit.fp32.onnx")
    assert os.listdir(copy.parent) == ["copy"]


@pytest.mark.parametrize("keep_size", [False, True], ids=["shorter", "zeroed"])
@pytest.mark.parametrize("name", ["dit.fp32.onnx", "vae_decoder.fp32.onnx"])
def test_a_damaged_graph_is_one_line(
    copy: Path, capsys: pytest.CaptureFixture[str], name: str, keep_size: bool
) -> None:
    path = copy / "onnx" / name
    content = path.read_bytes()
    half = content[: len(content) // 2]
    path.write_bytes(half.ljust(len(content), b"\0") if keep_size else half)
    refused(capsys, generate(copy, copy.parent / "out.mp4", "--quiet"), name.partition(".")[0])
    assert os.listdir(copy.parent) == ["copy"]


def test_an_error_leaves_an_older_video_as_it_was(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = copy.parent / "out.mp4"
    output.write_bytes(b"older")
    (copy / "onnx" / "dit.fp32.onnx").unlink()
    refused(capsys, generate(copy, output, "--quiet"), "dit.fp32.onnx")
    assert output.read_bytes() == b"older"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_file_that_plays(bundle: Path, tmp_path: Path, signum: signal.Signals) -> None:
    output = tmp_path / "long.mp4"
    command = [sys.executable, "-m", "arlon_rt.cli", "generate", PROMPT, "-o", str(output), "--bundle", str(bundle)]
    command += ["--seconds", "3600", "--json", *ONE_THREAD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "chunk_ready" and event["index"] > 40:
                process.send_signal(signum)
                break
        rest = process.stdout.read()
        assert process.wait(timeout=30) == 128 + signum
    summary = json.loads(rest.splitlines()[-1])
    assert summary["stopped"]
    assert len(read_video(output).frames) == summary["num_frames"] > 40
    assert not unfinished_path(output).exists()
