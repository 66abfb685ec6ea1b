"""What one request holds in GPU memory besides weights: exact bytes of every tensor, from the axes of graphs.py.

It follows the TensorRT backend: inputs from the host and outputs to the host have memory of their own for as long as
their engine is loaded; what stays on the device between runs lives as long as it is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from arlon_rt.config import ModelConfig
from arlon_rt.graphs import GraphSpec, TensorSpec, graph_specs, signature
from arlon_rt.memory.demand import Demand

ITEM_BYTES: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "bool": 1, "uint8": 1}
CONDITIONS = ("position", "rotary_cos", "rotary_sin", "fps")
"""Inputs of ``dit`` that are uploaded once a segment."""
OF_CAPTION = ("text_mask", "guidance_weights")
"""Inputs of ``dit`` that are uploaded once a prompt, beside its keys and values."""
FROM_ELSEWHERE = frozenset({"caption_kv", "features", *CONDITIONS, *OF_CAPTION})
"""Inputs of ``dit`` that are on the device before it runs."""
HELD = frozenset({"caption_kv", "features", "latents_out"})
"""Outputs that stay there."""
LOOPED = 64 << 10
"""More than what differs between the runs of a loop of the token model's step, and the tokens it makes."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """Memory that is not a graph's own."""

    name: str
    size: int
    """In bytes."""


def tensor_bytes(spec: GraphSpec, tensors: Iterable[TensorSpec], precision: str, sizes: Mapping[str, int]) -> int:
    """Bytes of these inputs and outputs at these sizes of the axes."""
    return sum(
        math.prod(sizes[a] if isinstance(a, str) else a for a in axes) * ITEM_BYTES[dtype]
        for _, dtype, axes in signature(tensors, precision)
    )


def needed_graphs(model: ModelConfig, demand: Demand) -> tuple[GraphSpec, ...]:
    """The graphs that a request may run, sized for it. Encoders of frames are among them: any request may go on."""
    specs = graph_specs(demand.narrowed(model)).values()
    return tuple(s for s in specs if demand.inject or not (s.network in ("ar", "vq") or s.name == "semantic"))


def buffers(spec: GraphSpec, demand: Demand, precision: str) -> int:
    """What an open engine keeps for its inputs from the host and its outputs to the host.

    The largest counts twice: one that has become too small is freed after the next is there.
    """
    aliases = {t.alias for t in spec.outputs if t.alias}
    elsewhere = FROM_ELSEWHERE if spec.name == "dit" else frozenset()
    inputs = [t for t in spec.inputs if t.name not in aliases | elsewhere]
    outputs = [t for t in spec.outputs if t.alias is None and t.name not in HELD]
    sizes = demand.sizes(spec)
    each = [tensor_bytes(spec, [tensor], precision, sizes) for tensor in (*inputs, *outputs)]
    return sum(each) + max(each) + (LOOPED if spec.name == "ar_step" else 0)


def held(model: ModelConfig, demand: Demand, precision: str) -> tuple[Held, ...]:
    """What stays on the device between runs, at most."""
    specs = {spec.name: spec for spec in needed_graphs(model, demand)}
    dit = specs["dit"]

    def of(spec: GraphSpec, names: Iterable[str], **changed: int) -> int:
        wanted = set(names)
        tensors = [t for t in (*spec.inputs, *spec.outputs) if t.name in wanted]
        return tensor_bytes(spec, tensors, precision, {**demand.sizes(spec), **changed})

    captions = {rows: of(dit, ("caption_kv", *OF_CAPTION), batch=rows) for rows in (1, 2)}
    caption = captions[1 + demand.guided]
    found = [
        Held(
            name="caption keys and values, those of the next prompt beside them",
            size=2 * caption + (captions[1] if demand.also_unguided else 0),
        ),
        Held(name="latents before and after a step", size=2 * of(dit, ("latents_out",))),
        Held(name="position tables", size=of(dit, CONDITIONS)),
    ]
    if model.injection:
        found.append(Held(name="injected features", size=of(dit, ("features",))))
    if "ar_step" in specs:
        caches = [t.alias for t in specs["ar_step"].outputs if t.alias]
        found.append(Held(name="caches of the token model", size=of(specs["ar_step"], caches)))
    return tuple(found)
