"""How much of a prompt a video shows, and `python -m demo.score`: the share of prompts that a model shows right.

A video is scored by measured attributes, compared with those of the scene that its prompt names.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from arlon_rt.errors import ArlonError
from arlon_rt.options import GenerateOptions
from arlon_rt.pipeline import Pipeline
from demo.captions import canonical
from demo.measure import Measured, measure
from demo.model import add_model_options, open_pipeline
from demo.scene import FPS, HELD_OUT, SEEN, Combination, Scene, sample_scene
from demo.world import Pixels

ATTRIBUTES = ("colour", "shape", "direction", "speed", "background")
APPROXIMATE = ("guided_steps", "reuse_latents")
"""Options that save work by an approximation; the command passes them on, so that their scores can be compared."""
SHEET_FRAMES = 6
CAPTION_HEIGHT = 14

Generate = Callable[[str, int], Pixels]
"""(prompt, seed) -> frames (frame, height, width, 3)."""


def score(frames: Pixels, scene: Scene) -> dict[str, bool]:
    """Attribute -> whether the frames (frame, height, width, 3) show that of ``scene``; all False without an object."""
    return matches(measure(frames), scene)


def matches(measured: Measured | None, scene: Scene) -> dict[str, bool]:
    """Attribute -> whether the measured one is that of ``scene``; all False if nothing was measured."""
    return {a: measured is not None and getattr(measured, a) == getattr(scene, a) for a in ATTRIBUTES}


def psnr(frames: Pixels, truth: Pixels) -> float:
    """Peak signal-to-noise ratio of uint8 frames in dB; infinite if they are equal."""
    error = float(np.square(frames.astype(np.float32) - truth).mean())
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def windows(frames: Pixels, scene_at: Callable[[int], Scene], seconds: float = 10.0) -> list[dict[str, bool]]:
    """The score of each window of a long video, against the scene of the window's first frame.

    A remainder shorter than half a window is ignored.
    """
    length = round(seconds * FPS)
    starts = range(0, max(len(frames) - length // 2, 1), length)
    return [score(frames[start : start + length], scene_at(start)) for start in starts]


def prompts(n: int, rng: np.random.Generator, held_out: bool) -> list[Scene]:
    """``n`` scenes of seen or of held-out combinations, with colours, shapes and directions balanced."""
    return [sample_scene(rng, combination) for combination in _balanced(n, rng, held_out)]


def both_kinds(n: int, seed: int) -> list[Scene]:
    """``n`` scenes: first those of seen combinations, then half of them (rounded down) of held-out ones."""
    rng, held_out = np.random.default_rng(seed), n // 2
    return prompts(n - held_out, rng, held_out=False) + prompts(held_out, rng, held_out=True)


def _balanced(n: int, rng: np.random.Generator, held_out: bool) -> Iterator[Combination]:
    """Combinations, each time a least used one whose attributes were used least; ties are broken at random."""
    combinations = sorted(HELD_OUT) if held_out else list(SEEN)
    used: Counter[object] = Counter()
    for _ in range(n):
        order = [combinations[i] for i in rng.permutation(len(combinations))]
        chosen = min(order, key=lambda c: (used[c], sum(used[attribute] for attribute in c)))
        used.update((chosen, *chosen))
        yield chosen


@dataclass(frozen=True)
class Setting:
    """What differs between two runs of the same prompts."""

    steps: int
    inject: bool = True
    tokens_of_another: bool = False
    """Use the tokens of another prompt, whose object moves another way, and score against that prompt's scene."""
    draft: bool = False
    """Score the preview, which decodes the tokens without denoising."""

    def __str__(self) -> str:
        if self.draft:
            return "draft"
        rest = "" if self.inject else ", no injection"
        return f"{self.steps} steps{rest}{', scored by the prompt of their tokens' if self.tokens_of_another else ''}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One generated prompt and its score."""

    scene: Scene
    seed: int
    measured: Measured | None
    correct: dict[str, bool]
    thumbnails: Pixels

    @property
    def held_out(self) -> bool:
        return self.scene.combination in HELD_OUT

    @property
    def colour_and_direction(self) -> bool:
        return self.correct["colour"] and self.correct["direction"]


def evaluate(
    generate: Generate, scenes: Iterable[Scene], seed: int = 0, targets: Sequence[Scene] | None = None
) -> list[Result]:
    """Generate each scene's canonical caption, the i-th with seed ``seed`` + i, and score it against the scene.

    ``targets`` are other scenes to score against, one for each of ``scenes``.
    """
    results = []
    for i, scene in enumerate(scenes):
        frames, target = generate(canonical(scene), seed + i), targets[i] if targets else scene
        measured = measure(frames)
        shown = np.linspace(0, len(frames) - 1, SHEET_FRAMES).round().astype(int)
        results.append(Result(scene=target, seed=seed + i, measured=measured, correct=matches(measured, target),
                              thumbnails=frames[shown]))
    return results


def donors(scenes: Sequence[Scene]) -> list[Scene]:
    """For each scene the next one, in a circle, that moves another way. Its tokens contradict the scene's text.

    Raises:
        ValueError: all scenes move the same way.
    """
    if len({scene.direction for scene in scenes}) < 2:
        raise ValueError("tokens of another prompt need prompts that move in different ways; ask for more prompts")
    rings = [(*scenes[i + 1 :], *scenes[:i]) for i in range(len(scenes))]
    return [next(other for other in ring if other.direction != scene.direction)
            for scene, ring in zip(scenes, rings, strict=True)]


def rates(results: Sequence[Result]) -> dict[str, float]:
    """Attribute -> share of results that show it right; ``"steady"`` is the mean of `Measured.steady`."""
    shares = {a: float(np.mean([r.correct[a] for r in results])) for a in ATTRIBUTES}
    shares["colour+direction"] = float(np.mean([r.colour_and_direction for r in results]))
    shares["steady"] = float(np.mean([r.measured.steady if r.measured else 0.0 for r in results]))
    return shares


