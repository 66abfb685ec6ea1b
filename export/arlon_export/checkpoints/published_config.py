"""Configurations of published networks: from config.json, and from the tensors' shapes for what it does not state."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from arlon_export.checkpoints.checkpoint import read_json
from arlon_export.checkpoints.state_dict import StateDict, StoredTensor, config_file
from arlon_rt.bundle import from_json
from arlon_rt.config import DiTConfig, TextConfig, VAEConfig
from arlon_rt.errors import BundleError

T = TypeVar("T")

PROMPT_SUFFIX = " aesthetic score: 6.5."
PUBLISHED_VAE = {"norm_num_groups": 32, "scaling_factor": 0.18215}
"""Fields that neither shapes nor config.json state; Open-Sora v1.2 has them in its code (docs/spec.md 5.6)."""

_DIT_FIXED = {"qk_norm": True}
"""Fields of a published config.json for which this architecture supports one value."""
_DIT_IRRELEVANT = frozenset({
    "class_dropout_prob", "drop_path", "enable_flash_attn", "enable_layernorm_kernel", "enable_sequence_parallelism",
    "only_train_temporal", "freeze_y_embedder", "skip_y_embedder", "input_size", "model_type", "architectures",
    "torch_dtype", "dtype", "transformers_version", "_name_or_path", "auto_map",
})
"""Fields that concern training or loading and change no output."""
_T5_FIELDS = (
    "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "relative_attention_num_buckets",
    "relative_attention_max_distance", "layer_norm_epsilon",
)
"""The fields that are read of T5's config.json. Its ``max_length`` is one of text generation and is not read."""


class Shapes:
    """Reads sizes from tensor shapes, and remembers the shapes for error messages."""

    def __init__(self, found: StateDict, what: str) -> None:
        self.found = found
        self._what = what
        self._read: dict[str, tuple[int, ...]] = {}

    def of(self, name: str, rank: int) -> tuple[int, ...]:
        """The shape of a tensor of ``rank`` axes. A `BundleError` names one that is missing or has another rank."""
        if name not in self.found:
            raise BundleError(f"{self._what} has no {name}; sizes are read from its shape")
        shape = self.found[name].shape
        if len(shape) != rank or 0 in shape:
            raise BundleError(f"{self._what}: {name} is {shape}; {rank} axes are expected, none of them empty")
        self._read[name] = shape
        return shape

    def width(self, name: str) -> int:
        """The length of a bias or of a norm's weight, which cannot be transposed."""
        return self.of(name, 1)[0]

    def count(self, prefix: str) -> int:
        """The length of a module list: one more than the largest number after ``prefix`` in a key."""
        numbers = [re.match(r"(\d{1,6})\.", n[len(prefix):], re.ASCII) for n in self.found if n.startswith(prefix)]
        return max((int(number[1]) + 1 for number in numbers if number), default=0)

    def note(self) -> str:
        """The shapes that were read, for the end of an error message."""
        return f"{self._what}: sizes were read from {', '.join(f'{n} {s}' for n, s in self._read.items())}"


def settle(
    kind: type[T], stated: Mapping[str, Any], stated_in: str, shapes: Shapes, read: Callable[[Shapes], dict[str, Any]]
) -> tuple[T, str]:
    """A configuration from the stated fields and, for the others, from shapes; and a note on where it comes from.

    A stated field wins over the tensors. If they disagree, `check_fit` finds each key that does not fit, and the note
    names the field that is the cause.

    Raises:
        BundleError: a required field is neither stated nor readable, or a stated value has the wrong type.
    """
    required = {f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}  # type: ignore[arg-type]
    try:
        seen = read(shapes)
    except BundleError as error:
        if unknown := sorted(required - stated.keys()):
            raise BundleError(f"{error}; {', '.join(unknown)} can be stated in {stated_in} instead") from None
        seen = {}
    config = from_json(kind, {**seen, **stated}, stated_in)
    differing = [
        f"{name} {getattr(config, name)} (the tensors: {value})"
        for name, value in seen.items() if getattr(config, name) != value
    ]
    return config, f"{stated_in} states {', '.join(differing)}" if differing else shapes.note()


