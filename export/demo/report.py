"""The command behind ``python -m demo.score``: generate prompts with a bundle, measure them, print a table."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from arlon_rt.errors import ArlonError
from demo.captions import canonical
from demo.measure import Measured, measure
from demo.model import add_model_options, open_pipeline
from demo.scene import HELD_OUT, Scene
from demo.score import ATTRIBUTES, both_kinds, matches
from demo.world import Pixels

if TYPE_CHECKING:
    from arlon_rt.pipeline import Pipeline

APPROXIMATE = ("guided_steps", "reuse_latents")
"""Options whose effect on the scores is looked at here."""
SHEET_FRAMES = 6
CAPTION_HEIGHT = 14

Generate = Callable[[str, int], Pixels]
"""Prompt and seed to frames (frame, height, width, 3)."""


@dataclass(frozen=True)
class Setting:
    """What is varied between runs."""

    steps: int
    inject: bool = True
    tokens_of_another: bool = False
    """Tokens written for another prompt, one with another motion; that one's scene is what is looked for."""
    draft: bool = False
    """The preview: the tokens decoded as they are."""

    def __str__(self) -> str:
        if self.draft:
            return "draft"
        rest = "" if self.inject else ", no injection"
        return f"{self.steps} steps{rest}{', held to the prompt of their tokens' if self.tokens_of_another else ''}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One generated prompt."""

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
    generate: Generate, scenes: Iterable[Scene], seed: int = 0, looked_for: Sequence[Scene] | None = None
) -> list[Result]:
    """Generate each scene's canonical caption, the i-th with seed ``seed`` + i, and hold it to the scene.

    ``looked_for`` are the scenes to hold the results to in place of those asked for.
    """
    results = []
    for i, asked in enumerate(scenes):
        number, scene = seed + i, looked_for[i] if looked_for else asked
        frames = generate(canonical(asked), number)
        measured = measure(frames)
        shown = np.linspace(0, len(frames) - 1, SHEET_FRAMES).round().astype(int)
        results.append(Result(scene=scene, seed=number, measured=measured, correct=matches(measured, scene),
                              thumbnails=frames[shown]))
    return results


def donors(scenes: Sequence[Scene]) -> list[Scene]:
    """For each scene the next one, in a circle, that moves another way; its tokens contradict the scene's text.

    Raises:
        ValueError: all of them move the same way.
    """
    if len({scene.direction for scene in scenes}) < 2:
        raise ValueError("tokens of another prompt need prompts that move in different ways; ask for more prompts")
    found = []
    for i, scene in enumerate(scenes):
        ring = (*scenes[i + 1 :], *scenes[:i])
        found.append(next(other for other in ring if other.direction != scene.direction))
    return found


def rates(results: Sequence[Result]) -> dict[str, float]:
    """The share of results with each attribute right; ``"steady"`` is the mean of `Measured.steady`."""
    shares = {a: float(np.mean([r.correct[a] for r in results])) for a in ATTRIBUTES}
    shares["colour+direction"] = float(np.mean([r.colour_and_direction for r in results]))
    shares["steady"] = float(np.mean([r.measured.steady if r.measured else 0.0 for r in results]))
    return shares


def groups(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Seen and held-out combinations apart, then all of them."""
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
    """Shares and every single prompt's measurement."""
    report = [{
        **dataclasses.asdict(setting), "rates": {name: rates(part) for name, part in groups(results).items()},
        "prompts": [{
            "prompt": canonical(r.scene), "seed": r.seed, "held_out": r.held_out, "correct": r.correct,
            "measured": dataclasses.asdict(r.measured) if r.measured else None,
        } for r in results],
    } for setting, results in runs.items()]
    path.write_text(json.dumps({**about, "runs": report}, indent=1) + "\n", encoding="utf-8")


def write_sheet(path: Path, results: Sequence[Result]) -> None:
    """Six frames of each prompt under its caption, two prompts abreast; green: right colour and direction."""
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
    parser.add_argument("--steps", type=int, action="append", help="denoising steps; may be given more than once")
    parser.add_argument("--no-injection", action="store_true", help="also run each step count without injection")
    parser.add_argument("--tokens-of-another", action="store_true",
                        help="also give each prompt the tokens of another one and look for what the tokens say")
    parser.add_argument("--draft", action="store_true", help="also look at the draft that a preview shows")
    parser.add_argument("--num-frames", type=int, default=68)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--guided-steps", type=int, help="guide the first so many steps alone, above a scale of 1")
    parser.add_argument("--reuse-latents", action="store_true", help="go on from latents, in more than one segment")
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
    """How a setting makes a video; ``others`` are the scenes whose tokens it takes."""
    from arlon_rt.options import GenerateOptions

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
