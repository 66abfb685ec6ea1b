"""Each graph of the contract as a torch module, whose inputs and outputs stand in the order of graphs.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from arlon_export.modules.vae import frames_to_pixels, pixels_to_frames
from arlon_rt.graphs import GraphSpec

NAMED: dict[str, str] = {"vae_decoder": "pixels", "vae_encoder": "pixels"}
"""Graph -> a float tensor inside it that keeps its name in the .onnx file; graphs.py says what it holds."""

PREFIX = "network."
"""The prefix of the state-dict keys of the network that a `GraphModule` wraps."""


def _vae_decoder(network: Any, latents: Tensor, frame_index: Tensor) -> Sequence[Tensor]:
    pixels = network.decode_pixels(latents, frame_index)
    return pixels_to_frames(pixels), pixels


def _vae_encoder(network: Any, frames: Tensor, frame_index: Tensor) -> Sequence[Tensor]:
    pixels = frames_to_pixels(frames)
    return network.encode_pixels(pixels, frame_index), pixels


def _ar_step(network: Any, *inputs: Tensor) -> Sequence[Tensor]:
    *arguments, caches = *inputs[:8], list(inputs[8:])
    token, caches = network.step(*arguments, caches)
    return token, *caches


_CALLS: dict[str, Callable[..., Sequence[Tensor]]] = {
    "text_encoder": lambda network, *inputs: (network(*inputs),),
    "ar_prefix": lambda network, text, *caches: network.prefix(text, list(caches)),
    "ar_step": _ar_step,
    "vq_decoder": lambda network, tokens: (network.decode(tokens),),
    "vq_encoder": lambda network, latents: (network.encode_whole(latents),),
    "caption": lambda network, *inputs: (network.caption_kv(*inputs),),
    "semantic": lambda network, coarse: (network.semantic(coarse),),
    "dit": lambda network, *inputs: (network.step(*inputs),),
    "vae_decoder": _vae_decoder,
    "vae_encoder": _vae_encoder,
}


class GraphModule(nn.Module):
    """One graph of ``network``: inputs of the spec -> outputs of the spec, then the `NAMED` tensor if it has one."""

    def __init__(self, spec: GraphSpec, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._call = _CALLS[spec.name]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._call(self.network, *inputs))
