"""The contract: the inputs, outputs, dtypes and axis ranges of every graph, for export, engines and runtime.

Sizes follow from the model configuration, so each graph has a function. An axis is an integer (a static size) or the
name of an `Axis`. The dtype ``"float"`` means the float type of the precision set: float32, float16 or bfloat16.
`differences` compares what a manifest, a graph or an engine states with the contract; nothing else does.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from arlon_rt.config import ARConfig, ModelConfig

Precision = Literal["fp32", "fp16", "bf16"]
FLOAT_DTYPE: Mapping[str, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""What the contract's dtype ``"float"`` means in each precision set."""
TensorSignature = tuple[str, str, tuple[int | str, ...]]
"""(name, dtype, axes): ``("latents", "float32", (1, 4, "frame", "latent_height", "latent_width"))``."""
Network = Literal["text", "ar", "vq", "dit", "vae"]
LANE_OF: Mapping[Network, str] = {
    "text": "drafting", "ar": "drafting", "vq": "drafting", "dit": "denoising", "vae": "decoding",
}
"""Which lane of a generation runs a network. Networks of one lane never run at once: they share a stream and
activations."""
ALL_LANES = "all lanes"
LATENTS = ("frame", "latent_height", "latent_width")
COARSE = ("coarse_frame", "coarse_height", "coarse_width")
CODES = ("code_frame", "code_height", "code_width")
DType = Literal["float", "float32", "int64", "bool", "uint8"]
StatedTensor = tuple[str, str, tuple[int | str | None, ...]]
"""An input or output as a backend or a file states it: (name, dtype, axes). ``None`` is an axis of unknown size."""
StatedBy = Literal["manifest", "graph", "engine"]
"""Who states the inputs and outputs that `differences` compares."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A dynamic axis with its smallest, usual and largest size."""

    name: str
    min: int
    opt: int
    max: int


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output."""

    name: str
    dtype: DType
    axes: tuple[int | str, ...]
    alias: str | None = None
    """Of an output: the input whose buffer it shares, which the graph updates in place."""


@dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """The signature of one graph."""

    name: str
    network: Network
    """Graphs of one network share one external data file."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: tuple[Axis, ...]

    def axis(self, name: str) -> Axis:
        return next(a for a in self.axes if a.name == name)


def _tensor(name: str, dtype: DType, *axes: int | str, alias: str | None = None) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, axes=axes, alias=alias)


def latent_length(c: ModelConfig, num_frames: int) -> int:
    """Latents of ``num_frames`` frames: 5 a 17-frame chunk, then one for each 4 frames begun (docs/spec.md 5.6)."""
    chunks, rest = divmod(num_frames, c.vae.chunk_frames)
    return chunks * c.vae.chunk_latents + math.ceil(rest / c.vae.time_stride)


@functools.lru_cache(maxsize=8)
def _axes(c: ModelConfig) -> dict[str, Axis]:
    """Every dynamic axis of the graphs, by name."""
    vae, video, prompt, stride = c.vae, c.video, c.text.max_length, c.vae.space_stride
    latents, chunk = latent_length(c, video.segment_frames), [1, vae.chunk_latents, vae.chunk_latents]
    _, *patch = c.dit.patch_size

    def space(smallest: int, *units: int) -> list[list[int]]:
        """The sizes of height and of width, each in its unit of so many pixels, rounded up."""
        pixels = zip(units, (video.height, video.width), video.largest, strict=True)
        return [[smallest, math.ceil(usual / unit), math.ceil(largest / unit)] for unit, usual, largest in pixels]

    height, width = space(2, stride, stride)
    sizes = {
        "batch": [1, 2, 2], "prompt": [1, prompt, prompt], "frame": [1, latents, latents], "chunk": chunk,
        "latent_height": height, "latent_width": width,
        "patches": [math.ceil(h / patch[0]) * math.ceil(w / patch[1]) for h, w in zip(height, width, strict=True)],
        "out_frame": [1, vae.chunk_frames, vae.time_stride * vae.chunk_latents],
        "in_frame": [1, vae.chunk_frames, vae.chunk_frames], "padded_frame": [vae.time_stride * n for n in chunk],
        "height": [stride * n for n in height], "width": [stride * n for n in width],
    }
    if c.ar:
        sizes["length"] = [1, 1, math.prod(c.ar.grid)]
    if c.vq:
        frames = math.ceil(latents / c.vq.stride[0])
        codes = [[1, frames, frames + 1], *space(1, *(stride * n for n in c.vq.stride[1:]))]
        for name, factor, of_codes in zip(("frame", "height", "width"), c.vq.stride, codes, strict=True):
            sizes[f"code_{name}"], sizes[f"coarse_{name}"] = of_codes, [factor * n for n in of_codes]
    return {name: Axis(name=name, min=low, opt=usual, max=high) for name, (low, usual, high) in sizes.items()}


