"""Example inputs of a graph: axis sizes for tracing and for checks, and random values within each input's range."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from arlon_rt.config import ModelConfig
from arlon_rt.graphs import Axis, GraphSpec, TensorSpec

Sizes = Mapping[str, int]
Feed = dict[str, NDArray[np.generic]]

_LARGER: dict[str, int] = {
    "batch": 2, "prompt": 7, "length": 3, "code_frame": 3, "code_height": 2, "code_width": 3,
    "frame": 6, "latent_height": 5, "latent_width": 8, "chunk": 5, "out_frame": 11, "in_frame": 9,
}
"""Sizes of the free axes while tracing. They are at least 2, because the tracer takes 1 for a constant."""


def derived_sizes(c: ModelConfig, free: Sizes) -> dict[str, int]:
    """The sizes of all axes: the free ones, and those that follow from them."""
    sizes = dict(free)
    if c.vq:
        for axis, stride in zip(("frame", "height", "width"), c.vq.stride, strict=True):
            if f"code_{axis}" in free:
                sizes[f"coarse_{axis}"] = stride * free[f"code_{axis}"]
    if "latent_height" in free:
        _, ph, pw = c.dit.patch_size
        sizes["patches"] = math.ceil(free["latent_height"] / ph) * math.ceil(free["latent_width"] / pw)
        sizes["height"] = c.vae.space_stride * free["latent_height"]
        sizes["width"] = c.vae.space_stride * free["latent_width"]
    if "chunk" in free:
        sizes["padded_frame"] = c.vae.time_stride * free["chunk"]
    return sizes


def trace_sizes(c: ModelConfig, spec: GraphSpec) -> dict[str, int]:
    """The sizes for tracing. They are 2 even where an axis has the maximum 1."""
    return derived_sizes(c, {a.name: max(2, min(_LARGER[a.name], a.max)) for a in spec.axes if a.name in _LARGER})


def check_sizes(c: ModelConfig, spec: GraphSpec) -> tuple[dict[str, int], dict[str, int]]:
    """Two sets of sizes for checks: every axis at its minimum, and at about twice its traced size."""
    def larger(axis: Axis) -> int:
        return min(2 * _LARGER[axis.name] - axis.min, axis.max)

    free = [a for a in spec.axes if a.name in _LARGER]
    return derived_sizes(c, {a.name: a.min for a in free}), derived_sizes(c, {a.name: larger(a) for a in free})


def opt_sizes(c: ModelConfig, spec: GraphSpec) -> dict[str, int]:
    """The sizes for which the manifest states FLOPs and bytes."""
    return {a.name: a.opt for a in spec.axes}


def shape(tensor: TensorSpec, sizes: Sizes) -> tuple[int, ...]:
    """The tensor's shape at these sizes."""
    return tuple(sizes[a] if isinstance(a, str) else a for a in tensor.axes)


def random_feed(c: ModelConfig, spec: GraphSpec, sizes: Sizes, *, half: bool, seed: int) -> Feed:
    """Random inputs within their ranges: ids in the vocabulary, writes inside the caches, masks mostly True."""
    rng = np.random.default_rng(seed)
    values = _values(c, spec, sizes)
    feed: Feed = {}
    for tensor in spec.inputs:
        size = shape(tensor, sizes)
        make = values.get(tensor.name)
        if make is not None:
            array = np.asarray(make(rng, size))
        elif tensor.dtype == "bool":
            array = rng.random(size) < 0.7
        else:
            array = rng.standard_normal(size)
        feed[tensor.name] = array.astype(numpy_dtype(tensor, half))
    return feed


def numpy_dtype(tensor: TensorSpec, half: bool) -> str:
    """The tensor's numpy dtype; ``"float"`` is float16 if ``half``, else float32."""
    if tensor.dtype == "float":
        return "float16" if half else "float32"
    return tensor.dtype


def _values(
    c: ModelConfig, spec: GraphSpec, sizes: Sizes
) -> dict[str, Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.generic]]]:
    """How each input is drawn that is not normal noise or a random mask."""
    def integers(low: int, high: int) -> Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.generic]]:
        return lambda rng, size: rng.integers(low, high, size)

    def uniform(low: float, high: float) -> Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.generic]]:
        return lambda rng, size: rng.uniform(low, high, size)

    codes = c.vq.num_codes if c.vq else 2
    draws = {
        "input_ids": integers(0, c.text.vocab_size), "tokens": integers(0, codes), "frames": integers(0, 256),
        "attention_mask": lambda rng, size: np.arange(size[1]) < rng.integers(1, size[1] + 1, (size[0], 1)),
        "text_mask": lambda rng, size: np.arange(size[1]) < rng.integers(1, size[1] + 1, (size[0], 1)),
        "timestep": uniform(1, 1000), "step_size": uniform(0.5, 1.5), "fps": uniform(8, 60),
        "temperature": uniform(0.5, 1.5), "top_p": uniform(0.5, 1.0), "uniform": uniform(0, 1),
        "rotary_cos": uniform(-1, 1), "rotary_sin": uniform(-1, 1),
    }
    if c.ar and spec.name == "ar_step":
        limit = c.ar.max_length - sizes["length"] + 1
        draws["write_index"] = integers(0, limit)
        draws["top_k"] = integers(1, c.ar.max_top_k + 1)
        draws["grid"] = lambda rng, size: rng.integers(0, np.array(c.ar.grid), size) if c.ar else np.zeros(size)
    if spec.name == "dit":
        # The first frame is always generated and never re-noised, so a single frame shows a wrong velocity too.
        draws["frame_mask"] = lambda rng, size: (rng.random(size) < 0.7) | (np.arange(*size) == 0)
        draws["noise_mask"] = lambda rng, size: (rng.random(size) < 0.3) & (np.arange(*size) != 0)
    if spec.name == "vae_decoder":
        draws["frame_index"] = integers(0, sizes["chunk"] * c.vae.time_stride)
    if spec.name == "vae_encoder":
        draws["frame_index"] = integers(0, sizes["in_frame"] + 1)
    return draws
