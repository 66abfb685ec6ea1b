"""Clips and images of any size, rate and kind come in as the model's frames; hostile and broken files as one error."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from arlon_rt.errors import OptionsError
from arlon_rt.video import VideoWriter, footage, read_clip, read_image
from arlon_rt.video.encoding import png
from stored_video import read_video

OWN = {"height": 64, "width": 64}


def bars(num_frames: int, height: int = 64, width: int = 64) -> np.ndarray:
    """Frame i is gray 2·i, with a white square in the left upper quarter's middle."""
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    frames[:] = 2 * np.arange(num_frames, dtype=np.uint8)[:, None, None, None]
    frames[:, height // 8 : 3 * height // 8, width // 8 : 3 * width // 8] = 250
    return frames


def write(
    path: Path, frames: np.ndarray, *, fps: int = 24, at: list[float] | None = None, codec: str = "libx264",
    pix_fmt: str = "yuv420p", rotation: int = 0, aspect: Fraction | None = None, options: dict[str, str] | None = None,
    trc: int | None = None, gop: int = 24,
) -> Path:
    """A file of these frames, ``at`` these seconds instead of one every 1/fps."""
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        stream.codec_context.gop_size = gop
        stream.codec_context.time_base = Fraction(1, 1000) if at else Fraction(1, fps)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        if trc is not None:
            stream.codec_context.color_trc = trc
        for i, frame in enumerate(frames):
            shown = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
                format=pix_fmt, dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG)
            shown.pts = round(at[i] * 1000) if at else i
            shown.time_base = stream.codec_context.time_base
            container.mux(stream.encode(shown))
        container.mux(stream.encode(None))
    return path


def level(frame: np.ndarray) -> float:
    """Which frame of `bars` this is, as exact as encoding lets it be."""
    return float(np.median(frame)) / 2


def shows(frames: np.ndarray, numbers: list[int]) -> bool:
    """Whether these are frames of `bars` with these numbers."""
    return len(frames) == len(numbers) and all(abs(level(f) - n) <= 1 for f, n in zip(frames, numbers, strict=True))


def test_a_clip_of_ours_comes_in_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "own.mp4"
    with VideoWriter(path, fps=24, **OWN) as writer:
        writer.write(np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3), dtype=np.uint8))
    read = read_clip(path, **OWN, fps=24, most_frames=68)
    assert np.array_equal(read.frames, read_video(path).frames)
    assert read.changes == ()


@pytest.mark.parametrize("end", [True, False])
def test_the_last_frames_or_the_first_are_taken(tmp_path: Path, end: bool) -> None:
    path = write(tmp_path / "a.mp4", bars(100))
    read = read_clip(path, **OWN, fps=24, most_frames=17, end=end)
    assert shows(read.frames, list(range(83, 100) if end else range(17)))
    assert read.changes == (("the last 17 of 100 frames taken",) if end else ("the first 17 frames taken",))


