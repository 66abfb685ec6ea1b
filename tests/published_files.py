"""Small files with the key layout of the published ones, for tests to spoil."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from arlon_export.checkpoints.checkpoint import Checkpoint, build_module
from arlon_export.checkpoints.published import read_published
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
from tiny_checkpoint import fill

AR = ARConfig(
    num_codes=20, hidden_size=32, num_layers=1, num_heads=16, ffn_size=24, text_dim=16, grid=(3, 2, 2),
    max_length=25, max_top_k=20,
)
VQ = VQConfig(
    num_codes=20, code_dim=8, stride=(4, 8, 8), channels=(32, 32, 32), num_res_blocks=1, norm_groups=32,
    has_encoder=True,
)
GUIDED = ModelConfig(
    text=TextConfig(
        vocab_size=64, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, max_length=12,
        prompt_suffix=" aesthetic score: 6.5.",
    ),
    dit=DiTConfig(
        hidden_size=16, depth=2, num_heads=2, caption_channels=16, model_max_length=12, precision_tables="bf16",
    ),
    vae=VAEConfig(
        block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=32, scaling_factor=0.18215, filters=32,
        num_res_blocks=1, channel_multipliers=(1, 1, 2), temporal_downsample=(False, True),
        scale=(3.5, 2.5, 2.25, 3.0), shift=(-0.5, 0.25, 0.125, 1.0),
    ),
    video=VideoConfig(height=512, width=512),
    ar=AR, vq=VQ,
    injection=InjectionConfig(layers=(0,), adapter_ratio=1.5),
)
BASELINE = dataclasses.replace(GUIDED, ar=None, vq=None, injection=None)
DIT_CONFIG = {
    "architectures": ["STDiT3"], "model_type": "STDiT3", "torch_dtype": "float32", "transformers_version": "4.38.2",
    "input_size": [None, None, None], "input_sq_size": 512, "in_channels": 4, "patch_size": [1, 2, 2],
    "hidden_size": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 4.0, "class_dropout_prob": 0.1, "pred_sigma": True,
    "drop_path": 0.0, "caption_channels": 16, "model_max_length": 12, "qk_norm": True, "enable_flash_attn": True,
    "enable_layernorm_kernel": True, "only_train_temporal": False, "freeze_y_embedder": True, "skip_y_embedder": False,
}
T5_CONFIG = {
    "vocab_size": 64, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.1,
    "feed_forward_proj": "gated-gelu", "max_length": 20, "model_type": "t5", "relative_attention_num_buckets": 32,
}
State = dict[str, Tensor]


def random_states() -> dict[str, State]:
    """The state dict of every network under its published keys; the adapters apart from the transformer."""
    torch.manual_seed(0)
    found = {}
    for network in ("text", "dit", "vae", "ar", "vq"):
        module = build_module(GUIDED, network)
        fill(module)
        found[network] = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found["injection"] = {n: found["dit"].pop(n) for n in list(found["dit"]) if n.startswith("injection.")}
    return found


@dataclasses.dataclass
class Published:
    """Published files that a test may spoil."""

    folder: Path
    states: dict[str, State]

    def save(self, network: str, change: Callable[[State], Any] = lambda state: None) -> Path:
        """Write one network's file after ``change`` to a copy of its state dict."""
        state = dict(self.states[network])
        change(state)
        path = self.paths()[network]
        if path.is_dir() or network in ("dit", "vae", "text"):
            path.mkdir(parents=True, exist_ok=True)
            path = path / "model.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
        return path

    def paths(self) -> dict[str, Path]:
        add_ons = {name: self.folder / "add-ons" / f"{name}.safetensors" for name in ("ar", "vq", "injection")}
        return {name: self.folder / name for name in ("dit", "vae", "text")} | add_ons

    def config(self, network: str, fields: Any) -> None:
        (self.paths()[network] / "config.json").write_text(json.dumps(fields))

    def assume(self, **sections: Any) -> None:
        (self.folder / "add-ons" / "arlon.json").write_text(json.dumps(sections))

    def read(self, **options: Any) -> Checkpoint:
        paths = self.paths()
        return read_published(dit=paths["dit"], vae=paths["vae"], text_encoder=paths["text"], **options)

    def read_guided(self) -> Checkpoint:
        paths = self.paths()
        return self.read(**{name: paths[name] for name in ("ar", "vq", "injection")})


def command(published: Published, *arguments: str) -> list[str]:
    paths = published.paths()
    named = ["--dit", str(paths["dit"]), "--vae", str(paths["vae"]), "--text-encoder", str(paths["text"])]
    return ["export", *named, "-o", str(published.folder / "my.bundle"), *arguments]
