"""Random checkpoints with the key layout and sizes of the published ones, written shard by shard."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from arlon_export.checkpoints.checkpoint import expected_shapes
from arlon_rt.config import (
    ARConfig,
    DiTConfig,
    InjectionConfig,
    ModelConfig,
    TextConfig,
    VAEConfig,
    VideoConfig,
    VQConfig,
)

FULL = ModelConfig(
    # T5 v1.1 XXL's width with 2 of its 24 layers, so that the time of a layer is the true one.
    text=TextConfig(vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=2, num_heads=64),
    ar=ARConfig(
        num_codes=8192, hidden_size=1024, num_layers=24, num_heads=16, ffn_size=4096, text_dim=4096,
        grid=(15, 8, 8), max_length=1264, max_top_k=256,
    ),
    vq=VQConfig(num_codes=8192, code_dim=32, stride=(4, 8, 8), channels=(128, 256, 512)),
    dit=DiTConfig(hidden_size=1152, depth=28, num_heads=16, caption_channels=4096, model_max_length=300),
    injection=InjectionConfig(layers=tuple(range(14))),
    vae=VAEConfig(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32, scaling_factor=0.18215,
        filters=128, num_res_blocks=4, channel_multipliers=(1, 2, 2, 4), temporal_downsample=(False, True, True),
    ),
    video=VideoConfig(height=512, width=512),
)
"""ARLON on Open-Sora v1.2 at 512x512, 68 frames: STDiT3-XL/2, 393 M video autoencoder, 323 M token model."""
WEIGHT_GAIN = 0.5
"""Standard deviation of a random weight times the root of its fan-in. It keeps activations near 1, in range of fp16."""
FULL_SIZE = dataclasses.replace(FULL, text=dataclasses.replace(FULL.text, num_layers=24))
"""`FULL` with all 24 layers of T5 v1.1 XXL."""
SHARD_BYTES = 1 << 30
STATISTICS = ("scale", "shift")
"""Weights of the autoencoder that the published file lacks, because they are in the published code."""
INJECTION = "injection."

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A network in a folder of its own, as it is published."""

    option: str
    """The option of ``arlon-rt export`` that names the folder."""
    network: str
    shapes: Shapes
    dtype: torch.dtype

    @property
    def parameters(self) -> int:
        """The number of its parameters, without the learned null caption, a buffer that published counts leave out."""
        return sum(math.prod(shape) for name, shape in self.shapes.items() if name != "y_embedder.y_embedding")


def published(model: ModelConfig, *, dit: torch.dtype = torch.float32) -> list[Published]:
    """The networks of ``model``: T5 in bf16, the transformer in ``dit``, all others in fp32."""
    shapes = {network: expected_shapes(model, network) for network in ("dit", "vae", "text", "ar", "vq")}
    adapters = {name: shapes["dit"].pop(name) for name in list(shapes["dit"]) if name.startswith(INJECTION)}
    for name in STATISTICS:
        del shapes["vae"][name]
    fp32 = torch.float32
    return [
        Published(option="--dit", network="dit", shapes=shapes["dit"], dtype=dit),
        Published(option="--vae", network="vae", shapes=shapes["vae"], dtype=fp32),
        Published(option="--text-encoder", network="text", shapes=shapes["text"], dtype=torch.bfloat16),
        Published(option="--ar", network="ar", shapes=shapes["ar"], dtype=fp32),
        Published(option="--vq", network="vq", shapes=shapes["vq"], dtype=fp32),
        Published(option="--injection", network="injection", shapes=adapters, dtype=fp32),
    ]


def write_folder(weights: Published, folder: Path, *, theta: float) -> int:
    """Write shards and their index as Hugging Face does. Returns the bytes written. ``theta`` determines rope.freqs."""
    folder.mkdir(parents=True)
    noise = Noise()
    shards = list(_shards(weights.shapes, weights.dtype.itemsize))
    shard_of: dict[str, str] = {}
    total = 0
    for number, names in enumerate(shards, start=1):
        file = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({n: random_weight(n, weights.shapes[n], theta, noise).to(weights.dtype) for n in names}, file)
        shard_of |= dict.fromkeys(names, file.name)
        total += file.stat().st_size
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    return total


class Noise:
    """Normal values from one pool, because drawing billions takes minutes.

    Each tensor begins at another place, so that no two are equal and the export stores each.
    """

    def __init__(self) -> None:
        self._pool = torch.randn((1 << 24) + 1, generator=torch.Generator().manual_seed(0))
        self._next = 0

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        count = math.prod(shape)
        start = self._next % len(self._pool)
        self._next += count + 1
        if start + count <= len(self._pool):
            return self._pool[start : start + count].reshape(shape)
        rolled = torch.cat([self._pool[start:], self._pool[:start]])
        return rolled.repeat(-(-count // len(rolled)))[:count].reshape(shape)


def random_weight(name: str, shape: tuple[int, ...], theta: float, noise: Noise) -> Tensor:
    """Random values that keep activations near 1, biases near 0 and norms near 1, or the published rope.freqs."""
    if name == "rope.freqs":
        return torch.tensor([theta ** (-i / shape[0]) for i in range(shape[0])])
    values = noise.draw(shape)
    if len(shape) > 1:
        gain = 1.0 if name in ("shared.weight", "codebook.weight") else WEIGHT_GAIN / math.sqrt(math.prod(shape[1:]))
        return values.mul(gain)
    return values.mul(0.02).add(1.0 if "norm" in name and name.endswith("weight") else 0.0)


def _shards(shapes: Mapping[str, tuple[int, ...]], width: int) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if names and size + width * math.prod(shape) > SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += width * math.prod(shape)
    yield names