def _graph(
    c: ModelConfig, name: str, network: Network, *, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]
) -> GraphSpec:
    inputs, outputs = tuple(inputs), tuple(outputs)
    named = {axis for tensor in (*inputs, *outputs) for axis in tensor.axes}
    axes = tuple(axis for axis in _axes(c).values() if axis.name in named)
    return GraphSpec(name=name, network=network, inputs=inputs, outputs=outputs, axes=axes)


def text_encoder(c: ModelConfig) -> GraphSpec:
    """Token ids -> last hidden state; once a prompt."""
    return _graph(
        c, "text_encoder", "text",
        inputs=(_tensor("input_ids", "int64", "batch", "prompt"), _tensor("attention_mask", "bool", "batch", "prompt")),
        outputs=(_tensor("last_hidden_state", "float", "batch", "prompt", c.text.d_model),),
    )


def _cache_tensors(a: ARConfig, out: bool) -> tuple[TensorSpec, ...]:
    shape = ("batch", a.num_heads, a.max_length, a.head_dim)
    names = [f"{kind}_{layer}" for layer in range(a.num_layers) for kind in ("key", "value")]
    return tuple(_tensor(f"{n}_out", "float", *shape, alias=n) if out else _tensor(n, "float", *shape) for n in names)


def ar_prefix(c: ModelConfig) -> GraphSpec:
    """Text rows (padded on the right) -> caches filled from slot 0; once a prompt change."""
    assert c.ar
    return _graph(
        c, "ar_prefix", "ar",
        inputs=(_tensor("last_hidden_state", "float", "batch", "prompt", c.ar.text_dim), *_cache_tensors(c.ar, False)),
        outputs=_cache_tensors(c.ar, True),
    )


def ar_step(c: ModelConfig) -> GraphSpec:
    """Tokens at ``write_index`` of each row -> one sampled token; guidance and sampling inside.

    ``tokens`` (1, length) is shared by all rows; ``grid`` (length, 3) is (code_frame, row, column), see
    `ARConfig.position_of`. Logits are sum_b w_b logits_b. ``uniform`` in [0, 1) picks from the kept mass.
    """
    assert c.ar
    a = c.ar
    return _graph(
        c, "ar_step", "ar",
        inputs=(
            _tensor("tokens", "int64", 1, "length"), _tensor("grid", "int64", "length", 3),
            _tensor("write_index", "int64", "batch"), _tensor("guidance_weights", "float32", "batch"),
            _tensor("temperature", "float32", 1), _tensor("top_k", "int64", 1), _tensor("top_p", "float32", 1),
            _tensor("uniform", "float32", 1), *_cache_tensors(a, False),
        ),
        outputs=(_tensor("next_token", "int64", 1, 1), *_cache_tensors(a, True)),
    )


def vq_decoder(c: ModelConfig) -> GraphSpec:
    """Tokens -> coarse latents (normalised, cropped by the host to the video's latents); once a segment."""
    assert c.vq
    return _graph(
        c, "vq_decoder", "vq",
        inputs=[_tensor("tokens", "int64", 1, *CODES)],
        outputs=[_tensor("coarse", "float32", 1, c.vq.latent_channels, *COARSE)],
    )


