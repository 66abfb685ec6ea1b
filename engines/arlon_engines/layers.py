"""The layers that a graph's network must have for what it computes: stated once, from the model configuration."""

from __future__ import annotations

from dataclasses import dataclass

from arlon_rt.config import ModelConfig
from arlon_rt.graphs import GraphSpec


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """What a parser that drops something silently would get wrong."""

    attention: int
    masked: int
    """Attention layers that see part of their keys only: by a mask, or causally."""
    cache_updates: tuple[tuple[str, str], ...]
    """(cache input, output): each updated in place by a layer of its own."""


def expected_layers(c: ModelConfig, spec: GraphSpec) -> LayerFacts:
    """What the graph ``spec`` of a model with this configuration must have.

    In ``ar_prefix`` the last layer's attention feeds nothing: its keys and values are all that is wanted of it.
    A pair of the DiT's blocks has four: spatial and temporal self-attention, each with cross-attention to the masked
    text. The autoencoder's 2-D part has one, in the middle.
    """
    ar = c.ar.num_layers if c.ar else 0
    attention, masked = {
        "text_encoder": (c.text.num_layers, c.text.num_layers),
        "ar_prefix": (ar - 1, ar - 1),
        "ar_step": (ar, ar),
        "dit": (4 * c.dit.depth, 2 * c.dit.depth),
        "vae_decoder": (1, 0),
        "vae_encoder": (1, 0),
    }.get(spec.name, (0, 0))
    updates = tuple((t.alias, t.name) for t in spec.outputs if t.alias)
    return LayerFacts(attention=attention, masked=masked, cache_updates=updates)