def ratio(part: int, whole: int) -> float:
    """``part / whole``, rounded such that ``int(whole * ratio)`` is ``part``."""
    value = part / whole
    return value if int(whole * value) == part else math.nextafter(value, math.inf)


def read_dit_config(path: Path) -> DiTConfig:
    """The configuration in the transformer's published config.json; a field of another architecture is an error."""
    return from_json(DiTConfig, _stated_dit(path), str(path))


def dit_config(path: Path, found: StateDict) -> tuple[DiTConfig, str]:
    """STDiT3's configuration, and the note of `settle`."""
    file = config_file(path)
    stated = _stated_dit(file) if file else {}
    config, note = settle(DiTConfig, stated, _name(file, path), Shapes(found, str(path)), _dit_sizes)
    if config.patch_size[0] != 1:
        raise BundleError(f"{path}: patch_size is {config.patch_size}; it must start with 1, one latent frame")
    return config, note


def _stated_dit(path: Path) -> dict[str, Any]:
    fields = _object(path)
    for name, value in _DIT_FIXED.items():
        if fields.get(name, value) != value:
            raise BundleError(f"{path}: {name} is {fields[name]!r}; only {value!r} is supported")
    dropped = _DIT_FIXED.keys() | _DIT_IRRELEVANT | {"pred_sigma"}
    stated = {name: value for name, value in fields.items() if name not in dropped}
    in_channels = fields.get("in_channels", DiTConfig.in_channels)
    if "pred_sigma" in fields and isinstance(in_channels, int):
        stated["out_channels"] = (2 if fields["pred_sigma"] else 1) * in_channels
    return stated


def _dit_sizes(shapes: Shapes) -> dict[str, Any]:
    size = shapes.width("x_embedder.proj.bias")
    _, in_channels, *patch = shapes.of("x_embedder.proj.weight", 5)
    max_length, caption_channels = shapes.of("y_embedder.y_embedding", 2)
    return {
        "hidden_size": size,
        "depth": max(shapes.count("spatial_blocks."), shapes.count("temporal_blocks.")),
        "num_heads": size // shapes.width("spatial_blocks.0.attn.q_norm.weight"),
        "caption_channels": caption_channels,
        "model_max_length": max_length,
        "mlp_ratio": ratio(shapes.width("spatial_blocks.0.mlp.fc1.bias"), size),
        "in_channels": in_channels,
        "out_channels": shapes.width("final_layer.linear.bias") // math.prod(patch),
        "patch_size": tuple(patch),
    }


def vae_config(path: Path, found: StateDict) -> tuple[VAEConfig, str]:
    """The video autoencoder's configuration, and the note of `settle`.

    ``scale`` and ``shift`` come from the file's tensors, else config.json, else Open-Sora (docs/spec.md 5.6).
    """
    file = config_file(path)
    known = {f.name for f in dataclasses.fields(VAEConfig)}
    published = _object(file) if file else {}
    stated = PUBLISHED_VAE | {name: value for name, value in published.items() if name in known}
    stated |= {name: values for name in ("scale", "shift") if (values := _statistics(found, name))}
    return settle(VAEConfig, stated, _name(file, path), Shapes(found, str(path)), _vae_sizes)


def with_statistics(found: StateDict, config: VAEConfig) -> StateDict:
    """The autoencoder's tensors; ``scale`` and ``shift`` come from the configuration if the file has none."""
    statistics = {}
    for name, values in (("scale", config.scale), ("shift", config.shift)):
        tensor = torch.tensor(values).reshape(1, -1, 1, 1, 1)
        statistics[name] = StoredTensor(name, tuple(tensor.shape), tensor.dtype, tensor.detach)
    return {**statistics, **found}


