"""Which model configurations make sense: their sizes are positive and bounded, and their networks fit together.

The check comes before anything is allocated, so a damaged or hostile manifest costs an error and no memory.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from arlon_rt.config import ModelConfig
from arlon_rt.errors import BundleError
from arlon_rt.graphs import graph_specs

MAX_SIZE = 1 << 20
"""The largest size of any kind: widths, vocabularies, cache slots, pixels."""
MAX_DEPTH = 1024
"""The largest number of layers, of blocks, and of entries of a list."""
MAX_TOP_K = 1024
"""TensorRT refuses a TopK over 3840, and sampling slows down from 1024 on."""
MAX_ELEMENTS = 1 << 34
"""The largest number of elements of one input or output of a graph."""

_COUNTS = frozenset({"depth", "num_layers", "num_res_blocks", "layers_per_block"})


def check_model(c: ModelConfig) -> None:
    """Raise `BundleError` that names the field unless every size is positive and bounded and the networks fit."""
    _check_sizes(c, "model")
    if len({c.ar is None, c.vq is None, c.injection is None}) == 2:
        missing = [n for n in ("ar", "vq", "injection") if getattr(c, n) is None]
        raise BundleError(f"model has no {' and no '.join(missing)}; ar, vq and injection come together or not at all")
    for holds, message in _rules(c):
        if not holds:
            raise BundleError(f"model: {message}")
    for spec in graph_specs(c).values():
        for tensor in (*spec.inputs, *spec.outputs):
            count = math.prod(spec.axis(a).max if isinstance(a, str) else a for a in tensor.axes)
            if count > MAX_ELEMENTS:
                where = f"{tensor.name} of graph {spec.name}"
                raise BundleError(f"model: {where} would have {count:.3g} elements; at most {MAX_ELEMENTS:.3g}")


def _check_sizes(value: Any, where: str) -> None:
    """Raise `BundleError` unless integers are 1..MAX_SIZE and lists hold 1..MAX_DEPTH entries; `_rules` has floats."""
    if dataclasses.is_dataclass(value):
        for f in dataclasses.fields(value):
            _check_sizes(getattr(value, f.name), f"{where}.{f.name}")
    elif isinstance(value, tuple):
        if not 1 <= len(value) <= MAX_DEPTH:
            raise BundleError(f"{where} has {len(value)} entries; 1..{MAX_DEPTH} are expected")
        for i, item in enumerate(value):
            _check_sizes(item, f"{where}[{i}]")
    elif isinstance(value, int) and not isinstance(value, bool):
        smallest = 0 if where.startswith("model.injection.layers") else 1
        largest = MAX_DEPTH if where.rpartition(".")[2] in _COUNTS else MAX_SIZE
        if not smallest <= value <= largest:
            raise BundleError(f"{where} is {value!s:.24}; it must be {smallest}..{largest}")


def _rules(c: ModelConfig) -> list[tuple[bool, str]]:
    """Each rule that ties two fields together: (whether it holds, the message if not)."""
    d, v, video = c.dit, c.vae, c.video
    channels, (highest, widest) = v.latent_embed_dim, video.largest
    rules = [
        (d.hidden_size % d.num_heads == 0,
         f"dit.hidden_size {d.hidden_size} is no multiple of num_heads {d.num_heads}"),
        (d.head_dim % 2 == 0, f"dit: {d.head_dim} channels a head; rotary embedding needs an even number"),
        (d.hidden_size % 4 == 0, f"dit.hidden_size {d.hidden_size} is no multiple of 4 (2-D position table)"),
        (d.caption_channels == c.text.d_model,
         f"dit.caption_channels is {d.caption_channels}, text.d_model {c.text.d_model}"),
        (d.model_max_length >= c.text.max_length,
         f"dit.model_max_length {d.model_max_length} is shorter than text.max_length {c.text.max_length}"),
        (d.in_channels == channels, f"dit.in_channels is {d.in_channels}, vae.latent_embed_dim {channels}"),
        (d.out_channels in (d.in_channels, 2 * d.in_channels),
         f"dit.out_channels is {d.out_channels}; it must be in_channels {d.in_channels} or twice that"),
        (len(v.shift) == len(v.scale) == channels, f"vae.shift and vae.scale must have {channels} entries"),
        (all(s > 0 for s in v.scale), "vae.scale must be positive"),
        (v.scaling_factor > 0, f"vae.scaling_factor is {v.scaling_factor}; it must be positive"),
        (len(v.block_out_channels) <= 8, f"vae.block_out_channels has {len(v.block_out_channels)} levels; 8 at most"),
        (len(v.temporal_downsample) <= 8, "vae.temporal_downsample has more than 8 levels"),
        (video.overlap_frames == v.chunk_frames,
         f"video.overlap_frames is {video.overlap_frames}; it must be vae.chunk_frames {v.chunk_frames}"),
        (video.segment_frames > v.chunk_frames and video.segment_frames % v.chunk_frames == 0,
         f"video.segment_frames is {video.segment_frames}; two or more times vae.chunk_frames {v.chunk_frames}"),
        (highest >= video.height, f"video.max_height is below height {video.height}"),
        (widest >= video.width, f"video.max_width is below width {video.width}"),
        (c.text.layer_norm_epsilon > 0, "text.layer_norm_epsilon must be positive"),
        (d.rope_theta > 0 and d.mlp_ratio > 0, "dit.rope_theta and dit.mlp_ratio must be positive"),
    ]
    return rules + _guided_rules(c)


def _guided_rules(c: ModelConfig) -> list[tuple[bool, str]]:
    """The rules of the token model, the VQ-VAE and the injection, where the model has them."""
    a, q, injection = c.ar, c.vq, c.injection
    if not (a and q and injection):
        return []
    window = c.text.max_length + math.prod(a.grid)
    return [
        (a.hidden_size % a.num_heads == 0, f"ar.hidden_size {a.hidden_size} is no multiple of num_heads {a.num_heads}"),
        (a.head_dim % 2 == 0, f"ar: {a.head_dim} channels a head; rotary embedding needs an even number"),
        (a.rope_theta > 0, "ar.rope_theta must be positive"),
        (a.text_dim == c.text.d_model, f"ar.text_dim is {a.text_dim}, text.d_model {c.text.d_model}"),
        (a.num_codes == q.num_codes, f"ar.num_codes is {a.num_codes}, vq.num_codes {q.num_codes}"),
        (a.max_length >= window, f"ar.max_length is {a.max_length}; longest prompt and largest window need {window}"),
        (a.max_top_k <= min(MAX_TOP_K, a.num_codes),
         f"ar.max_top_k is {a.max_top_k}; at most {min(MAX_TOP_K, a.num_codes)}"),
        (all(s & (s - 1) == 0 and s <= 64 for s in q.stride), f"vq.stride {q.stride}: powers of two, at most 64"),
        (len(q.encoder_channels or q.channels) == len(q.channels),
         f"vq.encoder_channels is {q.encoder_channels}; as many levels as vq.channels {q.channels} are needed"),
        (q.latent_channels == c.vae.latent_embed_dim,
         f"vq.latent_channels is {q.latent_channels}, vae.latent_embed_dim {c.vae.latent_embed_dim}"),
        (max(injection.layers) < c.dit.depth,
         f"injection.layers names {max(injection.layers)}; dit.depth {c.dit.depth} ends at {c.dit.depth - 1}"),
        (len(set(injection.layers)) == len(injection.layers), "injection.layers names a layer twice"),
        (injection.adapter_ratio > 0, "injection.adapter_ratio must be positive"),
    ]
