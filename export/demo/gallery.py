"""The README's gallery, `python -m demo.gallery --to gallery.gif`: six generated videos in one GIF."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.progress import track

from arlon_rt.options import GenerateOptions
from demo.model import add_model_options, open_pipeline
from demo.scene import FPS
from demo.world import Pixels

PROMPTS = (
    "a red circle moves right on a black background",
    "a yellow triangle moves up fast on a gray background",
    "a blue square moves left slowly on a brown background",
    "a green circle moves down on a gray background",
    "a purple triangle stays still on a black background",
    "a white square moves right fast on a brown background",
)
"""Prompts with each colour once and each shape twice."""
COLUMNS, SCALE, CAPTION, GAP = 3, 2, 40, 6
KEEP_EVERY = 2
"""The GIF shows every second frame, 12 a second."""


def mosaic(videos: Sequence[Pixels], captions: Sequence[str], columns: int = COLUMNS) -> list[Pixels]:
    """Pages of videos (frame, height, width, 3) of one size, enlarged, under captions, in rows of ``columns``."""
    from PIL import Image, ImageDraw

    height, width = (side * SCALE for side in videos[0].shape[1:3])
    rows = -(-len(videos) // columns)
    page = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + CAPTION + GAP) + GAP), "white")
    corners = [(GAP + i % columns * (width + GAP), GAP + i // columns * (height + CAPTION + GAP))
               for i in range(len(videos))]
    draw = ImageDraw.Draw(page)
    for (x, y), caption in zip(corners, captions, strict=True):
        draw.multiline_text((x, y), "\n".join(textwrap.wrap(caption, width // 6)), fill="black", spacing=1)
    pages = []
    for frames in zip(*videos, strict=True):
        for (x, y), frame in zip(corners, frames, strict=True):
            page.paste(Image.fromarray(frame.repeat(SCALE, 0).repeat(SCALE, 1)), (x, y + CAPTION))
        pages.append(np.asarray(page).copy())
    return pages


def write_gif(path: Path, pages: Sequence[Pixels], fps: float) -> None:
    """Write a GIF that repeats all pages. Its palette is chosen from every eighth part of the pages."""
    from PIL import Image

    images = [Image.fromarray(page) for page in pages]
    shown = np.concatenate(pages[:: max(1, len(pages) // 8)])
    palette = Image.fromarray(shown).quantize(128, kmeans=2, dither=Image.Dither.NONE)
    flat = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    flat[0].save(path, save_all=True, append_images=flat[1:], duration=round(1000 / fps), loop=0, optimize=False)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.gallery", description=__doc__)
    add_model_options(parser)
    parser.add_argument("--to", type=Path, default=Path("gallery.gif"), help="the GIF to write")
    parser.add_argument("--num-frames", type=int, default=119)
    parser.add_argument("--steps", type=int, default=10, help="denoising steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first video; later ones add 1 each")
    args = parser.parse_args(argv)
    videos = []
    with open_pipeline(args) as pipeline:
        for seed, prompt in enumerate(track(PROMPTS, description="videos"), args.seed):
            options = GenerateOptions(num_frames=args.num_frames, num_inference_steps=args.steps, seed=seed)
            videos.append(pipeline.generate(prompt, options).frames[::KEEP_EVERY])
    write_gif(args.to, mosaic(videos, PROMPTS), FPS / KEEP_EVERY)


if __name__ == "__main__":
    main()
