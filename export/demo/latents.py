"""`python -m demo.latents`: renders and encodes clips to shards of latents, on which the later networks are trained.

A clip has 136 frames (40 latents). Its scenes can be drawn again from (seed, index), so a shard holds only latents.
``--twins`` encodes each clip again with a fault: recoloured or shifted. Long video may have such faults in the frames
that it continues; from twins the networks learn to correct a colour and to keep a position.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor

from arlon_export.modules.vae import VideoVAE
from arlon_rt.networks import encoder_frame_index
from demo.config import VIDEO, vae_config
from demo.scene import BACKDROPS, BACKGROUNDS, COLOURS, HELD_OUT, PALETTE, Scene, shade
from demo.training import arguments, load_averaged, rng
from demo.world import Clip, render_clip, sample_clip

SEED = 7
CLIP_FRAMES, CLIP_LATENTS, CHUNK_LATENTS = 136, 40, 5
SHARD_CLIPS = 64
SWITCH_PROBABILITY = 0.35
LARGEST_SHIFT = 2.5
"""Largest shift of a twin along x and along y, in world units."""


def clip_of(index: int) -> Clip:
    """The clip with this number; its prompt may switch."""
    draw = rng(SEED, index)
    return sample_clip(draw, CLIP_FRAMES, SWITCH_PROBABILITY)


def twin_of(index: int) -> Clip:
    """The twin of the clip with this number: recoloured or shifted, as a model may have drawn it."""
    draw, clip = rng(SEED, index, 1), clip_of(index)
    if is_recoloured(index):
        scenes = [(start, _recoloured(scene, draw)) for start, scene in clip.scenes]
    else:
        dx, dy = draw.uniform(-LARGEST_SHIFT, LARGEST_SHIFT, 2)
        scenes = [(start, dataclasses.replace(s, x=s.x + dx, y=s.y + dy)) for start, s in clip.scenes]
    return dataclasses.replace(clip, scenes=tuple(scenes))


def is_recoloured(index: int) -> bool:
    """Whether this clip's twin has another colour or background; otherwise its object is shifted."""
    return index % 2 == 0


def _recoloured(scene: Scene, draw: np.random.Generator) -> Scene:
    """``scene`` with another colour or another background, chosen at random; never a held-out combination."""
    if draw.random() < 0.5:
        background = draw.choice([b for b in BACKGROUNDS if b != scene.background]).item()
        return dataclasses.replace(scene, background=background, background_rgb=shade(draw, BACKDROPS[background]))
    others = [c for c in COLOURS if c != scene.colour and scene.combination._replace(colour=c) not in HELD_OUT]
    colour = draw.choice(others).item()
    return dataclasses.replace(scene, colour=colour, rgb=shade(draw, PALETTE[colour]))


def statistics(latents: npt.NDArray[np.floating]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, rounded to fp16: the autoencoder's shift and scale."""
    x = latents.astype(np.float64)
    axes = (0, 2, 3, 4)
    return [float(np.float16(v)) for v in x.mean(axes)], [float(np.float16(v)) for v in x.std(axes)]


@torch.no_grad()
def encode_clip(vae: VideoVAE, frames: npt.NDArray[np.uint8], device: str) -> npt.NDArray[np.float16]:
    """Frames (136, h, w, 3) -> latents (4, 40, h/8, w/8); the 17-frame chunks are encoded as one batch."""
    chunks = torch.from_numpy(frames).to(device).view(-1, 17, *frames.shape[1:]).permute(0, 4, 1, 2, 3)
    index = torch.from_numpy(encoder_frame_index(17, vae.config)).to(device)
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        z = vae.encode_chunk(chunks.float() / 127.5 - 1, index)
    return z.float().permute(1, 0, 2, 3, 4).flatten(1, 2).half().cpu().numpy()


@dataclass
class LatentPool:
    """The clips of all shards that exist so far; `refresh` reads new ones."""

    folder: Path
    clip_of: Callable[[int], Clip] = clip_of
    latents: list[npt.NDArray[np.float16]] = field(default_factory=list)
    clips: list[Clip] = field(default_factory=list)

    def refresh(self) -> None:
        while (shard := self.folder / f"{len(self.latents) // SHARD_CLIPS:05d}.npy").is_file():
            first = len(self.latents)
            self.latents += list(np.load(shard))
            self.clips += [self.clip_of(i) for i in range(first, len(self.latents))]
        if not self.latents:
            raise SystemExit(f"no latents in {self.folder}; run `python -m demo.latents` first, and with --twins")

    def __len__(self) -> int:
        return len(self.latents)

    def batch(self, indices: list[int], shift: list[float], scale: list[float]) -> Tensor:
        """Normalised latents (batch, 4, 40, h, w) of these clips."""
        x = torch.from_numpy(np.stack([self.latents[i] for i in indices])).float()
        return (x - torch.tensor(shift).view(1, -1, 1, 1, 1)) / torch.tensor(scale).view(1, -1, 1, 1, 1)

    def statistics(self) -> tuple[list[float], list[float]]:
        """Shift and scale of the first shard, so that every training run uses the same, with any number of shards."""
        return statistics(np.stack(self.latents[:SHARD_CLIPS]))


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=4096)
    parser.add_argument("--twins", action="store_true", help="encode the clips' twins instead")
    parser.add_argument("--part", default="0/1", help="encode every n-th shard, e.g. 0/2 and 1/2 in two processes")
    args: argparse.Namespace = parser.parse_args()
    torch.set_num_threads(args.threads)
    vae = load_averaged(args.out, "autoencoder", VideoVAE(vae_config()), args.device)
    assert isinstance(vae, VideoVAE)
    folder, which = (args.out / "twins", twin_of) if args.twins else (args.out / "latents", clip_of)
    folder.mkdir(parents=True, exist_ok=True)
    part, parts = map(int, args.part.split("/"))
    for shard in track(range(part, -(-args.clips // SHARD_CLIPS), parts), description="latents"):
        path = folder / f"{shard:05d}.npy"
        if path.is_file():
            continue
        clips = [which(i) for i in range(shard * SHARD_CLIPS, (shard + 1) * SHARD_CLIPS)]
        latents = np.stack([encode_clip(vae, render_clip(c, VIDEO.height), args.device) for c in clips])
        np.save(path.with_suffix(".tmp.npy"), latents)
        path.with_suffix(".tmp.npy").replace(path)


if __name__ == "__main__":
    main()