def _statistics(found: StateDict, name: str) -> list[float]:
    """The values of a (1, channels, 1, 1, 1) tensor; empty if it is missing or has another shape."""
    if name not in found or len(found[name].shape) != 5 or math.prod(found[name].shape) != found[name].shape[1]:
        return []
    values: list[float] = found[name].load().flatten().double().tolist()
    return values


def _vae_sizes(shapes: Shapes) -> dict[str, Any]:
    frame, time = "spatial_vae.module.", "temporal_vae."
    blocks, levels = shapes.count(f"{frame}encoder.down_blocks."), shapes.count(f"{time}encoder.block_res_blocks.")
    widths = [shapes.width(f"{time}encoder.block_res_blocks.{i}.0.norm2.weight") for i in range(levels)]
    filters = math.gcd(*widths)
    return {
        "latent_channels": shapes.width(f"{frame}post_quant_conv.bias"),
        "embed_dim": shapes.width(f"{time}post_quant_conv.conv.bias"),
        "latent_embed_dim": shapes.width(f"{time}quant_conv.conv.bias") // 2,
        "block_out_channels": tuple(
            shapes.width(f"{frame}encoder.down_blocks.{i}.resnets.0.conv1.bias") for i in range(blocks)
        ),
        "layers_per_block": shapes.count(f"{frame}encoder.down_blocks.0.resnets."),
        "filters": filters,
        "channel_multipliers": tuple(width // filters for width in widths),
        "num_res_blocks": shapes.count(f"{time}encoder.block_res_blocks.0."),
        "temporal_downsample": tuple(
            f"{time}encoder.conv_blocks.{i}.conv.bias" in shapes.found for i in range(levels - 1)
        ),
    }


def text_config(path: Path, found: StateDict, *, max_length: int) -> tuple[TextConfig, str]:
    """T5's configuration with Open-Sora's prompt suffix and length, and the note of `settle`.

    Raises:
        BundleError: the weights are not those of T5 v1.1 with gated GELU, or `settle` raised it.
    """
    file = config_file(path)
    published = _object(file) if file else {}
    _check_gated(path, found, published)
    stated = {name: published[name] for name in _T5_FIELDS if name in published}
    stated |= {"max_length": max_length, "prompt_suffix": PROMPT_SUFFIX}
    return settle(TextConfig, stated, _name(file, path), Shapes(found, str(path)), _t5_sizes)


def _check_gated(path: Path, found: StateDict, published: Mapping[str, Any]) -> None:
    single = next((name for name in found if name.endswith(".DenseReluDense.wi.weight")), None)
    activation = published.get("feed_forward_proj", "gated-gelu")
    if single or activation != "gated-gelu":
        sign = f"it has {single}" if single else f"feed_forward_proj is {activation!r} in config.json"
        raise BundleError(f"{path} is no T5 v1.1 with gated GELU ({sign}); Open-Sora v1.2 uses DeepFloyd/t5-v1_1-xxl")


def _t5_sizes(shapes: Shapes) -> dict[str, Any]:
    attention, mlp = (f"encoder.block.0.layer.{i}." for i in (0, 1))
    buckets, heads = shapes.of(f"{attention}SelfAttention.relative_attention_bias.weight", 2)
    return {
        "vocab_size": shapes.of("shared.weight", 2)[0],
        "d_model": shapes.width("encoder.final_layer_norm.weight"),
        "d_kv": shapes.of(f"{attention}SelfAttention.q.weight", 2)[0] // heads,
        "d_ff": shapes.of(f"{mlp}DenseReluDense.wi_0.weight", 2)[0],
        "num_layers": shapes.count("encoder.block."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
    }


def _object(path: Path) -> dict[str, Any]:
    fields = read_json(path)
    if not isinstance(fields, dict):
        raise BundleError(f"{path} holds {fields!r:.80}; an object is expected")
    return fields


def _name(file: Path | None, path: Path) -> str:
    """The path of the config.json that states fields, or could."""
    return str(file or (path if path.is_dir() else path.parent) / "config.json")