def vq_encoder(c: ModelConfig) -> GraphSpec:
    """Normalised latents, padded by the host to whole codes -> tokens; conditioning on clips only."""
    assert c.vq
    return _graph(
        c, "vq_encoder", "vq",
        inputs=[_tensor("latents", "float32", 1, c.vq.latent_channels, *COARSE)],
        outputs=[_tensor("tokens", "int64", 1, *CODES)],
    )


def caption(c: ModelConfig) -> GraphSpec:
    """Text -> cross-attention keys and values of all blocks (spatial 0, temporal 0, spatial 1, …); once a prompt.

    Rows whose ``use_null`` is True take the learned null caption (`y_embedder.y_embedding`) in place of the text.
    """
    d = c.dit
    return _graph(
        c, "caption", "dit",
        inputs=(
            _tensor("last_hidden_state", "float", "batch", "prompt", d.caption_channels),
            _tensor("use_null", "bool", "batch"),
        ),
        outputs=(_tensor("caption_kv", "float", 2 * d.depth, 2, "batch", d.num_heads, "prompt", d.head_dim),),
    )


def semantic(c: ModelConfig) -> GraphSpec:
    """Coarse latents -> (gamma, beta, alpha) of every injected layer; once a segment (docs/spec.md 4)."""
    assert c.injection
    return _graph(
        c, "semantic", "dit",
        inputs=(_tensor("coarse", "float32", 1, c.dit.in_channels, *LATENTS),),
        outputs=(_tensor("features", "float", len(c.injection.layers), 1, "frame", "patches", 3 * c.dit.hidden_size),),
    )


