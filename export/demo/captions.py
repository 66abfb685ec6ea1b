"""Captions of a scene: their wording varies, their content is true."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from demo.scene import Direction, Scene, sample_scene

VERBS = ("moves", "is moving", "drifts", "goes", "travels", "slides")
STILL = ("stays still", "does not move", "is still", "stands still", "stays in place")
HEADINGS: dict[Direction, tuple[str, ...]] = {
    "right": ("right", "to the right", "rightwards"), "left": ("left", "to the left", "leftwards"),
    "up": ("up", "upwards", "to the top"), "down": ("down", "downwards", "to the bottom"),
}
PACES = {"slow": ("slowly", "at a slow pace"), "fast": ("fast", "quickly", "at a fast pace")}
SYNONYMS = {"gray": ("gray", "grey"), "purple": ("purple", "violet"), "circle": ("circle", "disc", "disk")}
UNSAID = {"black": 0.4, "gray": 0.1, "brown": 0.1}
"""Background -> how often a caption omits it. So a caption without a background most often means black."""
UNSAID_AGAIN = 0.7
"""How often a caption omits a background that the video already shows. So it then means that the background stays."""


def canonical(scene: Scene) -> str:
    """The plainest caption that names every attribute, e.g. "a red circle moves right slowly on a black background"."""
    pace = {"slow": " slowly", "normal": "", "fast": " fast"}[scene.speed]
    motion = "stays still" if scene.direction == "still" else f"moves {scene.direction}{pace}"
    return f"a {scene.colour} {scene.shape} {motion} on a {scene.background} background"


def caption(scene: Scene, rng: np.random.Generator, shown: bool = False) -> str:
    """A caption of ``scene`` in varied words. It may omit the background, and nothing else.

    ``shown`` says that the video shows this background already.
    """
    unsaid = UNSAID_AGAIN if shown else UNSAID[scene.background]
    if rng.random() < 0.2:
        words = canonical(scene)
        return words.split(" on a ")[0] if shown and rng.random() < unsaid else words
    subject = f"{_article(rng)} {_spelled(rng, scene.colour)} {_spelled(rng, scene.shape)}"
    sentence = f"{subject} {_motion(scene, rng)}"
    if rng.random() < unsaid:
        return sentence
    backdrop = f"on {_article(rng)} {_spelled(rng, scene.background)} background"
    return f"{backdrop}, {sentence}" if rng.random() < 0.25 else f"{sentence} {backdrop}"


def _motion(scene: Scene, rng: np.random.Generator) -> str:
    if scene.direction == "still":
        return _pick(rng, STILL)
    verb, heading = _pick(rng, VERBS), _pick(rng, HEADINGS[scene.direction])
    if scene.speed == "normal":
        return f"{verb} {heading}"
    pace = _pick(rng, PACES[scene.speed])
    single_word = " " not in pace and pace != "fast"
    order = rng.integers(3 if single_word else 2)
    if order == 2:
        return f"is {pace} moving {heading}" if verb.startswith("is") else f"{pace} {verb} {heading}"
    return f"{verb} {heading} {pace}" if order == 0 else f"{verb} {pace} {heading}"


def corpus(n: int, rng: np.random.Generator) -> list[str]:
    """``n`` captions of seen scenes, from which the sentencepiece vocabulary is built."""
    return [caption(sample_scene(rng), rng) for _ in range(n)]


def _article(rng: np.random.Generator) -> str:
    return "a" if rng.random() < 0.75 else "the"


def _spelled(rng: np.random.Generator, word: str) -> str:
    """The word itself in three cases of four, else a synonym."""
    others = SYNONYMS.get(word, (word,))
    return word if rng.random() < 0.75 else _pick(rng, others)


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]
