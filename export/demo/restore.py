"""`python -m demo.restore`: writes a bundle's weights as training runs' checkpoints, from which training can continue.

A bundle lacks the VQ-VAE's own encoder (it has a small one) and the coarser codec. They are trained again, with
``--vq-encoder`` and `demo.train_vq --codec vq_coarse`. Optimizers start anew, and weights have been rounded to fp16.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import torch
from rich.progress import track
from torch import Tensor, nn

from arlon_export.checkpoints.checkpoint import build_module
from arlon_export.modules.vae import VideoVAE
from arlon_export.modules.vq import VQVAE, Encoder
from arlon_rt.bundle import Bundle, demo_bundle_path
from arlon_rt.graphs import graph_specs
from demo.config import shipped_vq_config, vae_config, vq_config
from demo.latents import CLIP_LATENTS, LatentPool
from demo.muon import optimizers
from demo.train_text import TextWithHeads
from demo.train_vq import HELD_BACK
from demo.training import Recipe, arguments, checkpoint_path, keep_short_conv3d_in_float32, learning_rate, rng

NETWORK_OF = {"autoencoder": "vae", "text": "text", "ar": "ar", "vq": "vq", "vq_encoder": "vq", "dit": "dit"}
"""Training run whose weights a bundle has -> the network that it trained."""


def stored_weights(bundle: Bundle, network: str) -> dict[str, Tensor]:
    """Every initialiser of the network's fp32 graphs; weights have their state-dict names."""
    found: dict[str, Tensor] = {}
    for name, spec in graph_specs(bundle.model).items():
        if spec.network == network:
            model = onnx.load(bundle.graph_file(name, "fp32"))
            for tensor in model.graph.initializer:
                found[tensor.name] = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
    return found


def restored(bundle: Bundle, run: str) -> nn.Module:
    """The module of a training run with the bundle's weights; the VQ-VAE's own encoder is newly initialised."""
    network = NETWORK_OF[run]
    stored = stored_weights(bundle, network)
    if run == "vq":
        module: nn.Module = VQVAE(vq_config())
        stored = {key: value for key, value in stored.items() if not key.startswith("encoder.")}
    elif run == "vq_encoder":
        module = Encoder(shipped_vq_config())
        stored = {key.removeprefix("encoder."): value for key, value in stored.items() if key.startswith("encoder.")}
    else:
        module = build_module(bundle.model, network)
    own = module.state_dict()
    absent = [key for key in own if key not in stored and not key.startswith("rope.")]
    if run != "vq" and absent:
        raise SystemExit(f"the bundle has no {absent[0]!r} of {run}; it is no demo bundle")
    module.load_state_dict({key: stored.get(key, value).to(value.dtype) for key, value in own.items()})
    if run == "autoencoder":
        assert isinstance(module, VideoVAE)
        plain = VideoVAE(vae_config())  # training has shift 0 and scale 1
        module.load_state_dict({"shift": plain.shift, "scale": plain.scale}, strict=False)
    if run == "text":
        whole = TextWithHeads()
        whole.t5.load_state_dict(module.state_dict())
        return whole
    return module


def write(out: Path, run: str, module: nn.Module, card: dict[str, Any]) -> None:
    """Write a run's checkpoint and the last line of its log; ``card`` is its entry in the bundle's manifest."""
    state = module.state_dict()
    saved = {"model": state, "ema": state, "step": card["step"], "seconds": float(card["seconds"])}
    torch.save(saved, checkpoint_path(out, run))
    line = {key: value for key, value in card.items() if key not in ("steps_planned", "batch_size")}
    (out / f"{run}.jsonl").write_text(json.dumps(line) + "\n")


def fit_vq_encoder(out: Path, threads: int) -> float:
    """Train only the VQ-VAE's encoder, to the codebook and decoder that ship; return the MSE on held-back clips."""
    torch.set_num_threads(threads)
    recipe = Recipe.load("vq")
    torch.manual_seed(recipe.schedule.seed)
    path = checkpoint_path(out, "vq")
    saved = torch.load(path, map_location="cpu", weights_only=True)
    model = VQVAE(vq_config())
    model.load_state_dict(saved["model"])
    model.eval()  # keeps the codebook fixed
    keep_short_conv3d_in_float32(model)
    pool = LatentPool(out / "latents")
    pool.refresh()
    statistics, steppers = pool.statistics(), optimizers(model.encoder, recipe.schedule.learning_rate, 0.0)
    for step in track(range(recipe.tables["training"]["decoder_from"]), description="VQ-VAE encoder"):
        draw = rng(recipe.schedule.seed, step)
        clips = draw.integers(HELD_BACK, len(pool), recipe.schedule.batch_size)
        start = int(draw.integers(0, CLIP_LATENTS // 2 + 1))
        latents = pool.batch(list(clips), *statistics)[:, :, start:start + CLIP_LATENTS // 2]
        with torch.autocast("cpu", torch.bfloat16):
            output = model(latents)
        model.zero_grad(set_to_none=True)
        torch.autograd.backward((output.coarse - latents).square().mean() + output.loss)
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = learning_rate(recipe.schedule, step)
            stepper.step()
    with torch.no_grad():
        latents = pool.batch(list(range(32)), *statistics)[:, :, :20]
        error = float((model.decode(model.encode(latents)) - latents).square().mean())
    torch.save({**saved, "model": model.state_dict(), "ema": model.state_dict()}, path)
    return error


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="a bundle's folder (default: the demo bundle)")
    parser.add_argument("--vq-encoder", action="store_true", help="train the VQ-VAE's own encoder (needs latents)")
    args: argparse.Namespace = parser.parse_args()
    if args.vq_encoder:
        print(f"MSE on held-back clips: {fit_vq_encoder(args.out, args.threads):.4f}")
        return
    bundle = Bundle.open(args.bundle or demo_bundle_path())
    args.out.mkdir(parents=True, exist_ok=True)
    for run in NETWORK_OF:
        if checkpoint_path(args.out, run).exists():
            raise SystemExit(f"{checkpoint_path(args.out, run)} exists; move it away or name another --out")
    shutil.copyfile(bundle.tokenizer_path, args.out / "tokenizer.model")
    for run in NETWORK_OF:
        write(args.out, run, restored(bundle, run), bundle.manifest.provenance["stages"][run])
    print(f"wrote {', '.join(NETWORK_OF)} to {args.out}; now: python -m demo.latents, then --vq-encoder")


if __name__ == "__main__":
    main()
