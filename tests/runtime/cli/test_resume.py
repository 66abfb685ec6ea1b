"""``arlon-rt generate --resume``: after Ctrl-C, an error or a kill the video goes on, to the same frames and bytes."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from arlon_rt.cli import main
from arlon_rt.cli.generate import Stop
from arlon_rt.errors import Cancelled
from arlon_rt.recording import snapshot_path
from arlon_rt.video import VideoWriter
from arlon_rt.video.writer import unfinished_path
from stored_video import read_video

PROMPT = "a red circle moves right"
FRAMES = 68 + 51 * 5


def request(folder: Path, output: Path, *more: str, frames: int = FRAMES) -> list[str]:
    size = ["--num-frames", str(frames), "--seed", "3", "--threads", "1"]
    return ["generate", PROMPT, "-o", str(output), "--bundle", str(folder), *size, *more]


def resume(folder: Path, output: Path, *more: str) -> list[str]:
    return ["generate", "--resume", "-o", str(output), "--bundle", str(folder), *more]


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted video."""
    path = tmp_path_factory.mktemp("whole") / "whole.mp4"
    assert main([*request(folder, path), "--quiet"]) == 0
    return path


def stop_at(monkeypatch: pytest.MonkeyPatch, frames: int, error: BaseException) -> None:
    """Let the writer raise ``error`` once it was given so many frames."""
    usual = VideoWriter.write

    def write(self: VideoWriter, given: np.ndarray) -> None:
        if self.frames_written >= frames:
            raise error
        usual(self, given)

    monkeypatch.setattr(VideoWriter, "write", write)


@pytest.mark.parametrize("stopped", [68, 85, 119, 170, 306])
def test_after_ctrl_c_it_goes_on_to_the_same_bytes(
    folder: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stopped: int
) -> None:
    path = tmp_path / "out's.mp4"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, stopped, Cancelled())
        main(request(folder, path))
    told = capsys.readouterr().out.splitlines()
    assert f"stopped at frame {stopped} of {FRAMES}" in told[0]
    assert told[1] == "go on with: " + shlex.join(["arlon-rt", *resume(folder, path)])
    assert len(read_video(path).frames) == stopped
    assert main(shlex.split(told[1].partition(": arlon-rt ")[2])) == 0
    assert f"{FRAMES} frames" in capsys.readouterr().out
    assert path.read_bytes() == whole.read_bytes()
    assert os.listdir(tmp_path) == [path.name]


