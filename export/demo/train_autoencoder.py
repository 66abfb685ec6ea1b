"""`python -m demo.train_autoencoder`: the video autoencoder, 2-D first, then the temporal part, then images.

From the second phase on the 2-D encoder rests, and at its start the 2-D decoder too: what a new temporal decoder gives
it would spoil it. A chunk's first frame and a few others are decoded to pixels; the causal padding leaves the first
frames the least context, so they are in every batch. In the last phase the decoders alone are trained.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arlon_export.modules.vae import VideoVAE
from arlon_rt.networks import encoder_frame_index
from demo.config import VIDEO, vae_config
from demo.scene import Scene, sample_scene
from demo.training import Losses, Recipe, arguments, rng, train
from demo.world import render, render_clip, sample_clip

CHUNK = 17
CROP = 32


def to_pixels(frames: np.ndarray, device: str) -> Tensor:
    """uint8 (…, frame, h, w, 3) -> float (…, 3, frame, h, w) in -1..1."""
    return torch.from_numpy(frames).to(device).movedim(-1, -4).float() / 127.5 - 1


def edge_weights(pixels: Tensor, weight: float) -> Tensor:
    """1 away from edges, 1 + ``weight`` within two pixels of one; pixels (batch, 3, frame, h, w)."""
    x = pixels.transpose(1, 2).flatten(0, 1)
    step = (x - F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)).abs().amax(1, keepdim=True)
    near = F.max_pool2d((step > 0.02).float(), 3, 1, 1)
    return 1 + near.view(pixels.shape[0], -1, *near.shape[1:]).transpose(1, 2) * weight


def reconstruction(out: Tensor, pixels: Tensor, weight: float) -> Tensor:
    """Squared error with a little absolute error, heavier near edges."""
    error = out.float() - pixels
    return (edge_weights(pixels, weight) * (8 * error.square() + 0.2 * error.abs())).mean()


def cropped(frames: np.ndarray, scene: Scene, draw: np.random.Generator) -> np.ndarray:
    """The window of ``CROP`` x ``CROP`` around where the scene's object starts, somewhat off centre.

    Four windows cost what one frame does and show four objects; rolling is what the world's wrapping motion allows.
    """
    x, y = (int(v + draw.uniform(-0.4, 0.4) * CROP - CROP / 2) for v in (scene.x, scene.y))
    return np.roll(frames, (-y, -x), (1, 2))[:, :CROP, :CROP]


def psnr(out: Tensor, pixels: Tensor) -> float:
    """Peak signal to noise of 0..1 pixels, dB."""
    mse = ((out.float().clamp(-1, 1) - pixels) / 2).square().mean()
    return float(-10 * torch.log10(mse))


def object_psnr(out: Tensor, pixels: Tensor) -> float:
    """`psnr` over pixels near edges alone, where a plain background cannot flatter it."""
    near = (edge_weights(pixels, 1.0) > 1).expand_as(pixels)
    return psnr(out[near], pixels[near])


class AutoencoderLoss:
    """The phases' losses, each step's clips drawn afresh."""

    def __init__(self, vae: VideoVAE, recipe: Recipe, device: str) -> None:
        self.vae, self.schedule, self.device = vae, recipe.schedule, device
        self.extra = recipe.tables["training"]

    def __call__(self, step: int) -> Losses:
        draw = rng(self.schedule.seed, step)
        temporal, images, decoders = self.schedule.phases
        start, end = (0, temporal) if step < temporal else (temporal, images)
        crop = step < start + self.extra["cropped"] * (end - start)
        self.vae.spatial_vae.module.decoder.requires_grad_(not temporal <= step < temporal + self.extra["alone_steps"])
        self.vae.temporal_vae.encoder.requires_grad_(step < decoders)
        self.vae.temporal_vae.quant_conv.requires_grad_(step < decoders)
        if step < temporal:
            return self.frames(draw, crop)
        return self.chunks(draw, crop, images=step >= images)

    def clips(self, draw: np.random.Generator, count: int, num_frames: int, crop: bool) -> Tensor:
        """Fresh clips (count, 3, frame, h, w), or four times as many cropped ones."""
        scenes = [sample_scene(draw) for _ in range(4 * count if crop else count)]
        frames = [render(scene, num_frames, VIDEO.height) for scene in scenes]
        if crop:
            frames = [cropped(f, scene, draw) for f, scene in zip(frames, scenes, strict=True)]
        return to_pixels(np.stack(frames), self.device)

    def frames(self, draw: np.random.Generator, crop: bool) -> Losses:
        pixels = self.clips(draw, self.extra["frame_batch_size"], 1, crop)
        z = self.vae.spatial_vae.encode(pixels).mean.float()
        out = self.vae.spatial_vae.decode(z + 0.05 * torch.randn_like(z))
        error = reconstruction(out, pixels, self.extra["edge_weight"])
        return {"loss": error + self.penalty(z), "frame": error}

    def chunks(self, draw: np.random.Generator, crop: bool, images: bool) -> Losses:
        pixels = self.clips(draw, self.schedule.batch_size, CHUNK, crop)
        with torch.no_grad():
            target = self.vae.spatial_vae.encode(pixels).mean
            padded = torch.cat([torch.zeros_like(target[:, :, :1]), target], 2)
        index = torch.from_numpy(encoder_frame_index(CHUNK, self.vae.config)).to(self.device)
        z = self.vae.temporal_vae.encode(padded.index_select(2, index)).mean.float()
        picked = np.sort(np.append(0, draw.choice(np.arange(1, CHUNK), self.extra["decoded_frames"], replace=False)))
        decoded = self.vae.temporal_vae.decode(z + 0.05 * torch.randn_like(z))[:, :, -CHUNK:]
        out = self.vae.spatial_vae.decode(decoded[:, :, picked])
        error = reconstruction(out, pixels[:, :, picked], self.extra["edge_weight"])
        latent = F.smooth_l1_loss(decoded.float(), target.float())
        losses = {"loss": error + latent + self.penalty(z), "chunk": error, "latent": latent}
        if images:  # a chunk's first latent by itself is its first frame, as an image
            first = self.vae.temporal_vae.decode(z[:, :, :1])[:, :, -1:]
            image = reconstruction(self.vae.spatial_vae.decode(first), pixels[:, :, :1], self.extra["edge_weight"])
            image_latent = F.smooth_l1_loss(first.float(), target[:, :, :1].float())
            losses |= {"loss": losses["loss"] + image + image_latent, "image": image}
        return losses

    def penalty(self, z: Tensor) -> Tensor:
        """Keeps latents near unit size, so that the noise added to them means something."""
        weight: float = self.extra["latent_weight"]
        return weight * z.square().mean()


@torch.no_grad()
def evaluate(vae: nn.Module, device: str) -> dict[str, float]:
    """PSNR on clips no training step draws."""
    assert isinstance(vae, VideoVAE)
    draw = rng(0, 0)
    clips = np.stack([render_clip(sample_clip(draw, CHUNK), VIDEO.height) for _ in range(8)])
    pixels = to_pixels(clips, device)
    out = vae.decode(vae.encode(pixels), CHUNK)
    frames = vae.spatial_vae.decode(vae.spatial_vae.encode(pixels).mean)
    image = vae.decode(vae.encode(pixels)[:, :, :1], 1)
    return {
        "image_psnr": psnr(image, pixels[:, :, :1]),
        "psnr": psnr(out, pixels), "psnr_first": psnr(out[:, :, 0], pixels[:, :, 0]),
        "object_psnr": object_psnr(out, pixels), "frame_psnr": psnr(frames, pixels),
    }


def main() -> None:
    args = arguments(__doc__.splitlines()[0]).parse_args()
    recipe = Recipe.load("autoencoder")
    torch.manual_seed(recipe.schedule.seed)
    vae = VideoVAE(vae_config())
    train(vae, recipe, args, AutoencoderLoss(vae, recipe, args.device), lambda m: evaluate(m, args.device))


if __name__ == "__main__":
    main()