def dit(c: ModelConfig) -> GraphSpec:
    """One denoising step of the rectified flow; re-noising, guidance and the Euler update are inside.

    latents <- noise_mask ? (1 - t/1000) latents + (t/1000) noise : latents;
    v = sum_b w_b v_b;  out = frame_mask ? latents + step_size * v : latents.
    ``timestep`` is in 0..1000, ``step_size`` is (t_i - t_{i+1})/1000.
    ``rotary_*`` (frame, head_dim/2) are cos and sin of position * frequency; ``position`` is the 2-D sin-cos table.
    """
    d = c.dit
    inputs = [
        _tensor("latents", "float32", 1, d.in_channels, *LATENTS),
        _tensor("timestep", "float32", 1), _tensor("step_size", "float32", 1),
        _tensor("guidance_weights", "float32", "batch"), _tensor("frame_mask", "bool", "frame"),
        _tensor("noise", "float32", 1, d.in_channels, *LATENTS), _tensor("noise_mask", "bool", "frame"),
        _tensor("position", "float32", "patches", d.hidden_size),
        _tensor("rotary_cos", "float32", "frame", d.head_dim // 2),
        _tensor("rotary_sin", "float32", "frame", d.head_dim // 2), _tensor("fps", "float32", 1),
        _tensor("caption_kv", "float", 2 * d.depth, 2, "batch", d.num_heads, "prompt", d.head_dim),
        _tensor("text_mask", "bool", "batch", "prompt"),
    ]
    if c.injection:
        inputs.append(_tensor("features", "float", len(c.injection.layers), 1, "frame", "patches", 3 * d.hidden_size))
    latents_out = _tensor("latents_out", "float32", 1, d.in_channels, *LATENTS)
    return _graph(c, "dit", "dit", inputs=inputs, outputs=[latents_out])


def vae_decoder(c: ModelConfig) -> GraphSpec:
    """Normalised latents of one chunk -> uint8 RGB frames; once a chunk.

    ``frame_index`` picks the frames to return among the 4·chunk decoded ones: 3, 4, … for a 17-frame chunk.
    The float tensor ``pixels`` (frame, 3, height, width) in -1..1 comes before the uint8 nodes.
    """
    return _graph(
        c, "vae_decoder", "vae",
        inputs=(
            _tensor("latents", "float32", 1, c.vae.latent_embed_dim, "chunk", "latent_height", "latent_width"),
            _tensor("frame_index", "int64", "out_frame"),
        ),
        outputs=(_tensor("frames", "uint8", "out_frame", "height", "width", 3),),
    )


def vae_encoder(c: ModelConfig) -> GraphSpec:
    """uint8 RGB frames of one chunk -> normalised latents (posterior means); conditioning only.

    ``frame_index`` (time_stride · chunk) names the frame at each place of the padded chunk: 0 is the zero (padding)
    frame, i + 1 is frame i; for 17 frames 0, 0, 0, 1, …, 17. ``pixels`` (frame, 3, height, width) in -1..1 comes after
    the uint8 nodes.
    """
    return _graph(
        c, "vae_encoder", "vae",
        inputs=(
            _tensor("frames", "uint8", "in_frame", "height", "width", 3),
            _tensor("frame_index", "int64", "padded_frame"),
        ),
        outputs=(_tensor("latents", "float32", 1, c.vae.latent_embed_dim, "chunk", "latent_height", "latent_width"),),
    )


def graph_specs(c: ModelConfig) -> dict[str, GraphSpec]:
    """Every graph of a bundle with this configuration, in the order of a generation."""
    specs = [text_encoder(c)]
    if c.ar:
        specs += [ar_prefix(c), ar_step(c)]
    if c.vq:
        specs += [vq_decoder(c), *([vq_encoder(c)] if c.vq.has_encoder else [])]
    specs.append(caption(c))
    if c.injection:
        specs.append(semantic(c))
    specs += [dit(c), vae_decoder(c), vae_encoder(c)]
    return {s.name: s for s in specs}


def signature(tensors: Iterable[TensorSpec], precision: str) -> tuple[TensorSignature, ...]:
    """The contract's tensors as a precision set has them: dtype ``"float"`` replaced by its float type."""
    return tuple((t.name, FLOAT_DTYPE[precision] if t.dtype == "float" else t.dtype, t.axes) for t in tensors)


def differences(
    spec: GraphSpec, precision: str, inputs: Sequence[StatedTensor], outputs: Sequence[StatedTensor], *,
    stated_by: StatedBy,
) -> list[str]:
    """How stated inputs and outputs differ from the contract, one message each; empty when they agree.

    Args:
        stated_by: what may differ. A manifest: nothing. A graph: the names of dynamic axes, and the static sizes of an
            output may be unknown. An engine: also the order of its tensors, which are addressed by name; any size may
            be unknown, and its profiles may fix the size of a dynamic axis.
    """
    found = []
    for kind, stated, tensors in (("input", inputs, spec.inputs), ("output", outputs, spec.outputs)):
        contract = {name: (dtype, axes) for name, dtype, axes in signature(tensors, precision)}
        names, expected = [name for name, _, _ in stated], list(contract)
        if names != expected and not (stated_by == "engine" and sorted(names) == sorted(expected)):
            found.append(f"{kind}s are {', '.join(names) or 'none'}; the contract has {', '.join(expected)}")
            continue
        for name, dtype, axes in stated:
            expected_dtype, expected_axes = contract[name]
            fits = len(axes) == len(expected_axes) and all(
                _axis_fits(spec, size, axis, stated_by, unknown=stated_by == "engine" or kind == "output")
                for size, axis in zip(axes, expected_axes, strict=True)
            )
            if dtype != expected_dtype or not fits:
                contract_text = f"{expected_dtype} {shape_text(expected_axes)}"
                found.append(f"{kind} {name} is {dtype} {shape_text(axes)}; the contract has {contract_text}")
    return found


def _axis_fits(spec: GraphSpec, size: int | str | None, axis: int | str, stated_by: StatedBy, *, unknown: bool) -> bool:
    """Whether a stated size serves an axis of the contract; ``unknown``: a static size may be left out."""
    if size == axis or stated_by == "manifest":
        return size == axis
    if isinstance(axis, int):
        return unknown and not isinstance(size, int)
    return not isinstance(size, int) or stated_by == "engine" or spec.axis(axis).min == size == spec.axis(axis).max


def shape_text(axes: Iterable[int | str | None]) -> str:
    """``(1, frame, ?)`` of ``(1, "frame", None)``."""
    return f"({', '.join('?' if axis is None else str(axis) for axis in axes)})"
