"""How much of a prompt a video shows: measured attributes against the scene asked for, and prompts to ask with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from demo.measure import Measured, measure
from demo.scene import FPS, HELD_OUT, SEEN, Combination, Scene, sample_scene
from demo.world import Pixels

__all__ = ["ATTRIBUTES", "Measured", "both_kinds", "matches", "measure", "prompts", "psnr", "score",
           "windows"]

ATTRIBUTES = ("colour", "shape", "direction", "speed", "background")


def score(frames: Pixels, scene: Scene) -> dict[str, bool]:
    """Whether the frames (frame, height, width, 3) show each attribute of ``scene``; all False when nothing is seen."""
    return matches(measure(frames), scene)


def matches(measured: Measured | None, scene: Scene) -> dict[str, bool]:
    """The attributes of ``scene`` that were measured; none of them where nothing was."""
    return {a: measured is not None and getattr(measured, a) == getattr(scene, a) for a in ATTRIBUTES}


def psnr(frames: Pixels, truth: Pixels) -> float:
    """Peak signal to noise ratio of uint8 frames, dB; infinite where they are equal."""
    error = float(np.square(frames.astype(np.float32) - truth).mean())
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def windows(frames: Pixels, scene_at: Callable[[int], Scene], seconds: float = 10.0) -> list[dict[str, bool]]:
    """The score of each window of a long video against the scene asked for at its first frame.

    A remainder shorter than half a window is left out.
    """
    length = round(seconds * FPS)
    starts = range(0, max(len(frames) - length // 2, 1), length)
    return [score(frames[start : start + length], scene_at(start)) for start in starts]


def prompts(n: int, rng: np.random.Generator, held_out: bool) -> list[Scene]:
    """``n`` scenes with colours, shapes and directions as even as the seen or held-out combinations allow."""
    return [sample_scene(rng, combination) for combination in _balanced(n, rng, held_out)]


def both_kinds(n: int, seed: int) -> list[Scene]:
    """``n`` prompts, the first half (or one more) of seen combinations, the others of held-out ones."""
    rng, held_out = np.random.default_rng(seed), n // 2
    return prompts(n - held_out, rng, held_out=False) + prompts(held_out, rng, held_out=True)


def _balanced(n: int, rng: np.random.Generator, held_out: bool) -> Iterator[Combination]:
    """Each time a least used combination whose attributes have been used least, ties broken at random."""
    combinations = sorted(HELD_OUT) if held_out else list(SEEN)
    used: Counter[object] = Counter()
    for _ in range(n):
        order = [combinations[i] for i in rng.permutation(len(combinations))]
        chosen = min(order, key=lambda c: (used[c], sum(used[attribute] for attribute in c)))
        used.update((chosen, *chosen))
        yield chosen


if __name__ == "__main__":
    from demo.report import main

    main()
