"""Files that an earlier version wrote are still good: a bundle, and a snapshot of a half-finished video.

All of this folder was written by the code of commit 8bdedf3: ``bundle`` by its tests/tiny_bundle.py (fp32 alone),
``half.arlon`` after the first segment of `STORY`, and ``frames.npz`` by the same request without a break, on an AMD
EPYC with AVX-512. None of it may be written again by newer code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from arlon_rt import Bundle, GenerateOptions, Pipeline
from arlon_rt.cli import main

FOLDER = Path(__file__).parent
BUNDLE_HASH = "1866d6f51ce4dee2ee60659e52672c992ecd7e92b21e2ed82fac5a4dbd43d9f1"
FRAMES_SHA256 = "50d9d66c716f8047baa14c8a64fde9c64ed85031ac6b2ec191296135be840bf1"
STORY = [
    (0, "a red circle moves right on a black background"), (119 / 24, "a blue square moves up on a gray background"),
]
OPTIONS = GenerateOptions(
    num_frames=136, height=16, width=24, num_inference_steps=3, guidance_scale=2.5, ar_guidance_scale=1.5,
    temperature=0.9, top_k=6, top_p=0.9, seed=7, negative_prompt="green triangle",
)
CLIP = np.random.default_rng(0).integers(0, 256, (17, 16, 24, 3), dtype=np.uint8)
STRATEGY = "1,0,0,10,5,0.5"


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    with Pipeline.open(FOLDER / "bundle", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def whole(pipeline: Pipeline) -> np.ndarray:
    """The video of today's code, without a break."""
    chunks = pipeline.stream(STORY, OPTIONS, references=[CLIP], mask_strategy=STRATEGY)
    return np.concatenate([chunk.frames for chunk in chunks])


@pytest.fixture(scope="module")
def recorded() -> np.ndarray:
    frames: np.ndarray = np.load(FOLDER / "frames.npz")["frames"]
    assert hashlib.sha256(frames.tobytes()).hexdigest() == FRAMES_SHA256
    return frames


def test_the_bundle_is_the_one_it_was_and_verifies(capsys: pytest.CaptureFixture[str]) -> None:
    assert Bundle.open(FOLDER / "bundle").hash == BUNDLE_HASH
    assert main(["verify", str(FOLDER / "bundle")]) == 0, capsys.readouterr()


def test_the_snapshot_goes_on_to_the_frames_of_an_unbroken_video(pipeline: Pipeline, whole: np.ndarray) -> None:
    rest = list(pipeline.resume(FOLDER / "half.arlon"))
    assert [(chunk.segment, chunk.index) for chunk in rest] == [(1, 68), (1, 85), (1, 102), (2, 119)]
    assert np.array_equal(np.concatenate([chunk.frames for chunk in rest]), whole[68:])


def test_the_frames_are_those_recorded(whole: np.ndarray, recorded: np.ndarray) -> None:
    """Within a level of 256: arithmetic differs in its last digits from processor to processor."""
    assert whole.shape == recorded.shape
    assert np.abs(whole.astype(np.int16) - recorded).max() <= 1