def groups(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The results of seen and of held-out combinations, and all results."""
    parts = {"seen": [r for r in results if not r.held_out], "held-out": [r for r in results if r.held_out]}
    return {name: part for name, part in {**parts, "all": list(results)}.items() if part}


def table(runs: dict[Setting, list[Result]]) -> Table:
    columns = ("colour", "shape", "direction", "colour+direction", "speed", "background", "steady")
    out = Table("setting", "combinations", "prompts", *columns, title="Share of prompts shown right")
    for setting, results in runs.items():
        for name, part in groups(results).items():
            shares = rates(part)
            out.add_row(str(setting), name, str(len(part)), *(f"{shares[c]:.0%}" for c in columns))
        out.add_section()
    return out


def write_json(path: Path, runs: dict[Setting, list[Result]], about: dict[str, Any]) -> None:
    """Write the shares and the measurement of every prompt."""
    report = [{
        **dataclasses.asdict(setting), "rates": {name: rates(part) for name, part in groups(results).items()},
        "prompts": [{
            "prompt": canonical(r.scene), "seed": r.seed, "held_out": r.held_out, "correct": r.correct,
            "measured": dataclasses.asdict(r.measured) if r.measured else None,
        } for r in results],
    } for setting, results in runs.items()]
    path.write_text(json.dumps({**about, "runs": report}, indent=1) + "\n", encoding="utf-8")


def write_sheet(path: Path, results: Sequence[Result]) -> None:
    """Write a PNG with six frames of each prompt under its caption; a green caption has colour and direction right."""
    from PIL import Image, ImageDraw

    height, width = results[0].thumbnails.shape[1:3]
    cell = (SHEET_FRAMES * (width + 2) + 8, height + CAPTION_HEIGHT + 4)
    sheet = Image.new("RGB", (2 * cell[0], -(-len(results) // 2) * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    for number, result in enumerate(results):
        left, top = number % 2 * cell[0] + 4, number // 2 * cell[1]
        mark = " (held out)" if result.held_out else ""
        draw.text((left, top), canonical(result.scene) + mark,
                  fill="darkgreen" if result.colour_and_direction else "firebrick")
        for column, frame in enumerate(result.thumbnails):
            sheet.paste(Image.fromarray(frame), (left + column * (width + 2), top + CAPTION_HEIGHT))
    sheet.quantize(256, kmeans=2, dither=Image.Dither.NONE).save(path, optimize=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.score", description=__doc__)
    add_model_options(parser)
    parser.add_argument("--prompts", type=int, default=32, help="how many, half of them of held-out combinations")
    parser.add_argument("--steps", type=int, action="append", help="denoising steps; repeat it (default: 10)")
    parser.add_argument("--no-injection", action="store_true", help="also run each step count without injection")
    parser.add_argument("--tokens-of-another", action="store_true",
                        help="also use the tokens of another prompt, and score against that prompt")
    parser.add_argument("--draft", action="store_true", help="also score the draft that a preview shows")
    parser.add_argument("--num-frames", type=int, default=68)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--guided-steps", type=int, help="guide only this many first steps")
    parser.add_argument("--reuse-latents", action="store_true", help="continue segments from latents, not from frames")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of the first setting to this PNG")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    args = parser.parse_args(argv)
    if args.prompts < 1:
        parser.error(f"--prompts is {args.prompts}; it must be 1 or more")
    try:
        runs = _generate_all(args)
    except ArlonError as error:
        parser.exit(2, f"{error}\n")
    console = Console()
    Console(width=None if console.is_terminal else 120).print(table(runs))
    if args.json:
        about = {name: getattr(args, name) for name in ("seed", "num_frames", "device", "guidance_scale", *APPROXIMATE)}
        write_json(args.json, runs, about)
    if args.sheet:
        write_sheet(args.sheet, next(iter(runs.values())))


def _generate_all(args: argparse.Namespace) -> dict[Setting, list[Result]]:
    scenes = both_kinds(args.prompts, args.seed)
    kinds = [(True, False), *[(False, False)] * args.no_injection, *[(True, True)] * args.tokens_of_another]
    runs: dict[Setting, list[Result]] = {}
    with open_pipeline(args) as pipeline:
        settings = [Setting(steps, *kind) for kind in kinds for steps in args.steps or [10]]
        for setting in [*settings, *[Setting(1, draft=True)] * args.draft]:
            others = donors(scenes) if setting.tokens_of_another else None
            generate = _generator(pipeline, args, setting, others)
            runs[setting] = evaluate(generate, track(scenes, description=str(setting)), args.seed, others)
    return runs


def _generator(
    pipeline: Pipeline, args: argparse.Namespace, setting: Setting, others: Sequence[Scene] | None
) -> Generate:
    """The function that generates the videos of a setting; ``others`` are the scenes whose tokens it uses."""
    def generate(prompt: str, seed: int) -> Pixels:
        options = GenerateOptions(num_frames=args.num_frames, num_inference_steps=setting.steps, seed=seed,
                                  guidance_scale=args.guidance_scale, inject=setting.inject,
                                  **{name: getattr(args, name) for name in APPROXIMATE})
        if setting.draft:
            chunks = pipeline.stream(prompt, options, preview=True)
            return np.concatenate([chunk.frames for chunk in chunks if chunk.draft])
        tokens = pipeline.tokens(canonical(others[seed - args.seed]), options) if others else None
        frames: Pixels = pipeline.generate(prompt, options, tokens=tokens).frames
        return frames

    return generate


if __name__ == "__main__":
    main()
