"""Memory for activations: what TensorRT said of an engine that was loaded before, and until then an estimate."""

from __future__ import annotations

import json
import logging
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
"""How many tensors as large as a graph's widest are alive at once, rounded up from what TensorRT for RTX 1.7.1 states
("Total Activation Memory") when it compiles networks of the published widths in fp16 for 256x256x68 and 512x512x68
(benchmarks/compiled_activations.py); ``vq_encoder`` was not compiled and is taken to be like ``vae_encoder``."""
BASE = 8 << 20
"""What it asks for even of the smallest graph."""
RULE = "estimated"
"""`ALIVE` times the widest tensor, and `BASE`."""


def estimate(model: ModelConfig, spec: GraphSpec, demand: Demand, precision: str) -> int:
    """Activations of a graph of which no engine was loaded yet; ``model`` and ``spec`` are narrowed to the demand."""
    elements = widest(model, spec.name, demand.sizes(spec))
    return BASE + round(ALIVE[spec.name] * elements * ITEM_BYTES[FLOAT_DTYPE[precision]])


def widest(model: ModelConfig, graph: str, sizes: Mapping[str, int]) -> int:
    """Elements of the largest tensor inside a graph, as its network's configuration has it."""
    def of(*axes: str) -> int:
        count = 1
        for axis in axes:
            count *= sizes[axis]
        return count

    d, vae = model.dit, model.vae
    if graph == "text_encoder":   # both halves of the gated layer
        return of("batch", "prompt") * 2 * model.text.d_ff
    if graph == "caption":
        return of("batch", "prompt") * d.caption_channels
    if graph == "semantic":   # gamma, beta and alpha of one layer
        return of("frame", "patches") * 3 * d.hidden_size
    if graph == "dit":
        return of("batch", "frame", "patches") * round(max(3, d.mlp_ratio) * d.hidden_size)
    if graph == "vae_decoder":   # the last stage begins with the channels of the one before
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
    """SHA-256 of a plan -> bytes of activations for each of its profiles, of engines that were loaded here."""
    return state_folder() / "activations.json"


def recorded(sha256: str, profiles: Sequence[EngineProfile], sizes: Mapping[str, int]) -> int | None:
    """The most that TensorRT asked for in the profiles that take these sizes; ``None``: it was not loaded yet."""
    told = _read().get(sha256)
    if not told:
        return None
    fitting = [
        size for size, profile in zip(told, profiles, strict=False)
        if all(low <= sizes.get(axis, low) <= high for axis, (low, _, high) in profile.ranges.items())
    ]
    return max(fitting or told)


def remember(sha256: str, told: Sequence[int]) -> None:
    """Keep what TensorRT says of an engine that was just loaded. Without a record plans are estimates, so that a folder
    that cannot be written is a warning and no error."""
    known = _read()
    before = known.get(sha256, [])
    most = [max(pair) for pair in zip(told, before, strict=True)] if len(before) == len(told) else list(told)
    if most == before:
        return
    path = record_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({**known, sha256: most}, indent=1).encode("ascii") + b"\n")
    except OSError as error:
        LOG.warning("%s cannot be written, so plans of memory stay estimates: %s", path, error)


def _read() -> dict[str, list[int]]:
    """The record; what is damaged counts as nothing, since it is made again by loading engines."""
    try:
        with record_path().open("rb") as file:
            tree = json.loads(file.read(MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return {
        name: sizes for name, sizes in (tree.items() if isinstance(tree, dict) else ())
        if isinstance(sizes, list) and sizes and all(type(n) is int and 0 <= n < 1 << 60 for n in sizes)
    }
