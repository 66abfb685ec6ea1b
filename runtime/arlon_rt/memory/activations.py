"""Memory for activations: what TensorRT stated when an engine was loaded before, or until then an estimate."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from arlon_rt.bundle import MAX_BYTES, EngineProfile
from arlon_rt.config import ModelConfig
from arlon_rt.files import state_folder, write_atomically
from arlon_rt.graphs import FLOAT_DTYPE, GraphSpec
from arlon_rt.memory.demand import Demand
from arlon_rt.memory.footprint import ITEM_BYTES

LOG = logging.getLogger(__name__)
ALIVE: Mapping[str, float] = {
    "text_encoder": 3.2, "ar_prefix": 1.0, "ar_step": 2.1, "vq_decoder": 2.5, "vq_encoder": 4.2, "caption": 1.7,
    "semantic": 1.7, "dit": 3.9, "vae_decoder": 3.1, "vae_encoder": 4.2,
}
"""How many tensors as large as a graph's widest are alive at once.

They are rounded up from the "Total Activation Memory" that TensorRT for RTX 1.7.1 states when it compiles networks of
the published widths in fp16 for 256x256x68 and 512x512x68 (benchmarks/compiled_activations.py). ``vq_encoder`` was not
compiled and is assumed to be like ``vae_encoder``."""
BASE = 8 << 20
"""Bytes that TensorRT asks for even with the smallest graph."""


def estimate(model: ModelConfig, spec: GraphSpec, demand: Demand, precision: str) -> int:
    """Bytes of activations of a graph whose engine was never loaded: `BASE`, and `ALIVE` times its widest tensor.

    ``model`` and ``spec`` are narrowed to ``demand``.
    """
    elements = widest(model, spec.name, demand.sizes(spec))
    return BASE + round(ALIVE[spec.name] * elements * ITEM_BYTES[FLOAT_DTYPE[precision]])


def widest(model: ModelConfig, graph: str, sizes: Mapping[str, int]) -> int:
    """Elements of the largest tensor inside a graph, from its network's configuration."""
    def of(*axes: str) -> int:
        return math.prod(sizes[axis] for axis in axes)

    d, vae = model.dit, model.vae
    if graph == "text_encoder":   # both halves of the gated layer
        return of("batch", "prompt") * 2 * model.text.d_ff
    if graph == "caption":
        return of("batch", "prompt") * d.caption_channels
    if graph == "semantic":   # gamma, beta and alpha of one layer
        return of("frame", "patches") * 3 * d.hidden_size
    if graph == "dit":
        return of("batch", "frame", "patches") * round(max(3, d.mlp_ratio) * d.hidden_size)
    if graph == "vae_decoder":   # the last block begins with the channels of the block before it
        return of("out_frame", "height", "width") * max(vae.block_out_channels[:2])
    if graph == "vae_encoder":
        return of("in_frame", "height", "width") * vae.block_out_channels[0]
    if graph in ("ar_prefix", "ar_step"):
        assert model.ar
        return of("batch", "prompt" if graph == "ar_prefix" else "length") * model.ar.ffn_size
    assert model.vq
    channels = model.vq.channels if graph == "vq_decoder" else model.vq.encoder_channels or model.vq.channels
    return of("coarse_frame", "coarse_height", "coarse_width") * channels[0]


def record_path() -> Path:
    """The file that keeps, for each engine that was loaded: SHA-256 of its plan -> bytes of activations a profile."""
    return state_folder() / "activations.json"


def recorded(sha256: str, profiles: Sequence[EngineProfile], sizes: Mapping[str, int]) -> int | None:
    """Bytes of activations that TensorRT stated for an engine, the most of the profiles that take these sizes.

    ``None``: the engine was not loaded yet.
    """
    stated = _read().get(sha256)
    if not stated:
        return None
    fitting = [
        size for size, profile in zip(stated, profiles, strict=False)
        if all(low <= sizes.get(axis, low) <= high for axis, (low, _, high) in profile.ranges.items())
    ]
    return max(fitting or stated)


def remember(sha256: str, stated: Sequence[int]) -> None:
    """Record the activations of an engine that was just loaded, for each of its profiles.

    A folder that cannot be written is only a warning: without the record plans are estimates.
    """
    known = _read()
    before = known.get(sha256, [])
    most = [max(pair) for pair in zip(stated, before, strict=True)] if len(before) == len(stated) else list(stated)
    if most == before:
        return
    path = record_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({**known, sha256: most}, indent=1).encode("ascii") + b"\n")
    except OSError as error:
        LOG.warning("%s cannot be written, so memory plans stay estimates: %s", path, error)


def _read() -> dict[str, list[int]]:
    """The record. A damaged one counts as empty: loading engines fills it again."""
    try:
        with record_path().open("rb") as file:
            tree = json.loads(file.read(MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return {
        name: sizes for name, sizes in (tree.items() if isinstance(tree, dict) else ())
        if isinstance(sizes, list) and sizes and all(type(n) is int and 0 <= n < 1 << 60 for n in sizes)
    }
