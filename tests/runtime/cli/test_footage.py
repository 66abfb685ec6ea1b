"""``arlon-rt generate`` with frames to start from: a clip to extend, an image, references, a clip to repaint."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from arlon_rt import GenerateOptions, Pipeline, read_clip, read_image
from arlon_rt.cli import main
from arlon_rt.errors import Cancelled
from arlon_rt.video import VideoWriter
from arlon_rt.video.encoding import png
from arlon_rt.video.sinks import FrameFolder
from stored_video import read_video

PROMPT, SIZE = "a red circle moves right", {"height": 32, "width": 32}
THERE = 90


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of the model's own size and rate."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    frames = np.zeros((THERE, 32, 32, 3), np.uint8)
    for i in range(THERE):
        frames[i, 8:20, i % 20 : i % 20 + 12] = 40 + 2 * i
    with VideoWriter(path, fps=24, **SIZE) as writer:
        writer.write(frames)
    return path


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image that is wider than the model's."""
    path = tmp_path_factory.mktemp("image") / "first.png"
    path.write_bytes(png(np.tile(np.arange(0, 240, 5, np.uint8)[None, :, None], (32, 1, 3))))
    return path


def made(folder: Path, output: Path, *more: str, frames: int | None = 102) -> np.ndarray:
    """The frames of a run, lossless."""
    length = [] if frames is None else ["--num-frames", str(frames)]
    target = f"{output}/"
    arguments = ["generate", PROMPT, "-o", target, "--bundle", str(folder), "--threads", "1", *length, *more]
    assert main(arguments) == 0
    return np.concatenate([read_image(path, **SIZE).frames for path in sorted(output.iterdir())])


def streamed(folder: Path, **more: object) -> np.ndarray:
    options = GenerateOptions(num_frames=more.pop("num_frames", 102))
    with Pipeline.open(folder, threads=1) as pipeline:
        if (repainted := more.pop("tokens_of", None)) is not None:
            more["tokens"] = pipeline.tokens_of(repainted)
        return np.concatenate([c.frames for c in pipeline.stream(PROMPT, options, **more)])


def test_a_clip_is_extended_by_what_comes_after_it(
    folder: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = read_clip(clip, **SIZE, fps=24, most_frames=68).frames
    frames = made(folder, tmp_path / "out", "--extend", str(clip))
    assert np.array_equal(frames, streamed(folder, after=last))
    assert f"extend {clip}: 68 frames; the last 68 of 90 frames" in capsys.readouterr().err


def test_a_video_begins_with_an_image(
    folder: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = made(folder, tmp_path / "out", "--image", str(image))
    assert np.array_equal(frames, streamed(folder, after=read_image(image, **SIZE).frames))
    assert f"image {image}: an image; " in capsys.readouterr().err


def test_references_go_where_the_mask_strategy_says(folder: Path, clip: Path, image: Path, tmp_path: Path) -> None:
    strategy = "0,1;1,0,0,10,5,0.5"
    named = ["--reference", str(clip), "--reference", str(image), "--mask-strategy", strategy]
    frames = made(folder, tmp_path / "out", *named)
    references = [read_clip(clip, **SIZE, fps=24, most_frames=68, end=False).frames, read_image(image, **SIZE).frames]
    assert np.array_equal(frames, streamed(folder, references=references, mask_strategy=strategy))


@pytest.mark.parametrize(("asked", "length"), [(None, 85), (40, 40)])
def test_a_clip_is_repainted_in_its_own_length_or_the_one_asked_for(
    folder: Path, clip: Path, tmp_path: Path, asked: int | None, length: int
) -> None:
    frames = made(folder, tmp_path / "out", "--repaint", str(clip), frames=asked)
    assert len(frames) == length
    first = read_clip(clip, **SIZE, fps=24, most_frames=85, end=False).frames
    assert np.array_equal(frames, streamed(folder, num_frames=length, tokens_of=first))


@pytest.mark.parametrize("overlap", [[], ["--overlap"]])
@pytest.mark.parametrize("stopped", [0, 51, 119])
def test_it_goes_on_after_ctrl_c_to_the_same_bytes(
    folder: Path, clip: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stopped: int,
    overlap: list[str],
) -> None:
    path, whole = tmp_path / "out.mp4", tmp_path / "whole.mp4"
    named = ["--extend", str(clip), "--reference", str(image), "--mask-strategy", "3", "--num-frames", "170", *overlap]
    machine = ["--bundle", str(folder), "--threads", "1", "--quiet"]
    assert main(["generate", PROMPT, "-o", str(whole), *named, *machine]) == 0
    told = json.loads(read_video(whole).metadata["comment"])["sources"]
    assert told == {f"{use} {file.name}": hashlib.sha256(file.read_bytes()).hexdigest()
                    for use, file in (("extend", clip), ("reference", image))}
    usual = VideoWriter.write

    def write(self: VideoWriter, given: np.ndarray) -> None:
        if self.frames_written >= stopped:
            raise Cancelled
        usual(self, given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoWriter, "write", write)
        main(["generate", PROMPT, "-o", str(path), *named, *machine])
    resumable = (tmp_path / "out.mp4.resume").exists()
    assert resumable == (stopped > 0)
    again = ["--resume", *machine[:2], *overlap] if resumable else [PROMPT, *named, *machine]
    if resumable:
        assert main(["generate", PROMPT, "-o", str(path), *named, *machine]) == 2
        assert "this very video was begun before" in capsys.readouterr().err
    assert main(["generate", "-o", str(path), *again]) == 0
    assert path.read_bytes() == whole.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["out.mp4", "whole.mp4"]


def test_programs_are_told_what_was_read(
    folder: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(folder, tmp_path / "out", "--extend", str(clip), "--json", frames=17)
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first.pop("changes")[0].startswith("the last 68 of 90 frames")
    assert first == {"event": "footage_read", "use": "extend", "file": str(clip), "num_frames": 68}


@pytest.mark.parametrize(("arguments", "said"), [
    (["--extend", "CLIP", "--image", "IMAGE"], "not allowed with argument"),
    (["--repaint", "CLIP", "--num-frames", "120"], "gives 85 frames in whole chunks; 120 are asked for"),
    (["--reference", "IMAGE"], "mask_strategy does not say where they go"),
    (["--mask-strategy", "0"], "names reference 0; there are 0"),
    (["--reference", "IMAGE", "--mask-strategy", "9"], "names segment 9"),
    (["--extend", "nowhere.mp4"], "nowhere.mp4"),
    (["--image", "CLIP.resume"], "CLIP.resume"),
])
def test_what_cannot_be_used_is_one_error(
    folder: Path, clip: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str],
    said: str,
) -> None:
    named = [str({"CLIP": clip, "IMAGE": image}.get(a, a)) for a in arguments]
    output = tmp_path / "out.mp4"
    with pytest.raises(SystemExit) as error:
        raise SystemExit(main(["generate", PROMPT, "-o", str(output), "--bundle", str(folder), *named]))
    assert error.value.code == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_frames_are_written_as_they_are(tmp_path: Path) -> None:
    """What the tests above compare is lossless."""
    frames = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    with FrameFolder(tmp_path / "a") as folder:
        folder.write(frames)
    read = [read_image(path, **SIZE).frames[0] for path in sorted((tmp_path / "a").iterdir())]
    assert np.array_equal(read, frames)
