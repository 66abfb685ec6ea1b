"""The stream of fresh clips as latents: rendered, encoded and kept in shards that the later stages read as they come.

A clip is 136 frames (40 latents); its scenes are drawn again from (seed, index), so a shard holds latents alone.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor

from arlon_export.modules.vae import VideoVAE
from demo.config import VIDEO, vae_config
from demo.training import arguments, load_averaged, rng
from demo.world import Clip, render_clip, sample_clip

SEED = 7
CLIP_FRAMES, CLIP_LATENTS, CHUNK_LATENTS = 136, 40, 5
SHARD_CLIPS = 64
SWITCH_PROBABILITY = 0.35


def clip_of(index: int) -> Clip:
    """The clip with this number; its prompt may switch midway."""
    draw = rng(SEED, index)
    return sample_clip(draw, CLIP_FRAMES, SWITCH_PROBABILITY)


def statistics(latents: npt.NDArray[np.floating]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, the autoencoder's shift and scale; exact in fp16."""
    x = latents.astype(np.float64)
    axes = (0, 2, 3, 4)
    return [float(np.float16(v)) for v in x.mean(axes)], [float(np.float16(v)) for v in x.std(axes)]


@torch.no_grad()
def encode_clip(vae: VideoVAE, frames: npt.NDArray[np.uint8], device: str) -> npt.NDArray[np.float16]:
    """Frames (136, h, w, 3) -> latents (4, 40, h/8, w/8), the 17-frame chunks as one batch."""
    chunks = torch.from_numpy(frames).to(device).view(-1, 17, *frames.shape[1:]).permute(0, 4, 1, 2, 3)
    index = torch.tensor([0] * 3 + list(range(1, 18)), device=device)
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        z = vae.encode_chunk(chunks.float() / 127.5 - 1, index)
    return z.float().permute(1, 0, 2, 3, 4).flatten(1, 2).half().cpu().numpy()


@dataclass
class LatentPool:
    """All shards found so far; `refresh` takes in new ones."""

    folder: Path
    latents: list[npt.NDArray[np.float16]] = field(default_factory=list)
    clips: list[Clip] = field(default_factory=list)

    def refresh(self) -> None:
        while (shard := self.folder / f"{len(self.latents) // SHARD_CLIPS:05d}.npy").is_file():
            first = len(self.latents)
            self.latents += list(np.load(shard))
            self.clips += [clip_of(i) for i in range(first, len(self.latents))]
        if not self.latents:
            raise SystemExit(f"no latents in {self.folder}; run `python -m demo.latents` first")

    def __len__(self) -> int:
        return len(self.latents)

    def batch(self, indices: list[int], shift: list[float], scale: list[float]) -> Tensor:
        """Normalised latents (batch, 4, 40, h, w) of these clips."""
        x = torch.from_numpy(np.stack([self.latents[i] for i in indices])).float()
        return (x - torch.tensor(shift).view(1, -1, 1, 1, 1)) / torch.tensor(scale).view(1, -1, 1, 1, 1)

    def statistics(self) -> tuple[list[float], list[float]]:
        """Shift and scale from the first shard: the same for every stage, however many shards there are."""
        return statistics(np.stack(self.latents[:SHARD_CLIPS]))


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=4096)
    parser.add_argument("--part", default="0/1", help="make every n-th shard alone, e.g. 0/2 and 1/2 in two processes")
    args: argparse.Namespace = parser.parse_args()
    torch.set_num_threads(args.threads)
    vae = load_averaged(args.out, "autoencoder", VideoVAE(vae_config()), args.device)
    assert isinstance(vae, VideoVAE)
    folder = args.out / "latents"
    folder.mkdir(parents=True, exist_ok=True)
    part, parts = map(int, args.part.split("/"))
    for shard in track(range(part, -(-args.clips // SHARD_CLIPS), parts), description="latents"):
        path = folder / f"{shard:05d}.npy"
        if path.is_file():
            continue
        clips = [clip_of(i) for i in range(shard * SHARD_CLIPS, (shard + 1) * SHARD_CLIPS)]
        latents = np.stack([encode_clip(vae, render_clip(c, VIDEO.height), args.device) for c in clips])
        np.save(path.with_suffix(".tmp.npy"), latents)
        path.with_suffix(".tmp.npy").replace(path)


if __name__ == "__main__":
    main()
