"""What one request holds in GPU memory besides weights: exact bytes of every tensor, from the axes of graphs.py.

It follows the TensorRT backend. Inputs that come from the host and outputs that go there have memory for as long as
their engine is loaded. A tensor that stays on the device between runs has memory for as long as it is used.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

from arlon_rt.config import ModelConfig
from arlon_rt.graphs import GraphSpec, TensorSpec, graph_specs, signature
from arlon_rt.memory.demand import Demand

ITEM_BYTES: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "bool": 1, "uint8": 1}
SEGMENT_INPUTS = ("position", "rotary_cos", "rotary_sin", "fps")
"""Inputs of ``dit`` that are uploaded once a segment."""
CAPTION_INPUTS = ("text_mask", "guidance_weights")
"""Inputs of ``dit`` that are uploaded once a prompt, beside its keys and values."""
DEVICE_INPUTS = frozenset({"caption_kv", "features", *SEGMENT_INPUTS, *CAPTION_INPUTS})
"""Inputs of ``dit`` that are on the device before it runs."""
DEVICE_OUTPUTS = frozenset({"caption_kv", "features", "latents_out"})
"""Outputs, of any graph, that stay on the device."""
LOOP_BYTES = 64 << 10
"""An upper bound for what a loop of ``ar_step`` uploads for its runs, and for the tokens that it returns."""


def tensor_bytes(tensors: Iterable[TensorSpec], precision: str, sizes: Mapping[str, int]) -> int:
    """Bytes of these inputs and outputs at these sizes of the axes."""
    return sum(
        math.prod(sizes[a] if isinstance(a, str) else a for a in axes) * ITEM_BYTES[dtype]
        for _, dtype, axes in signature(tensors, precision)
    )


def moved_bytes(spec: GraphSpec, precision: str) -> int:
    """Bytes of all inputs, and of all outputs that are not written in place, at the ``opt`` sizes."""
    tensors = [*spec.inputs, *(t for t in spec.outputs if t.alias is None)]
    return tensor_bytes(tensors, precision, {axis.name: axis.opt for axis in spec.axes})


def needed_graphs(model: ModelConfig, demand: Demand) -> tuple[GraphSpec, ...]:
    """The graphs that a request may run, sized for it. Encoders of frames are among them: any request may continue
    footage."""
    specs = graph_specs(demand.narrowed(model)).values()
    return tuple(s for s in specs if demand.inject or not (s.network in ("ar", "vq") or s.name == "semantic"))


def buffers(spec: GraphSpec, demand: Demand, precision: str) -> int:
    """Bytes that a loaded engine keeps for its inputs from the host and its outputs to the host.

    The largest counts twice: a buffer that has become too small is freed after the larger one is allocated.
    """
    aliases = {t.alias for t in spec.outputs if t.alias}
    on_device = DEVICE_INPUTS if spec.name == "dit" else frozenset()
    inputs = [t for t in spec.inputs if t.name not in aliases | on_device]
    outputs = [t for t in spec.outputs if t.alias is None and t.name not in DEVICE_OUTPUTS]
    sizes = demand.sizes(spec)
    each = [tensor_bytes([tensor], precision, sizes) for tensor in (*inputs, *outputs)]
    return sum(each) + max(each) + (LOOP_BYTES if spec.name == "ar_step" else 0)


def held(model: ModelConfig, demand: Demand, precision: str) -> dict[str, int]:
    """The most bytes that stay on the device between runs, by what they are; they belong to no single graph."""
    specs = {spec.name: spec for spec in needed_graphs(model, demand)}
    dit = specs["dit"]

    def of(spec: GraphSpec, names: Collection[str], **changed: int) -> int:
        tensors = [t for t in (*spec.inputs, *spec.outputs) if t.name in names]
        return tensor_bytes(tensors, precision, {**demand.sizes(spec), **changed})

    captions = {rows: of(dit, ("caption_kv", *CAPTION_INPUTS), batch=rows) for rows in (1, 2)}
    of_prompt, unguided = captions[1 + demand.guided], captions[1] if demand.also_unguided else 0
    found = {
        "caption keys and values, of this prompt and the next": 2 * of_prompt + unguided,
        "latents before and after a step": 2 * of(dit, ("latents_out",)),
        "position tables": of(dit, SEGMENT_INPUTS),
    }
    if model.injection:
        found["injected features"] = of(dit, ("features",))
    if "ar_step" in specs:
        caches = [t.alias for t in specs["ar_step"].outputs if t.alias]
        found["caches of the token model"] = of(specs["ar_step"], caches)
    return found
