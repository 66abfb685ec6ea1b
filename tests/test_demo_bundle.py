"""The demo bundle that ships: what a newcomer sees first works, is deterministic and stays small in memory."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from arlon_rt import GenerateOptions, Pipeline
from arlon_rt.backends.ort import verify_opened
from arlon_rt.bundle import Bundle, demo_bundle_path
from demo.captions import canonical
from demo.scene import sample_scene
from demo.score import prompts, score
from demo.world import render

PROMPT = "a red circle moves right on a black background"
SWITCH = ["--prompt", f"0:{PROMPT}", "--prompt", "5:a blue square moves up on a black background"]
MEASURE = """
import resource, sys
from arlon_rt.cli import main
code = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


def generate(*arguments: str) -> str:
    """Run the command in a process of its own; its standard output."""
    command = [sys.executable, "-c", MEASURE, "generate", "--quiet", "--threads", "1", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_bundle_is_whole_and_at_most_16_megabytes() -> None:
    bundle = Bundle.open(demo_bundle_path())
    assert [f for f in [*bundle.verify(), *verify_opened(bundle)] if f.severity == "error"] == []
    assert sum(p.stat().st_size for p in demo_bundle_path().rglob("*") if p.is_file()) <= 16e6


@pytest.mark.slow
def test_latents_have_mean_0_and_deviation_1_as_the_transformer_was_trained_with() -> None:
    """A wrong shift or scale still makes videos: pale ones, whose colours jump from chunk to chunk."""
    rng = np.random.default_rng(3)
    with Pipeline.open(threads=1) as pipeline:
        encoder = pipeline._networks.vae_encoder
        latents = np.concatenate([encoder.encode(render(sample_scene(rng), 17)) for _ in range(48)])
    assert np.abs(latents.mean(axis=(0, 2, 3, 4))).max() < 0.2
    assert np.abs(latents.std(axis=(0, 2, 3, 4)) - 1).max() < 0.12


@pytest.mark.slow
def test_nearly_all_of_sixteen_prompts_show_the_right_colour_and_motion() -> None:
    scenes = prompts(8, np.random.default_rng(1), held_out=False) + prompts(8, np.random.default_rng(2), held_out=True)
    right = 0
    with Pipeline.open(threads=1) as pipeline:
        for seed, scene in enumerate(scenes):
            found = score(pipeline.generate(canonical(scene), GenerateOptions(seed=seed)).frames, scene)
            right += found["colour"] and found["direction"]
    assert right >= len(scenes) - 2


@pytest.mark.slow
def test_the_same_seed_makes_the_same_file_and_seed_steps_and_prompt_each_change_it(tmp_path: Path) -> None:
    requests = {
        "same": [PROMPT], "again": [PROMPT], "seed": [PROMPT, "--seed", "1"], "steps": [PROMPT, "--steps", "3"],
        "prompt": ["a green square moves down on a brown background"],
    }
    digests = {}
    for name, request in requests.items():
        out = tmp_path / f"{name}.mp4"
        generate(*request, "--num-frames", "17", "-o", str(out))
        digests[name] = digest(out)
    assert digests["same"] == digests["again"]
    assert len(set(digests.values())) == len(requests) - 1


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read as Linux reports it")
def test_a_20_second_video_with_a_prompt_switch_needs_no_more_memory_than_a_10_second_one(tmp_path: Path) -> None:
    short, long = (
        int(generate(*SWITCH, "--steps", "2", "--seconds", str(seconds), "-o", str(tmp_path / f"{seconds}.mp4")))
        for seconds in (10, 20)
    )
    assert long <= 1.05 * short


@pytest.mark.slow
def test_a_resumed_video_is_the_uninterrupted_one_to_the_last_bit() -> None:
    """The token model's caches are filled again by the calls that filled them; windows of 16 code-frames slide."""
    options = GenerateOptions(num_frames=68 + 51 * 3, num_inference_steps=2, seed=4)
    prompt = "a red circle moves right on a black background"
    with Pipeline.open(threads=1) as pipeline:
        whole = pipeline.generate(prompt, options, overlap=True).frames
        generation = pipeline.stream(prompt, options)
        made = [next(generation).frames for _ in range(10)]
        snapshot = generation.snapshot()
        generation.close()
        rest = [chunk.frames for chunk in pipeline.resume(snapshot)]
    assert np.array_equal(np.concatenate([*made, *rest]), whole)
