"""A checkpoint on disk: the folder that training writes and `arlon-rt export` reads.

It holds ``config.json`` (the `ModelConfig`), a ``<network>.safetensors`` for each network (its state dict),
``tokenizer.model``, ``defaults.json`` (generation defaults) and ``provenance.json`` (how it was trained). No file is
unpickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from arlon_export.checkpoints.network import Network, open_network
from arlon_export.checkpoints.state_dict import StateDict, check_fit, open_state_dict
from arlon_rt.bundle import from_json
from arlon_rt.config import ModelConfig
from arlon_rt.errors import BundleError, BundleNotFoundError

TOKENIZER = "tokenizer.model"
NETWORKS = ("text", "ar", "vq", "dit", "vae")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Trained networks: their configuration and state dicts."""

    model: ModelConfig
    weights: Mapping[str, StateDict]
    """Network (text, ar, vq, dit, vae) -> its tensors, which are read when needed."""
    tokenizer: Path | None
    """``None`` if the text encoder is absent too."""
    defaults: Mapping[str, Any]
    provenance: Mapping[str, Any]

    def module(self, network: str) -> nn.Module:
        """The torch module of ``network`` with its weights, in fp32 and eval mode.

        Raises:
            BundleError: keys are missing or unknown, or their shapes do not fit the configuration; all are named.
        """
        weights = self._weights(network)
        module = build_module(self.model, network)
        load_weights(module, weights, f"the checkpoint's {network}")
        return module.eval().requires_grad_(False)

    def network(self, network: str) -> Network:
        """``network`` without its weights in memory; it raises as `module` does."""
        what = f"the checkpoint's {network}"
        return open_network(network, lambda: build_module(self.model, network), self._weights(network), what)

    def _weights(self, network: str) -> StateDict:
        if network not in self.weights:
            known = ", ".join(self.weights) or "none"
            raise BundleError(f"the checkpoint has no weights of {network}; it has those of: {known}")
        return self.weights[network]


def build_module(model: ModelConfig, network: str) -> nn.Module:
    """The torch module of one network, with fresh weights."""
    from arlon_export.modules.ar import TokenModel
    from arlon_export.modules.stdit3 import STDiT3
    from arlon_export.modules.t5 import T5Encoder
    from arlon_export.modules.vae import VideoVAE
    from arlon_export.modules.vq import VQVAE

    if network == "text":
        return T5Encoder(model.text)
    if network == "ar" and model.ar:
        return TokenModel(model.ar)
    if network == "vq" and model.vq:
        return VQVAE(model.vq)
    if network == "dit":
        return STDiT3(model.dit, model.injection)
    if network == "vae":
        return VideoVAE(model.vae)
    raise BundleError(f"the configuration has no network {network!r}")


def expected_shapes(model: ModelConfig, network: str) -> dict[str, tuple[int, ...]]:
    """Key -> shape of a network's state dict; no memory is allocated.

    Raises:
        BundleError: the configuration has no such network, or sizes of which none can be built.
    """
    try:
        with torch.device("meta"):
            module = build_module(model, network)
    except BundleError:
        raise
    except ValueError as error:
        raise BundleError(f"no network can be built from the configuration of {network}: {error}") from error
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@torch.no_grad()
def load_weights(module: nn.Module, weights: StateDict, what: str) -> None:
    """Copy ``weights`` into ``module`` tensor by tensor; ``what`` names them in errors.

    Raises:
        BundleError: keys or shapes are not those of the module (all are named), or a file cannot be read any more.
    """
    own = module.state_dict()
    check_fit(weights, {name: tuple(tensor.shape) for name, tensor in own.items()}, what)
    for name, tensor in own.items():
        tensor.copy_(weights[name].load())


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint folder; no weights are loaded yet.

    Raises:
        BundleNotFoundError: the folder does not exist, or has no config.json.
        BundleError: a JSON file is damaged or does not describe a model, or a file of weights is damaged.
    """
    if not (folder / "config.json").is_file():
        raise BundleNotFoundError(f"{folder} is not a checkpoint: it has no config.json")
    tokenizer = folder / TOKENIZER
    files = {name: folder / f"{name}.safetensors" for name in NETWORKS}
    return Checkpoint(
        model=from_json(ModelConfig, read_json(folder / "config.json"), "config.json"),
        weights={name: open_state_dict(path) for name, path in files.items() if path.is_file()},
        tokenizer=tokenizer if tokenizer.is_file() else None,
        defaults=read_json(folder / "defaults.json"),
        provenance=read_json(folder / "provenance.json"),
    )


def write_checkpoint(
    folder: Path, *, model: ModelConfig, defaults: Mapping[str, Any], provenance: Mapping[str, Any],
    tokenizer: Path | None = None,
) -> None:
    """Write everything except the weights, which `write_weights` adds for each network."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in (("config", asdict(model)), ("defaults", dict(defaults)), ("provenance", dict(provenance))):
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if tokenizer:
        shutil.copyfile(tokenizer, folder / TOKENIZER)


def write_weights(folder: Path, network: str, state_dict: Mapping[str, Tensor], *, half: bool = False) -> None:
    """Write one network's state dict. ``half`` rounds it to fp16, so that a bundle stores two bytes per weight."""
    dtype = torch.float16 if half else torch.float32
    tensors = {
        name: t.detach().to("cpu", dtype if t.is_floating_point() else t.dtype).contiguous().clone()
        for name, t in state_dict.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / f"{network}.safetensors")


def read_json(path: Path) -> Any:
    """The content of a JSON file; the error on a missing or damaged one names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleNotFoundError(f"{path} is missing from the checkpoint") from error
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read as JSON: {error}") from error