def test_after_an_error_it_says_how_to_go_on(
    folder: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.mp4"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 119, OSError(28, "No space left on device"))
        with pytest.raises(OSError, match="No space"):
            main(request(folder, path))
    assert len(read_video(unfinished_path(path)).frames) == 119
    assert main(resume(folder, path)) == 0
    assert path.read_bytes() == whole.read_bytes()
    assert os.listdir(tmp_path) == ["out.mp4"]


def test_stopped_twice_it_still_goes_on(folder: Path, whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    for command, stopped in ((request(folder, path), 100), (resume(folder, path), 250)):
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, stopped, Cancelled())
            main(command)
    assert main(resume(folder, path)) == 0
    assert path.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_killed_at_random_moments_it_goes_on_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """Killed 20 times or more after some events: in every network, and while it copies what an earlier run made."""
    path, whole, frames = tmp_path / "out.mp4", tmp_path / "whole.mp4", 68 + 51 * 90
    assert main([*request(folder, whole, frames=frames), "--quiet"]) == 0
    expected = read_video(whole).frames
    command, killed, resumed, seen = request(folder, path, frames=frames), 0, 0, set[str]()
    while killed < 20 or (killed < 100 and not {"ar", "dit", "vae", "frames_written"} <= seen):
        killed += 1
        process = [sys.executable, "-m", "arlon_rt.cli", *command, "--json"]
        with subprocess.Popen(process, stdout=subprocess.PIPE) as run:
            assert run.stdout is not None
            for _ in range(random.randrange(1, 250)):
                line = run.stdout.readline()
            event = json.loads(line)
            seen.add(event.get("network", event["event"]))
            run.send_signal(signal.SIGKILL)
        assert run.returncode == -signal.SIGKILL
        if not snapshot_path(str(path)).exists():
            continue
        shown = read_video(unfinished_path(path)).frames   # what is there plays, and is the beginning of the video
        assert np.array_equal(shown, expected[: len(shown)])
        command, resumed = resume(folder, path), resumed + 1
    assert resumed >= 12
    assert {"ar", "dit", "vae", "frames_written"} <= seen
    assert main(command) == 0
    assert path.read_bytes() == whole.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["out.mp4", "whole.mp4"]


def test_a_full_disk_keeps_what_is_needed_to_go_on(folder: Path, whole: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={whole.stat().st_size // 2 + 2 * 60_000}", "none", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        path = disk / "out.mp4"
        assert main(request(folder, path)) == 2
        assert snapshot_path(str(path)).is_file()
        kept = tmp_path / "kept"
        shutil.copytree(disk, kept)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert main(resume(folder, kept / "out.mp4")) == 0
    assert (kept / "out.mp4").read_bytes() == whole.read_bytes()


def test_a_preview_is_written_and_goes_on_too(
    folder: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, draft, usual = (tmp_path / name for name in ("out.mp4", "draft.mp4", "usual.mp4"))
    assert main(request(folder, path, "--preview", str(usual))) == 0
    path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 170, Cancelled())
        main(request(folder, path, "--preview", str(draft)))
    told = capsys.readouterr().out.splitlines()[-1]
    assert main(shlex.split(told.partition(": arlon-rt ")[2])) == 0
    assert path.read_bytes() == whole.read_bytes()
    assert draft.read_bytes() == usual.read_bytes()
    assert not np.array_equal(read_video(draft).frames, read_video(path).frames)
    assert sorted(os.listdir(tmp_path)) == ["draft.mp4", "out.mp4", "usual.mp4"]


def test_a_preview_needs_a_file_of_its_own(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.mp4"
    for name in (str(path), str(tmp_path / "none" / "draft.mp4")):
        assert main(request(folder, path, "--preview", name)) == 2
    assert "as is the output or a pipe; name another file" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_json_says_how_to_go_on(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.mp4"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 119, Cancelled())
        main(request(folder, path, "--json"))
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["stopped"]
    assert summary["resume"] == shlex.join(["arlon-rt", *resume(folder, path)])
    assert main(resume(folder, path, "--json")) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["event"] == "started"
    assert lines[0]["first_frame"] == 119
    assert lines[-1]["resume"] is None
    assert lines[-1]["num_frames"] == FRAMES
    assert set(lines[-1]["network_seconds"]) == {"text", "ar", "vq", "dit", "vae"}
    assert lines[-1]["peak_memory_bytes"] > 1 << 20
    finished = lines[-2]
    assert finished["event"] == "finished"
    assert finished["real_time_factor"] == pytest.approx((FRAMES - 119) / 24 / finished["wall_seconds"])


@pytest.fixture
def stopped(folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "out.mp4"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 119, Cancelled())
        main(request(folder, path))
    return path


def test_the_same_request_is_not_begun_anew_by_accident(
    folder: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stopped.read_bytes()
    capsys.readouterr()
    assert main(request(folder, stopped)) == 2
    told = capsys.readouterr().err
    assert "this very video was begun before and stopped; go on with: arlon-rt generate --resume -o" in told
    assert stopped.read_bytes() == before
    snapshot_path(str(stopped)).unlink()
    assert main(request(folder, stopped)) == 0


def test_another_request_takes_the_name(folder: Path, stopped: Path) -> None:
    assert main(request(folder, stopped, "--steps", "1")) == 0
    assert not snapshot_path(str(stopped)).exists()


@pytest.mark.parametrize(("more", "said"), [
    (["--steps", "3"], "num_inference_steps cannot change on --resume"),
    (["--prompt", "0:blue"], "prompt cannot change on --resume"),
    (["--seconds", "3"], "seconds cannot change"),
    (["--threads", "2"], "threads cannot change"),
])
def test_nothing_may_change_on_resume(
    folder: Path, stopped: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    capsys.readouterr()
    assert main(resume(folder, stopped, *more)) == 2
    assert said in capsys.readouterr().err
    assert snapshot_path(str(stopped)).exists()


def test_without_a_video_to_go_on_with_it_says_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(resume(folder, tmp_path / "none.mp4")) == 2
    assert "so nothing to go on from: a video is begun with a prompt" in capsys.readouterr().err


def test_a_video_whose_file_is_gone_is_one_line(
    folder: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped.unlink()
    capsys.readouterr()
    assert main(resume(folder, stopped)) == 2
    assert "out.mp4" in capsys.readouterr().err
    assert snapshot_path(str(stopped)).exists()


def test_a_signal_stops_before_the_model_is_asked_again() -> None:
    with Stop() as stop:
        stop.check()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Cancelled):
            stop.check()
