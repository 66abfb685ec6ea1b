"""Where quality is lost, `python -m demo.handover`: the score of 68-frame videos after each network of a bundle.

The networks before it are replaced by the truth. Half of the prompts are held out. The VQ-VAE's own encoder is read
from its checkpoint, because no bundle has it.
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
"""(scene, seed) -> the frames after one network."""


class HandOvers:
    """Each method makes a scene's frames from the truth, with one network more than the method before it."""

    def __init__(self, bundle: Bundle, networks: Networks, codec: VQVAE, steps: int) -> None:
        self.bundle, self.networks, self.codec, self.steps = bundle, networks, codec, steps
        self.pipeline = Pipeline(bundle, networks)
        self.segment = plan(NUM_FRAMES, bundle.model)[0]

    def all(self) -> dict[str, HandOver]:
        return {
            "the world itself": self.world,
            "autoencoder: true latents": self.autoencoder,
            "VQ-VAE: true tokens, not denoised": self.true_draft,
            "AR model: its tokens, not denoised": self.draft,
            "DiT with true tokens": self.with_true_tokens,
            "DiT with the AR model's tokens (the whole pipeline)": self.whole,
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
        parts = [self.networks.vae_encoder.encode(frames[i : i + chunk]) for i in range(0, NUM_FRAMES, chunk)]
        return np.concatenate(parts, axis=2)

    def _true_tokens(self, scene: Scene) -> NDArray[np.int64]:
        with torch.no_grad():
            tokens: NDArray[np.int64] = self.codec.encode(torch.from_numpy(self._latents(scene)))[0].numpy()
        return tokens

    def _coarse(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        assert self.networks.vq_decoder
        video, unit = self.bundle.model.video, self.bundle.model.vae.space_stride
        return self.networks.vq_decoder.decode(tokens[None], self.segment, video.height // unit, video.width // unit)

    def _decoded(self, latents: NDArray[np.float32]) -> Pixels:
        decoder = self.networks.vae_decoder
        return np.concatenate([decoder.decode_chunk(latents, i, NUM_FRAMES) for i in range(decoder.chunks(latents))])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.handover", description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="a bundle's folder; left out: the demo bundle")
    parser.add_argument("--out", type=Path, default=Path("checkpoints"), help="folder of the runs' checkpoints")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10, help="denoising steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the shares to this file")
    args = parser.parse_args(argv)
    codec = load_averaged(args.out, "vq", VQVAE(vq_config()), "cpu")
    assert isinstance(codec, VQVAE)
    bundle = Bundle.open(args.bundle or demo_bundle_path())
    networks = Networks.open(bundle, backend="onnxruntime", device="cpu", precision=None, threads=None)
    hand_overs = HandOvers(bundle, networks, codec, args.steps)
    scenes = both_kinds(args.prompts, args.seed)
    rows: dict[str, dict[str, float]] = {}
    table = Table("after", *ATTRIBUTES, "PSNR", title=f"Score after each network, {args.prompts} prompts")
    for name, frames_of in hand_overs.all().items():
        videos = [frames_of(scene, args.seed + i) for i, scene in enumerate(track(scenes, description=name))]
        marks = [score(frames, scene) for frames, scene in zip(videos, scenes, strict=True)]
        rows[name] = {a: float(np.mean([m[a] for m in marks])) for a in ATTRIBUTES}
        comparable = "true" in name
        if comparable:
            decibels = [psnr(f, hand_overs.world(s, 0)) for f, s in zip(videos, scenes, strict=True)]
            rows[name]["psnr"] = float(np.mean(decibels))
        table.add_row(name, *(f"{rows[name][a]:.0%}" for a in ATTRIBUTES),
                      f"{rows[name]['psnr']:.1f} dB" if comparable else "")
    networks.close()
    Console(width=120).print(table)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
