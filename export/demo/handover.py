"""Where quality is lost, `python -m demo.handover`: the score of 68-frame videos after each network, truth first.

Held-out prompts are half of them. The bundle is the one scored; the VQ-VAE's encoder, which no bundle has, comes from
the checkpoints it was made of.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from arlon_export.modules.vq import VQVAE
from arlon_rt.bundle import Bundle, demo_bundle_path
from arlon_rt.networks import Networks
from arlon_rt.options import GenerateOptions
from arlon_rt.pipeline import Pipeline
from arlon_rt.segments import plan
from demo.captions import canonical
from demo.config import vq_config
from demo.scene import Scene
from demo.score import ATTRIBUTES, both_kinds, psnr, score
from demo.training import load_averaged
from demo.world import Pixels, render

NUM_FRAMES = 68
HandOver = Callable[[Scene, int], Pixels]
"""A scene and a seed -> the frames after one network."""


class HandOvers:
    """Each method makes a scene's frames with one network more of the real way and the truth before it."""

    def __init__(self, bundle: Bundle, stages: Networks, codec: VQVAE, steps: int) -> None:
        self.bundle, self.stages, self.codec, self.steps = bundle, stages, codec, steps
        self.pipeline = Pipeline(bundle, stages)
        self.segment = plan(NUM_FRAMES, bundle.model)[0]

    def all(self) -> dict[str, HandOver]:
        return {
            "the world itself": self.world,
            "autoencoder: true latents": self.autoencoder,
            "VQ-VAE: true tokens, decoded as they are": self.true_draft,
            "AR model: its tokens, decoded as they are": self.draft,
            "DiT with true tokens": self.with_true_tokens,
            "DiT with the AR model's tokens (all of it)": self.whole,
            "DiT without tokens": self.text_only,
        }

    def world(self, scene: Scene, seed: int) -> Pixels:
        return render(scene, NUM_FRAMES, self.bundle.model.video.height)

    def autoencoder(self, scene: Scene, seed: int) -> Pixels:
        return self._decoded(self._latents(scene))

    def true_draft(self, scene: Scene, seed: int) -> Pixels:
        return self._decoded(self._coarse(self._true_tokens(scene)))

    def draft(self, scene: Scene, seed: int) -> Pixels:
        return self._decoded(self._coarse(self.pipeline.tokens(canonical(scene), self._options(seed))))

    def with_true_tokens(self, scene: Scene, seed: int) -> Pixels:
        tokens = self._true_tokens(scene)
        return self.pipeline.generate(canonical(scene), self._options(seed), tokens=tokens).frames

    def whole(self, scene: Scene, seed: int) -> Pixels:
        return self.pipeline.generate(canonical(scene), self._options(seed)).frames

    def text_only(self, scene: Scene, seed: int) -> Pixels:
        return self.pipeline.generate(canonical(scene), self._options(seed, inject=False)).frames

    def _options(self, seed: int, inject: bool | None = None) -> GenerateOptions:
        return GenerateOptions(num_frames=NUM_FRAMES, num_inference_steps=self.steps, seed=seed, inject=inject)

    def _latents(self, scene: Scene) -> NDArray[np.float32]:
        chunk = self.bundle.model.vae.chunk_frames
        frames = self.world(scene, 0)
        parts = [self.stages.vae_encoder.encode(frames[i : i + chunk]) for i in range(0, NUM_FRAMES, chunk)]
        return np.concatenate(parts, axis=2)

    def _true_tokens(self, scene: Scene) -> NDArray[np.int64]:
        with torch.no_grad():
            tokens: NDArray[np.int64] = self.codec.encode(torch.from_numpy(self._latents(scene)))[0].numpy()
        return tokens

    def _coarse(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        assert self.stages.vq_decoder
        video, unit = self.bundle.model.video, self.bundle.model.vae.space_stride
        return self.stages.vq_decoder.decode(tokens[None], self.segment, video.height // unit, video.width // unit)

    def _decoded(self, latents: NDArray[np.float32]) -> Pixels:
        return np.concatenate(list(self.stages.vae_decoder.decode(latents, NUM_FRAMES)))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.handover", description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="a bundle's folder; left out: the demo bundle")
    parser.add_argument("--out", type=Path, default=Path("checkpoints"), help="folder of the stages' checkpoints")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10, help="denoising steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the shares to this file")
    args = parser.parse_args(argv)
    codec = load_averaged(args.out, "vq", VQVAE(vq_config()), "cpu")
    assert isinstance(codec, VQVAE)
    bundle = Bundle.open(args.bundle or demo_bundle_path())
    stages = Networks.open(bundle, backend="onnxruntime", device="cpu", precision=None, threads=None)
    hand_overs = HandOvers(bundle, stages, codec, args.steps)
    scenes = both_kinds(args.prompts, args.seed)
    rows: dict[str, dict[str, float]] = {}
    table = Table("after", *ATTRIBUTES, "PSNR", title=f"Score at each hand-over, {args.prompts} prompts")
    for name, frames_of in hand_overs.all().items():
        made = [frames_of(scene, args.seed + i) for i, scene in enumerate(track(scenes, description=name))]
        marks = [score(frames, scene) for frames, scene in zip(made, scenes, strict=True)]
        rows[name] = {a: float(np.mean([m[a] for m in marks])) for a in ATTRIBUTES}
        comparable = "true" in name
        if comparable:
            decibels = [psnr(f, hand_overs.world(s, 0)) for f, s in zip(made, scenes, strict=True)]
            rows[name]["psnr"] = float(np.mean(decibels))
        table.add_row(name, *(f"{rows[name][a]:.0%}" for a in ATTRIBUTES),
                      f"{rows[name]['psnr']:.1f} dB" if comparable else "")
    stages.close()
    Console(width=120).print(table)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
