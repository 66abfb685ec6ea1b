"""Where frames go: WebM, PNG frames, a pipe; and how well they are encoded."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from arlon_rt.cli import main
from arlon_rt.errors import OptionsError, OutputError
from arlon_rt.video import EFFORTS, Quality, VideoWriter, check_sink, open_sink
from arlon_rt.video.encoding import png
from arlon_rt.video.sinks import FrameFolder
from arlon_rt.video.writer import PipeWriter
from stored_video import read_video

PROMPT = "a red circle moves right"


def noisy(num_frames: int = 40, size: int = 64) -> np.ndarray:
    """Smooth noise that moves: something to spend bits on."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (num_frames, size // 8, size // 8, 3), dtype=np.uint8)
    return np.repeat(np.repeat(small, 8, axis=1), 8, axis=2)


def decoded(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_webm_holds_the_frames_and_is_the_same_each_time(tmp_path: Path) -> None:
    frames = noisy()
    for name in ("a.webm", "b.webm"):
        with VideoWriter(tmp_path / name, fps=24, height=64, width=64, metadata={"title": "t"}) as writer:
            writer.write(frames[:20])
            writer.end_segment()
            writer.write(frames[20:])
    back = read_video(tmp_path / "a.webm")
    assert np.abs(back.frames.astype(int) - frames).mean() < 6
    assert (len(back.frames), back.fps) == (40, 24)
    assert (tmp_path / "a.webm").read_bytes() == (tmp_path / "b.webm").read_bytes()
    with av.open(tmp_path / "a.webm") as container:
        assert container.streams.video[0].codec_context.name == "vp9"
        assert container.metadata["title"] == "t"


@pytest.mark.parametrize("shape", [(8, 8), (9, 13)])
def test_png_keeps_every_value(shape: tuple[int, int]) -> None:
    frame = np.random.default_rng(1).integers(0, 255, (*shape, 3), dtype=np.uint8)
    assert png(frame)[:4] == b"\x89PNG"
    assert np.array_equal(decoded(png(frame))[0], frame)


def test_a_folder_gets_a_file_a_frame(tmp_path: Path) -> None:
    frames = noisy(5)
    with open_sink(f"{tmp_path}/frames/", fps=24, height=64, width=64, metadata={}) as sink:
        sink.write(frames[:2])
        sink.end_segment()
        sink.write(frames[2:])
        assert sink.frames_written == 5
    found = sorted((tmp_path / "frames").iterdir())
    assert [p.name for p in found] == [f"{i:06d}.png" for i in range(5)]
    assert all(np.array_equal(decoded(p.read_bytes())[0], frame) for p, frame in zip(found, frames, strict=True))


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        FrameFolder(tmp_path / "file").write(noisy(1))
    for target, said in ((f"{tmp_path}/", "with files in it"), (f"{tmp_path}/file/", "it is a file"),
                         (f"{tmp_path}/none/frames/", "there is no")):
        with pytest.raises(OutputError, match=said):
            check_sink(target)
    (tmp_path / "empty").mkdir()
    check_sink(f"{tmp_path}/empty/")


def test_a_pipe_gets_a_fragment_with_each_segment() -> None:
    stream, frames, sizes = io.BytesIO(), noisy(60), []
    with PipeWriter(stream, fps=24, height=64, width=64) as writer:
        for i in range(3):
            writer.write(frames[20 * i : 20 * i + 20])
            writer.end_segment()
            sizes.append(len(stream.getvalue()))
    assert sizes[0] < sizes[1] < sizes[2]
    assert len(decoded(stream.getvalue()[: sizes[2]])) >= 40, "what has left plays"
    assert len(decoded(stream.getvalue())) == 60


class Gone(io.RawIOBase):
    """A pipe whose reader has gone."""

    def write(self, part: object) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self) -> None:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_reader_that_has_gone_is_an_output_error() -> None:
    def make() -> None:
        with PipeWriter(Gone(), fps=24, height=64, width=64) as writer:
            for _ in range(5):
                writer.write(noisy(30))
                writer.end_segment()

    with pytest.raises(OutputError, match="'-' cannot be written"):
        make()


def test_quality_and_effort_change_the_file(tmp_path: Path) -> None:
    sizes = {}
    for quality in (Quality(), Quality(crf=40), *(Quality(effort=e) for e in EFFORTS)):
        path = tmp_path / "out.mp4"
        with VideoWriter(path, fps=24, height=64, width=64, quality=quality) as writer:
            writer.write(noisy())
        sizes[quality] = path.stat().st_size
    assert sizes[Quality(crf=40)] < sizes[Quality()] == sizes[Quality(effort="usual")]
    assert len(set(sizes.values())) == 4


@pytest.mark.parametrize("wrong", [{"crf": -1}, {"crf": 52}, {"crf": 1.5}, {"effort": "great"}])
def test_a_quality_that_cannot_be_used_is_named(wrong: dict[str, object]) -> None:
    with pytest.raises(OptionsError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))!r}"):
        Quality(**wrong)


def command(folder: Path, output: str, *more: str) -> list[str]:
    return ["generate", PROMPT, "-o", output, "--bundle", str(folder), "--num-frames", "85", "--threads", "1", *more]


def test_the_command_writes_to_each_of_them(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("out.mp4", "out.webm", "frames/"):
        assert main(command(folder, f"{tmp_path}/{name}")) == 0
        assert "85 frames" in capsys.readouterr().out
    assert len(list((tmp_path / "frames").iterdir())) == 85
    assert len(read_video(tmp_path / "out.webm").frames) == 85
    piped = subprocess.run(
        [sys.executable, "-m", "arlon_rt.cli", *command(folder, "-")], capture_output=True, check=True
    )
    assert np.array_equal(decoded(piped.stdout), decoded((tmp_path / "out.mp4").read_bytes()))
    assert b"stdout: 85 frames" in piped.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["frames", "out.mp4", "out.webm"]


def test_a_reader_that_has_gone_is_one_line(folder: Path) -> None:
    generating = [sys.executable, "-m", "arlon_rt.cli", *command(folder, "-"), "--num-frames", "1000", "--quiet"]
    with subprocess.Popen(generating, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.close()
        told = run.stderr.read().decode()
        assert run.wait() == 2
    assert told.strip() == "arlon-rt: output '-' cannot be written: Broken pipe"


def test_a_pipe_and_json_lines_do_not_mix(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(folder, "-", "--json")) == 2
    assert "both are standard output" in capsys.readouterr().err


def test_only_an_mp4_can_go_on(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--resume", "-o", f"{tmp_path}/frames/"]) == 2
    assert "only an MP4 can go on" in capsys.readouterr().err
