"""A pipeline straight from the stages' checkpoints, in PyTorch: to look at a training run without exporting it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from arlon_export.modules.ar import TokenModel
from arlon_export.modules.stdit3 import STDiT3
from arlon_export.modules.vae import VideoVAE
from arlon_export.modules.vq import VQVAE
from arlon_export.wrappers import GraphModule
from arlon_rt.config import ModelConfig
from arlon_rt.graphs import GraphSpec, graph_specs
from arlon_rt.pipeline import Pipeline
from arlon_rt.stages import Stages
from demo.config import ar_config, dit_config, injection_config, model_config, vae_config, vq_config
from demo.latents import LatentPool
from demo.train_text import load_text_encoder
from demo.training import load_averaged

DEFAULTS: dict[str, Any] = {
    "num_frames": 68, "num_inference_steps": 10, "guidance_scale": 1.0, "ar_guidance_scale": 1.25,
    "temperature": 0.7, "top_k": 50, "top_p": 0.9,
}
"""Of the demo bundle."""


class TorchSession:
    """One graph of the contract as its PyTorch module, fp32; arrays serve as handles."""

    float_dtype = np.dtype(np.float32)

    def __init__(self, spec: GraphSpec, network: nn.Module) -> None:
        self.spec, self._module = spec, GraphModule(spec, network)

    def run(self, feed: Mapping[str, NDArray[Any]], hold: Collection[str] = ()) -> dict[str, NDArray[Any]]:
        with torch.inference_mode():
            outputs = self._module(*(torch.from_numpy(np.ascontiguousarray(feed[t.name])) for t in self.spec.inputs))
        return {t.name: value.numpy() for t, value in zip(self.spec.outputs, outputs, strict=False)}

    def upload(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        return array

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Unexported:
    """What a pipeline asks of a bundle."""

    model: ModelConfig
    tokenizer_path: Path
    defaults: Mapping[str, Any]


def load_networks(out: Path, dit: str = "dit") -> tuple[ModelConfig, dict[str, nn.Module]]:
    """The averaged weights of every stage in ``out``, by network, and their configuration.

    Shift and scale of the latents, measured on the pool, go into the autoencoder. ``dit`` names the transformer's
    recipe and checkpoint.
    """
    pool = LatentPool(out / "latents")
    pool.refresh()
    shift, scale = pool.statistics()
    model = model_config(shift, scale, dit)
    networks = {
        "text": load_text_encoder(out, "cpu")[1],
        "ar": load_averaged(out, "ar", TokenModel(ar_config()), "cpu"),
        "vq": load_averaged(out, "vq", VQVAE(vq_config()), "cpu"),
        "dit": load_averaged(out, dit, STDiT3(dit_config(), injection_config(dit)), "cpu"),
        "vae": load_averaged(out, "autoencoder", VideoVAE(vae_config()), "cpu"),
    }
    measured = VideoVAE(vae_config(shift, scale))  # the stage trains with shift 0 and scale 1
    networks["vae"].load_state_dict({"shift": measured.shift, "scale": measured.scale}, strict=False)
    return model, networks


def open_trained(out: Path, dit: str = "dit") -> Pipeline:
    """A pipeline of the checkpoints in ``out``."""
    model, networks = load_networks(out, dit)
    return pipeline_of(model, networks, out / "tokenizer.model", DEFAULTS)


def pipeline_of(
    model: ModelConfig, networks: Mapping[str, nn.Module], tokenizer: Path, defaults: Mapping[str, Any]
) -> Pipeline:
    """A pipeline whose graphs are PyTorch modules, fp32 on the CPU."""
    unexported: Any = Unexported(model=model, tokenizer_path=tokenizer, defaults=defaults)
    sessions: Any = {name: TorchSession(spec, networks[spec.network]) for name, spec in graph_specs(model).items()}
    return Pipeline(unexported, Stages.of(unexported, sessions, "fp32"))