@pytest.mark.parametrize(("fps", "frames", "expected"), [
    (12, 20, [i // 2 for i in range(40)]), (48, 96, list(range(0, 96, 2))),
    (30, 60, [round(1.25 * i - 0.1) for i in range(48)]),
])
def test_the_rate_is_the_model_s(tmp_path: Path, fps: int, frames: int, expected: list[int]) -> None:
    read = read_clip(write(tmp_path / "a.mp4", bars(frames), fps=fps), **OWN, fps=24, most_frames=200)
    assert shows(read.frames, expected)
    assert read.changes == (f"{fps} frames a second brought to 24",)


def test_frames_that_come_when_they_like_are_shown_when_they_should(tmp_path: Path) -> None:
    at = [0.0, 0.05, 0.5, 0.55, 1.0, 1.9]
    read = read_clip(write(tmp_path / "a.mkv", bars(6), at=at), **OWN, fps=24, most_frames=200)
    for k, frame in enumerate(read.frames):
        shown = [i for i, second in enumerate(at) if second <= k / 24 + 0.5 / 24]
        assert round(level(frame)) in shown[-2:], k
    assert len(read.frames) >= round(1.9 * 24)


def test_a_long_clip_is_not_decoded_from_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.mp4", np.repeat(bars(120), 10, axis=0))
    fitted = []
    usual = footage._Timing.take
    monkeypatch.setattr(footage._Timing, "take", lambda self, at, *rest: fitted.append(at) or usual(self, at, *rest))
    read = read_clip(path, **OWN, fps=24, most_frames=17)
    assert shows(read.frames, [(1183 + i) // 10 for i in range(17)])
    assert len(fitted) < 150
    assert read.changes == ("the last 17 of 1200 frames taken",)


@pytest.mark.parametrize(("height", "width", "said"), [
    (128, 256, "256×128 scaled to 128×64"), (200, 100, "100×200 scaled to 64×128"), (32, 32, "32×32 scaled to 64×64"),
])
def test_pictures_are_scaled_to_cover_and_cut_to_the_middle(
    tmp_path: Path, height: int, width: int, said: str
) -> None:
    frames = np.full((20, height, width, 3), 60, np.uint8)
    rows, columns = (slice(side // 2 - side // 8, side // 2 + side // 8) for side in (height, width))
    frames[:, rows, columns] = 200
    read = read_clip(write(tmp_path / "a.mp4", frames), **OWN, fps=24, most_frames=68)
    assert read.frames.shape == (20, 64, 64, 3)
    assert said in read.changes
    assert ("cut to 64×64" in read.changes) == (height != width)
    mask = read.frames[5, ..., 0] > 130
    unit = 64 / min(height, width)
    for axis, side in ((1, height), (0, width)):
        bright = np.flatnonzero(mask.any(axis=axis))
        assert abs(bright.mean() - 31.5) <= 1
        assert abs(len(bright) - side / 4 * unit) <= 2
    assert abs(int(read.frames[5, 0, 0, 0]) - 60) <= 2


def test_odd_pixels_are_made_square(tmp_path: Path) -> None:
    frames = np.full((20, 64, 32, 3), 60, np.uint8)
    frames[:, 16:48, 8:24] = 200
    read = read_clip(write(tmp_path / "a.mp4", frames, aspect=Fraction(2, 1)), **OWN, fps=24, most_frames=68)
    assert read.changes == ("32×64 scaled to 64×64",)
    mask = read.frames[5, ..., 0] > 130
    assert abs(int(mask.any(axis=0).sum()) - 32) <= 2


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_a_turned_clip_is_upright(tmp_path: Path, rotation: int) -> None:
    read = read_clip(write(tmp_path / "a.mp4", bars(20), rotation=rotation), **OWN, fps=24, most_frames=68)
    with av.open(tmp_path / "a.mp4") as container:
        turned = next(container.decode(video=0)).rotation
    assert turned in (rotation, -rotation, 180, -180)
    mask = read.frames[10].mean(axis=-1) > 130
    expected = np.rot90(bars(1)[0, ..., 0] > 130, round(turned / 90) % 4)
    assert (mask == expected).mean() > 0.97
    assert "turned by" in read.changes[0]


@pytest.mark.parametrize(("codec", "pix_fmt", "ending", "options"), [
    ("libx264", "yuv444p", ".mkv", None), ("libx264", "yuv420p10le", ".mp4", None), ("mjpeg", "yuvj420p", ".avi", {}),
    ("libvpx-vp9", "yuv420p", ".webm", {"crf": "4", "b": "0", "cpu-used": "8"}), ("libx264rgb", "rgb24", ".mkv", None),
])
def test_colours_survive_every_kind(
    tmp_path: Path, codec: str, pix_fmt: str, ending: str, options: dict[str, str] | None
) -> None:
    colours = np.array([[220, 40, 40], [40, 180, 60], [50, 80, 230], [240, 220, 50]], np.uint8)
    frame = np.zeros((64, 64, 3), np.uint8)
    for i, colour in enumerate(colours):
        frame[:, 16 * i : 16 * i + 16] = colour
    path = tmp_path / f"a{ending}"
    if codec == "mjpeg":
        with av.open(path, "w") as container:
            stream = container.add_stream(codec, rate=24, options={"q": "1"})
            stream.height, stream.width, stream.pix_fmt = 64, 64, pix_fmt
            stream.codec_context.color_range = ColorRange.JPEG
            for i in range(20):
                shown = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
                    format=pix_fmt, dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.JPEG)
                shown.pts = i
                container.mux(stream.encode(shown))
            container.mux(stream.encode(None))
    else:
        write(path, np.repeat(frame[None], 20, axis=0), codec=codec, pix_fmt=pix_fmt, options=options)
    read = read_clip(path, **OWN, fps=24, most_frames=68)
    for i, colour in enumerate(colours):
        assert np.abs(read.frames[5, 20:44, 16 * i + 5 : 16 * i + 11].astype(int) - colour).max() <= 14, colour


def test_images_come_in_as_one_frame(tmp_path: Path) -> None:
    frame = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(png(frame))
    read = read_image(tmp_path / "a.png", **OWN)
    assert np.array_equal(read.frames, frame[None])
    assert read.changes == ()


def test_the_image_of_a_clip_is_its_first_picture(tmp_path: Path) -> None:
    read = read_image(write(tmp_path / "a.mp4", bars(60)), **OWN)
    assert shows(read.frames, [0])


@pytest.mark.parametrize("side", [64, 800, 3000])
def test_photographs_are_read_at_any_size(tmp_path: Path, side: int) -> None:
    """FFmpeg tells a larger JPEG by its name, and then for one of a series."""
    from PIL import Image

    Image.fromarray(np.full((side, side, 3), (200, 60, 40), np.uint8)).save(tmp_path / "a.jpg")
    assert np.abs(read_image(tmp_path / "a.jpg", **OWN).frames.astype(int) - [200, 60, 40]).max() <= 4


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
def test_a_photograph_is_upright(tmp_path: Path, orientation: int, turns: int) -> None:
    from PIL import Image

    picture = Image.fromarray(bars(1)[0])
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "a.jpg", exif=exif, quality=95)
    read = read_image(tmp_path / "a.jpg", **OWN).frames[0].astype(int)
    assert np.abs(read - np.rot90(bars(1)[0], turns)).mean() < 4


def test_what_is_transparent_is_black(tmp_path: Path) -> None:
    from PIL import Image

    frame = np.full((64, 64, 4), 200, np.uint8)
    frame[:, 32:, 3] = 0
    frame[:, :32, 3] = 255
    Image.fromarray(frame).save(tmp_path / "a.png")
    Image.fromarray(frame).convert("RGB").quantize(4).save(tmp_path / "p.png")
    read = read_image(tmp_path / "a.png", **OWN)
    assert (read.frames[0, :, :32] == 200).all()
    assert (read.frames[0, :, 32:] == 0).all()
    assert read.changes == ("transparent parts put on black",)
    assert np.abs(read_image(tmp_path / "p.png", **OWN).frames.astype(int) - 200).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_usual_kinds_of_images_are_read(tmp_path: Path, kind: str) -> None:
    from PIL import Image

    frame = np.zeros((64, 64, 3), np.uint8)
    frame[:, :32] = 200, 60, 40
    Image.fromarray(frame).save(tmp_path / f"a.{kind.lower()}")
    read = read_image(tmp_path / f"a.{kind.lower()}", **OWN).frames[0].astype(int)
    assert np.abs(read[20:40, 8:24] - [200, 60, 40]).max() <= 8
    assert np.abs(read[20:40, 40:56]).max() <= 8


@pytest.mark.parametrize("most", [68, 200])
def test_a_file_that_breaks_off_gives_what_decodes_and_says_so(tmp_path: Path, most: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (240, 64, 64, 3), dtype=np.uint8)
    path = write(tmp_path / "a.mkv", noise)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])
    read = read_clip(path, **OWN, fps=24, most_frames=most, at_least=17)
    assert min(most, 120) <= len(read.frames) < 150
    assert "and the file tells of 10.0" in read.changes[-1]
    path.write_bytes(whole[: len(whole) // 50])
    with pytest.raises(OptionsError, match=r"17 or more are needed.*the file tells of 10\.0"):
        read_clip(path, **OWN, fps=24, most_frames=most, at_least=17)


def test_a_clip_that_claims_to_last_for_years_takes_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.mkv", bars(6), at=[0, 0.04, 0.08, 0.12, 1e8, 1e8 + 0.04])
    monkeypatch.setattr(footage, "MARGIN_SECONDS", 1e9)   # from the start
    read = read_clip(path, **OWN, fps=24, most_frames=4)
    assert shows(read.frames[-1:], [5])
    assert len(read.frames) == 4


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1)])
def test_a_picture_that_is_long_and_thin_is_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    (tmp_path / "a.png").write_bytes(png(np.zeros((*shape, 3), np.uint8)))
    for read in (read_image, lambda path, **size: read_clip(path, **size, fps=24, most_frames=4)):
        with pytest.raises(OptionsError, match="too long and thin"):
            read(tmp_path / "a.png", **OWN)


def test_a_coding_that_is_unknown_is_one_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", bars(4))
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_MPEGX/ISO/AVC"))
    with pytest.raises(OptionsError, match="has a coding that is unknown; "):
        read_clip(path, **OWN, fps=24, most_frames=4)


def test_a_clip_that_is_too_short_says_how_long_it_must_be(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", bars(10))
    with pytest.raises(OptionsError, match=r"gives 10 frames at 24 a second; 17 or more are needed, that is 0\.71 s"):
        read_clip(path, **OWN, fps=24, most_frames=68, at_least=17)


@pytest.mark.parametrize("trc", [16, 18])
def test_light_that_would_need_tone_mapping_is_refused(tmp_path: Path, trc: int) -> None:
    path = write(tmp_path / "a.mp4", bars(4), trc=trc)
    with pytest.raises(OptionsError, match=r"is HDR .* convert it to BT\.709 first"):
        read_clip(path, **OWN, fps=24, most_frames=4)


@pytest.mark.parametrize(("name", "content", "said"), [
    ("nowhere.mp4", None, "does not exist"), ("", None, "is no file"), ("empty.mp4", b"", "cannot be read"),
    ("noise.mp4", bytes(range(256)) * 40, "cannot be read"), ("text.png", b"no image at all", "cannot be read"),
    ("list.m3u8", b"#EXTM3U\n#EXTINF:1,\nclip.mp4\n#EXT-X-ENDLIST\n", "cannot be read"),
    ("list.mp4", b"#EXTM3U\n#EXTINF:1,\nclip.mp4\n#EXT-X-ENDLIST", "cannot be read"),
    ("list.ffconcat", b"ffconcat version 1.0\nfile clip.mp4\n", "cannot be read"),
])
def test_what_is_no_clip_is_one_error(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    write(tmp_path / "clip.mp4", bars(4))
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    for read in (lambda: read_clip(path, **OWN, fps=24, most_frames=4), lambda: read_image(path, **OWN)):
        with pytest.raises(OptionsError, match=said) as error:
            read()
        assert str(path) in str(error.value)


def test_a_track_of_sound_alone_has_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(path, "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(OptionsError, match="has no picture"):
        read_clip(path, **OWN, fps=24, most_frames=4)


@pytest.mark.parametrize("name", ["a.png", "a.mp4"])
def test_a_picture_of_absurd_size_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / name
    if name == "a.png":
        path.write_bytes(png(bars(1)[0]))
    else:
        write(path, bars(4))
    assert read_image(path, **OWN).frames.shape == (1, 64, 64, 3)
    monkeypatch.setattr(footage, "MOST_PIXELS", 64 * 63)
    with pytest.raises(OptionsError, match=r"64×64; 4032 pixels are the most|does not decode"):
        read_image(path, **OWN)
