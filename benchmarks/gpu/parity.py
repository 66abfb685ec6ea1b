"""Parity: the inputs of a graph, its reference outputs, and the error of a result."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from arlon_export.onnx_graphs.feeds import check_sizes, numpy_dtype, opt_sizes, random_feed
from arlon_rt.config import ModelConfig
from arlon_rt.graphs import GraphSpec, TensorSpec
from gpu.device import Device
from gpu.models import Case
from gpu.runners import Array, Feed, TorchModule

TOLERANCE = {
    ("fp32", "cpu"): 1e-4,   # sums in another order
    ("fp32", "cuda"): 5e-3,  # TF32 products keep 10 bits of mantissa
    ("fp16", "cpu"): 2e-2, ("fp16", "cuda"): 2e-2,  # 10 bits of mantissa, through up to 56 blocks
}
"""Largest relative error ‖a−b‖/‖b‖ against PyTorch in exact float32 with the same weights."""

EAGER_FACTOR = 2.0
"""In fp16 the error may also be this many times that of PyTorch eager, if eager passed."""

LOGITS = "logits"
"""The key of the guided logits in exact float32, among the reference outputs of ar_step."""

SEED = 1


def graph_sizes(model: ModelConfig, spec: GraphSpec, *, small: bool) -> dict[str, int]:
    """Axis -> size: the ``opt`` sizes of graphs.py, or ``small`` ones. The token model runs one token of one row."""
    sizes = check_sizes(model, spec)[1] if small else opt_sizes(model, spec)
    if spec.network == "ar":
        sizes["batch"] = 1  # guidance is off by default
    if spec.name == "ar_step":
        sizes["length"] = 1
    return sizes


def make_feed(
    model: ModelConfig, spec: GraphSpec, sizes: Mapping[str, int], precision: str, seed: int = SEED
) -> dict[str, Array]:
    """Random inputs with which an error anywhere in the graph shows in its outputs."""
    feed: dict[str, Array] = dict(random_feed(model, spec, sizes, half=precision == "fp16", seed=seed))
    if spec.name == "dit":  # a whole step of noise to data, so that out - latents is the velocity
        feed["step_size"], feed["timestep"] = np.ones(1, np.float32), np.full(1, 500, np.float32)
        feed["noise_mask"] = np.zeros_like(feed["noise_mask"])
        feed["guidance_weights"] = np.linspace(0.75, 0.25, sizes["batch"], dtype=np.float32)
    if spec.name == "ar_step" and model.ar:  # greedy, with the cache three quarters full
        feed["top_k"], feed["guidance_weights"] = np.ones(1, np.int64), np.ones(sizes["batch"], np.float32)
        feed["write_index"] = np.full(sizes["batch"], 3 * model.ar.max_length // 4, np.int64)
    return feed


def reference_outputs(case: Case, feed: Feed, device: Device) -> dict[str, Array]:
    """The outputs of PyTorch in exact float32 with the weights of this precision; for ar_step also the `LOGITS`."""
    network = copy.deepcopy(case.network).float()
    wide = {t.name: feed[t.name].astype(numpy_dtype(t, half=False)) for t in case.spec.inputs}
    module = TorchModule(case.spec, network, wide, device, exact=True)
    module()
    outputs = module.outputs()
    if case.spec.name == "ar_step":
        outputs[LOGITS] = _guided_logits(network, wide, device)
    module.close()
    return outputs


@torch.inference_mode()
def _guided_logits(network: Any, feed: Feed, device: Device) -> Array:
    tokens, grid, index, weights, *_ = (torch.from_numpy(a).to(device.name) for a in feed.values())
    caches = [torch.from_numpy(a).to(device.name) for n, a in feed.items() if n.startswith(("key_", "value_"))]
    with device.exact_float32():
        rows, _ = network.step_logits(tokens, grid, index, caches)
    guided = (weights[:, None] * rows[:, : network.config.num_codes]).sum(0)
    logits: Array = guided.cpu().numpy()
    return logits


def largest_error(spec: GraphSpec, feed: Feed, outputs: Feed, reference: Feed) -> float:
    """The largest relative error of all outputs, or infinity if a value is not finite."""
    errors = []
    for tensor in spec.outputs:
        found, expected = outputs[tensor.name], reference[tensor.name]
        if tensor.name == "next_token":
            errors.append(_token_error(int(found.item()), int(expected.item()), reference.get(LOGITS)))
        else:
            errors.append(_relative_error(*(_comparable(tensor, output, feed) for output in (found, expected))))
    return max(errors) if all(math.isfinite(e) for e in errors) else math.inf


def _comparable(tensor: TensorSpec, output: Array, feed: Feed) -> Array:
    """The part of an output in which an error shows: no latents from before the step, no unwritten slots of a cache."""
    if tensor.name == "latents_out":
        return output - feed["latents"]
    if tensor.name == "frames":
        return output.astype(np.float32) - 127.5
    if tensor.alias:
        first = int(feed["write_index"][0]) if "write_index" in feed else 0
        written = feed["tokens" if "tokens" in feed else "last_hidden_state"].shape[1]
        return output[:, :, first : first + written].astype(np.float32)
    return output.astype(np.float32)


def _relative_error(found: Array, expected: Array) -> float:
    if found.shape != expected.shape:
        raise ValueError(f"the output has shape {found.shape}; the reference has {expected.shape}")
    scale = float(np.linalg.norm(expected.ravel()))
    if scale == 0.0:
        raise ValueError("the reference output is all zero, which would hide any error")
    return float(np.linalg.norm((found - expected).ravel())) / scale


def _token_error(found: int, expected: int, logits: Array | None) -> float:
    """How far the token's logit is below the best, in standard deviations of the exact logits: near ties may flip."""
    if logits is None:
        return 0.0 if found == expected else 1.0
    return float((logits.max() - logits[found]) / logits.std())
