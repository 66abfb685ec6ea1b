"""The sizes in pixels of Open-Sora's named resolutions, such as ``480p`` (docs/spec.md 5.6)."""

from __future__ import annotations

from collections.abc import Mapping

from arlon_rt.errors import OptionsError

SIZES: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "144p": {"16:9": (144, 256), "9:16": (256, 144)},
    "240p": {"16:9": (240, 426), "9:16": (426, 240), "1:1": (320, 320)},
    "360p": {"16:9": (360, 640), "9:16": (640, 360), "1:1": (480, 480)},
    "480p": {"16:9": (480, 854), "9:16": (854, 480), "1:1": (640, 640)},
    "512": {"1:1": (512, 512)},
    "720p": {"16:9": (720, 1280), "9:16": (1280, 720), "1:1": (960, 960)},
    "1080p": {"16:9": (1080, 1920), "9:16": (1920, 1080)},
}
"""(height, width) in pixels. Aspect ratios are width:height, as users write them. Open-Sora's own keys are
height:width: its "9:16" is landscape."""


def size_of(resolution: str, aspect_ratio: str | None = None) -> tuple[int, int]:
    """(height, width) in pixels of a named resolution, by default in its first aspect ratio: landscape, else square.

    Raises:
        OptionsError: there is no such size. The message lists the known ones.
    """
    shapes = SIZES.get(resolution)
    if shapes is None:
        raise OptionsError(
            f"resolution is {resolution!r:.80}; it must be one of {', '.join(SIZES)}; "
            f"for any other size give height and width"
        )
    chosen = next(iter(shapes)) if aspect_ratio is None else aspect_ratio
    if chosen not in shapes:
        raise OptionsError(
            f"aspect_ratio is {chosen!r:.80}; {resolution} comes in {', '.join(shapes)} (width:height); "
            f"for any other shape give height and width"
        )
    return shapes[chosen]
