"""Baseline mode: published Open-Sora v1.2 weights alone make a video; injection that adds nothing changes nothing."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from arlon_export.export import export_bundle
from arlon_rt.bundle import Bundle
from arlon_rt.cli import main
from arlon_rt.options import GenerateOptions
from arlon_rt.pipeline import Pipeline
from published_files import Published, State, command
from tiny_bundle import tokenizer

OPTIONS = GenerateOptions(num_frames=17, height=32, width=32, num_inference_steps=2, guidance_scale=3.0, seed=3)
SIZE = ["--num-frames", "17", "--height", "32", "--width", "32", "--steps", "2"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, states: dict[str, State]) -> Published:
    """Published files with a tokenizer that works; injection weights are zero."""
    made = Published(tmp_path_factory.mktemp("published"), states)
    for network in states:
        made.save(network)
    made.save("injection", lambda state: state.update({name: tensor * 0 for name, tensor in state.items()}))
    (made.paths()["text"] / "spiece.model").write_bytes(tokenizer())
    return made


@pytest.fixture(scope="module")
def baseline(files: Published) -> Path:
    """The bundle of the published networks alone, as the command writes it."""
    assert main(command(files, "--precision", "fp32")) == 0
    return files.folder / "my.bundle"


def test_published_weights_alone_make_a_video(baseline: Path, tmp_path: Path) -> None:
    assert main(["generate", "a red circle", "--bundle", str(baseline), *SIZE, "-o", str(tmp_path / "out.mp4")]) == 0
    with av.open(tmp_path / "out.mp4") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 17
    assert frames[0].shape == (32, 32, 3)
    assert np.ptp(frames) > 20


def test_inspect_says_that_there_is_no_token_model(baseline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(baseline)]) == 0
    assert "Open-Sora v1.2 (no token model)" in capsys.readouterr().out


def test_injection_of_zero_weights_is_baseline_mode_bit_for_bit(baseline: Path, files: Published) -> None:
    # not compared with torch here: the tiny codec has one channel a group, which torch refuses at the smallest size
    injected = export_bundle(files.read_guided(), files.folder / "zero.bundle", precisions=("fp32",), compare_bytes=0)
    assert not injected.is_baseline
    frames = []
    for bundle in (Bundle.open(baseline), injected):
        with Pipeline.open(bundle, threads=1) as pipeline:
            frames.append(pipeline.generate("a red circle", OPTIONS).frames)
    np.testing.assert_array_equal(frames[0], frames[1])
