"""The video file: colours, tags, reproducibility, and what is left when writing is cut short."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import av
import numpy as np
import pytest

from arlon_rt.errors import Cancelled, OptionsError, OutputError
from arlon_rt.video import VideoWriter
from arlon_rt.video.writer import check_writable, unfinished_path
from stored_video import read_video

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0), "gray": (9, 9, 9)}


def moving_square(num_frames: int = 12, height: int = 32, width: int = 48) -> np.ndarray:
    frames = np.full((num_frames, height, width, 3), 40, np.uint8)
    for i in range(num_frames):
        frames[i, 8:20, 2 * i : 2 * i + 12] = (220, 60, 30)
    return frames


def write(path: Path, frames: np.ndarray, metadata: dict[str, str] | None = None) -> Path:
    with VideoWriter(path, fps=24, height=frames.shape[1], width=frames.shape[2], metadata=metadata) as writer:
        for start in range(0, len(frames), 5):
            writer.write(frames[start : start + 5])
    return path


def top_level_boxes(path: Path) -> list[str]:
    content, names, at = path.read_bytes(), [], 0
    while at < len(content):
        names.append(content[at + 4 : at + 8].decode())
        at += int.from_bytes(content[at : at + 4]) or len(content)
    return names


@pytest.mark.parametrize("colour", COLOURS)
def test_a_plain_colour_comes_back_within_a_few_levels(tmp_path: Path, colour: str) -> None:
    frames = np.broadcast_to(np.uint8(COLOURS[colour]), (3, 32, 32, 3))
    back = read_video(write(tmp_path / "plain.mp4", frames))
    assert np.abs(back.frames.astype(int) - frames).max() <= 4


def test_a_moving_square_comes_back_in_order(tmp_path: Path) -> None:
    frames = moving_square()
    back = read_video(write(tmp_path / "square.mp4", frames))
    assert (len(back.frames), back.fps) == (12, 24.0)
    distances = np.abs(back.frames[:, None].astype(float) - frames[None]).mean((2, 3, 4))
    assert distances.argmin(1).tolist() == list(range(12))


def test_the_stream_is_h264_420_and_tagged_bt709_limited(tmp_path: Path) -> None:
    with av.open(write(tmp_path / "tags.mp4", moving_square())) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.color_primaries, context.color_trc, context.colorspace, context.color_range) == (1, 1, 1, 1)


def test_the_metadata_is_the_callers_and_holds_no_time(tmp_path: Path) -> None:
    comment = json.dumps({"prompt": "a red “circle” · ü", "seed": 7})
    back = read_video(write(tmp_path / "m.mp4", moving_square(), {"title": "a red circle", "comment": comment}))
    assert back.metadata["title"] == "a red circle"
    assert json.loads(back.metadata["comment"])["prompt"] == "a red “circle” · ü"
    assert "creation_time" not in back.metadata


def test_the_same_frames_make_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, moving_square(), {"title": "t"}) for name in ("a.mp4", "b.mp4"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("fps", [8, 23.976, 60])
def test_the_frame_rate_is_kept(tmp_path: Path, fps: float) -> None:
    with VideoWriter(tmp_path / "rate.mp4", fps=fps, height=32, width=48) as writer:
        writer.write(moving_square())
    assert read_video(tmp_path / "rate.mp4").fps == pytest.approx(fps, abs=1e-4)


def test_odd_sizes_are_made_even_by_repeating_the_edge(tmp_path: Path) -> None:
    frames = moving_square(height=31, width=33)
    back = read_video(write(tmp_path / "odd.mp4", frames)).frames
    assert back.shape[1:3] == (32, 34)
    assert np.abs(back[:, -1].astype(int) - back[:, -2]).max() <= 8


def test_the_finished_file_is_an_ordinary_mp4_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = write(tmp_path / "whole.mp4", moving_square(num_frames=120))
    assert os.listdir(tmp_path) == ["whole.mp4"]
    assert top_level_boxes(path) == ["ftyp", "free", "mdat", "moov"]


def test_nothing_stands_under_the_final_name_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "grow.mp4"
    with VideoWriter(path, fps=24, height=32, width=48) as writer:
        writer.write(moving_square())
        assert not path.exists()
        assert unfinished_path(path).exists()


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, Cancelled])
def test_an_interrupt_leaves_a_file_that_plays(tmp_path: Path, interrupt: type[BaseException]) -> None:
    path = tmp_path / "cut.mp4"

    def make() -> None:
        with VideoWriter(path, fps=24, height=32, width=48) as writer:
            writer.write(moving_square(num_frames=7))
            raise interrupt

    with pytest.raises(interrupt):
        make()
    assert len(read_video(path).frames) == 7
    assert os.listdir(tmp_path) == ["cut.mp4"]


@pytest.mark.parametrize("error", [OptionsError, KeyboardInterrupt])
def test_stopping_before_the_first_frame_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def make() -> None:
        with VideoWriter(tmp_path / "none.mp4", fps=24, height=32, width=48):
            raise error

    with pytest.raises(error):
        make()
    assert os.listdir(tmp_path) == []


def test_an_error_after_some_frames_keeps_them_beside_the_untouched_name(tmp_path: Path) -> None:
    path = tmp_path / "old.mp4"
    path.write_bytes(b"what was there")

    def make() -> None:
        with VideoWriter(path, fps=24, height=32, width=48) as writer:
            writer.write(moving_square(num_frames=7))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        make()
    assert path.read_bytes() == b"what was there"
    assert len(read_video(unfinished_path(path)).frames) == 7


def run_python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_killed_process_leaves_a_part_that_plays(tmp_path: Path) -> None:
    path = tmp_path / "killed.mp4"
    done = run_python(
        """
        import os, signal, sys
        import numpy as np
        from arlon_rt.video.writer import VideoWriter
        writer = VideoWriter(sys.argv[1], fps=24, height=32, width=32)
        for i in range(240):
            writer.write(np.random.default_rng(i).integers(0, 255, (1, 32, 32, 3), dtype=np.uint8))
        os.kill(os.getpid(), signal.SIGKILL)
        """, str(path),
    )
    assert done.returncode == -signal.SIGKILL
    assert len(read_video(unfinished_path(path)).frames) >= 48


def test_a_full_disk_is_an_output_error(tmp_path: Path) -> None:
    done = run_python(
        """
        import resource, sys
        import numpy as np
        from arlon_rt.errors import OutputError
        from arlon_rt.video.writer import VideoWriter
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            with VideoWriter(sys.argv[1], fps=24, height=64, width=64) as writer:
                for i in range(200):
                    writer.write(np.random.default_rng(i).integers(0, 255, (1, 64, 64, 3), dtype=np.uint8))
        except OutputError as error:
            sys.exit(f"OutputError: {error}")
        """, str(tmp_path / "full.mp4"),
    )
    assert done.returncode == 1
    assert done.stderr.startswith("OutputError: output ")
    assert "cannot be written: File too large" in done.stderr
    assert not (tmp_path / "full.mp4").exists()


@pytest.mark.parametrize("name", ["full.mp4", "full.webm"])
@pytest.mark.parametrize("frames", [5, 200])
def test_a_disk_that_is_full_from_the_start_is_an_output_error_and_leaves_nothing(
    tmp_path: Path, name: str, frames: int
) -> None:
    """Not even the header can be written, which FFmpeg takes badly."""
    done = run_python(
        """
        import resource, sys
        import numpy as np
        from arlon_rt.errors import OutputError
        from arlon_rt.video.writer import VideoWriter
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
        try:
            with VideoWriter(sys.argv[1], fps=24, height=64, width=64) as writer:
                for i in range(int(sys.argv[2])):
                    writer.write(np.random.default_rng(i).integers(0, 255, (1, 64, 64, 3), dtype=np.uint8))
                if i < 100:
                    writer.end_segment()
        except OutputError as error:
            sys.exit(f"OutputError: {error}")
        """, str(tmp_path / name), str(frames),
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("OutputError: output ")
    assert "cannot be written: File too large" in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clip.avi", "must end in .mp4"),
        ("clip", "must end in .mp4"),
        ("gone/clip.mp4", "there is no folder"),
        ("folder.mp4", "is a folder"),
    ],
)
def test_an_unwritable_output_is_found_before_any_work(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(OutputError, match=message):
        check_writable(tmp_path / name)
    assert os.listdir(tmp_path) == ["folder.mp4"]


def test_checking_does_not_touch_an_existing_file(tmp_path: Path) -> None:
    path = tmp_path / "old.mp4"
    path.write_bytes(b"old")
    check_writable(path)
    assert (os.listdir(tmp_path), path.read_bytes()) == (["old.mp4"], b"old")


def test_frames_of_another_size_are_refused(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", fps=24, height=32, width=32)
    with pytest.raises(ValueError, match=r"frames are uint8 \(12, 32, 48, 3\)"):
        writer.write(moving_square())
    writer.close()
    assert os.listdir(tmp_path) == []


def test_a_file_that_is_no_video_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "no.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(OutputError, match="cannot be read"):
        read_video(tmp_path / "no.mp4")


# -- segments, and going on after a break ----------------------------------------------------------------------------

SEGMENTS = (30, 25, 25)


def write_segments(path: Path, frames: np.ndarray, *, resumed: int = 0, stop: int | None = None) -> None:
    """Write ``frames`` in `SEGMENTS`, from frame ``resumed`` on and, with an error, up to ``stop``."""
    at = 0
    with VideoWriter(path, fps=24, height=32, width=176, metadata={"title": "t"}, resumed=resumed) as writer:
        for length in SEGMENTS:
            part = frames[max(at, resumed) : min(at + length, stop or len(frames))]
            at += length
            if len(part):
                writer.write(part)
            if stop is not None and at > stop:
                raise RuntimeError
            if len(part):
                writer.end_segment()


@pytest.mark.parametrize(("resumed", "stop"), [(30, 30), (30, 41), (55, 55), (55, 79)])
def test_a_file_that_was_cut_short_goes_on_as_if_it_had_not_been(tmp_path: Path, resumed: int, stop: int) -> None:
    frames, path, whole = moving_square(80, width=176), tmp_path / "cut.mp4", tmp_path / "whole.mp4"
    write_segments(whole, frames)
    with pytest.raises(RuntimeError):
        write_segments(path, frames, stop=stop)
    assert len(read_video(unfinished_path(path)).frames) == stop
    write_segments(path, frames, resumed=resumed)
    assert path.read_bytes() == whole.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["cut.mp4", "whole.mp4"]
    assert np.array_equal(read_video(path).frames, read_video(whole).frames)
    assert len(read_video(path).frames) == 80


def test_a_finished_file_goes_on_too(tmp_path: Path) -> None:
    frames, path, whole = moving_square(80, width=176), tmp_path / "cut.mp4", tmp_path / "whole.mp4"
    write_segments(whole, frames)
    write_segments(path, frames[:30])
    write_segments(path, frames, resumed=30)
    assert path.read_bytes() == whole.read_bytes()


def test_a_file_with_too_few_frames_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    write_segments(path, moving_square(30, width=176))
    before = path.read_bytes()
    with pytest.raises(OutputError, match="holds 30 of the 55 frames"):
        write_segments(path, moving_square(80, width=176), resumed=55)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["cut.mp4"]
    with pytest.raises(OutputError, match="cannot be written"):
        write_segments(tmp_path / "none.mp4", moving_square(80, width=176), resumed=30)


def test_what_a_segment_looks_like_depends_on_its_frames_alone(tmp_path: Path) -> None:
    frames = moving_square(80, width=176)
    other = np.concatenate([255 - frames[:30], frames[30:]])
    for name, shown in (("a.mp4", frames), ("b.mp4", other)):
        write_segments(tmp_path / name, shown)
    a, b = (read_video(tmp_path / name).frames for name in ("a.mp4", "b.mp4"))
    assert np.array_equal(a[30:], b[30:])
    assert not np.array_equal(a[:30], b[:30])


def test_a_killed_process_leaves_every_segment_but_the_last_that_was_ended(tmp_path: Path) -> None:
    done = run_python("""
        import os, signal, sys
        import numpy as np
        from arlon_rt.video.writer import VideoWriter
        frames = np.random.default_rng(0).integers(0, 255, (25, 64, 64, 3), dtype=np.uint8)
        writer = VideoWriter(sys.argv[1], fps=24, height=64, width=64)
        for _ in range(3):
            writer.write(frames)
            writer.end_segment()
        writer.write(frames[:9])
        os.kill(os.getpid(), signal.SIGKILL)
    """, str(tmp_path / "killed.mp4"))
    assert done.returncode == -signal.SIGKILL
    assert len(read_video(unfinished_path(tmp_path / "killed.mp4")).frames) == 50
