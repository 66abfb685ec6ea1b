"""What a parsed network is checked for before it is compiled: nothing was dropped, copied or widened without a word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arlon_engines.errors import BuildError
from arlon_engines.onnx_nodes import Node
from arlon_rt.backends.trt import TYPES
from arlon_rt.bundle import GraphEntry
from arlon_rt.config import ModelConfig
from arlon_rt.graphs import GraphSpec, StatedTensor, differences

_OPERATORS = {
    "MATRIX_MULTIPLY": ("MatMul", "Gemm"), "CONVOLUTION": ("Conv",), "DECONVOLUTION": ("ConvTranspose",),
    "ATTENTION_INPUT": ("Attention",),
}
"""Heavy layers -> the ONNX operators that they come from, and that a manifest names if they are kept in float32."""
ATTENTION_INPUTS = 4
"""The inputs of an Attention node that TensorRT reads: query, key, value, mask."""


@dataclass(frozen=True, kw_only=True)
class NetworkCounts:
    """A network in numbers."""

    layers: Mapping[str, int]
    wider: Mapping[str, int]
    """Heavy layers that compute in float32 in a half-precision set."""


def check_network(
    trt: Any, network: Any, spec: GraphSpec, precision: str, entry: GraphEntry, expected: LayerFacts,
    nodes: Sequence[Node],
) -> NetworkCounts:
    """The numbers of a network that has all that its graph must have.

    Raises:
        BuildError: the message lists every difference.
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    types = Counter(layer.type.name for layer in layers)
    wider = _wider(layers, precision)
    problems = [
        *_dropped(nodes), *_contract_differences(network, spec, precision), *_unread(network, layers, spec),
        *_attention_problems(trt, layers, expected), *_cache_problems(trt, layers, expected),
        *_widened(wider, precision, entry),
    ]
    if problems:
        raise BuildError(f"{spec.name}.{precision}: {'; '.join(problems)}")
    return NetworkCounts(layers=dict(sorted(types.items())), wider=wider)


def check_warnings(graph: str, warnings: Sequence[str]) -> None:
    """Raise `BuildError` if TensorRT warned, while it parsed or compiled, of an input that it does not use."""
    unused = [" ".join(line.split()) for line in warnings if "unused input" in line.lower()]
    if unused:
        raise BuildError(f"{graph}: TensorRT ignores an input that changes the result: {'; '.join(unused)}")


def _dropped(nodes: Sequence[Node]) -> Iterator[str]:
    """TensorRT for RTX 1.7 ignores the inputs of Attention after the mask, without a warning."""
    for node in nodes:
        extra = [name for name in node.inputs[ATTENTION_INPUTS:] if name]
        if node.operator == "Attention" and extra:
            yield f"TensorRT ignores the input {', '.join(extra)} of node {node.name} (Attention)"


def _contract_differences(network: Any, spec: GraphSpec, precision: str) -> list[str]:
    def stated(tensor: Any) -> StatedTensor:
        dtype = tensor.dtype.name
        return tensor.name, TYPES.get(dtype, dtype), tuple(None if size < 0 else size for size in tensor.shape)

    return differences(
        spec, precision, [stated(network.get_input(i)) for i in range(network.num_inputs)],
        [stated(network.get_output(i)) for i in range(network.num_outputs)], stated_by="graph",
    )


def _unread(network: Any, layers: Sequence[Any], spec: GraphSpec) -> Iterator[str]:
    """TensorRT parses an input that no node reads without a warning."""
    read = {t.name for layer in layers for i in range(layer.num_inputs) if (t := layer.get_input(i)) is not None}
    names = {t.name for t in (network.get_input(i) for i in range(network.num_inputs))}
    for tensor in spec.inputs:
        if tensor.name in names and tensor.name not in read:
            yield f"no layer reads the input {tensor.name}"


def _attention_problems(trt: Any, layers: Sequence[Any], expected: LayerFacts) -> Iterator[str]:
    found = attention_layers(trt, layers)
    if len(found) != expected.attention:
        yield f"{len(found)} attention layers; the model has {expected.attention}"
        return
    masked = sum(
        layer.attention.mask is not None or layer.attention.causal_kind != trt.CausalMaskKind.NONE for layer in found
    )
    if masked != expected.masked:
        yield f"{masked} of its attention layers are masked; {expected.masked} must be"


def _cache_problems(trt: Any, layers: Sequence[Any], expected: LayerFacts) -> Iterator[str]:
    """A cache that no single update layer reads and writes is copied, or is not updated at all."""
    updates = {
        (layer.get_input(0).name, layer.get_output(0).name)
        for layer in layers if layer.type == trt.LayerType.KV_CACHE_UPDATE
    }
    copied = [f"{cache} -> {out}" for cache, out in expected.cache_updates if (cache, out) not in updates]
    if copied:
        yield (
            f"{len(expected.cache_updates) - len(copied)} of {len(expected.cache_updates)} caches are updated in "
            f"place; not {', '.join(copied[:4])}{', …' if len(copied) > 4 else ''}"
        )
    elif len(updates) > len(expected.cache_updates):
        yield f"{len(updates)} layers update caches; the model has {len(expected.cache_updates)}"


def _wider(layers: Sequence[Any], precision: str) -> dict[str, int]:
    if precision == "fp32":
        return {}
    heavy = [layer for layer in layers if layer.type.name in _OPERATORS]
    return dict(sorted(Counter(layer.type.name for layer in heavy if layer.get_input(0).dtype.name == "FLOAT").items()))


def _widened(wider: Mapping[str, int], precision: str, entry: GraphEntry) -> Iterator[str]:
    for kind, count in wider.items():
        if not any(operator in entry.kept_fp32 for operator in _OPERATORS[kind]):
            yield (
                f"{count} {kind} layers compute in float32, and the manifest gives no reason to keep "
                f"{_OPERATORS[kind][0]} in it"
            )


def attention_layers(trt: Any, layers: Sequence[Any]) -> list[Any]:
    """The attention layers as `IAttentionInputLayer`; the bindings hand out the base class."""
    found = [layer for layer in layers if layer.type == trt.LayerType.ATTENTION_INPUT]
    for layer in found:
        layer.__class__ = trt.IAttentionInputLayer
    return found


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """Counts that are wrong where a parser dropped something silently."""

    attention: int
    masked: int
    """Attention layers that see only a part of their keys: by a mask, or causally."""
    cache_updates: tuple[tuple[str, str], ...]
    """(cache input, output) of each cache, which a layer of its own updates in place."""


def expected_layers(c: ModelConfig, spec: GraphSpec) -> LayerFacts:
    """The counts of the graph ``spec`` of a model with this configuration.

    In ``ar_prefix`` the last layer's attention feeds nothing: only its keys and values are needed.
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
