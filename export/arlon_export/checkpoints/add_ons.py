"""Configurations of ARLON's add-ons (token model, VQ-VAE, semantic injection): from tensor shapes and ``arlon.json``.

No trained add-ons are public. Whoever trains some states in ``arlon.json``, beside the weights, what shapes cannot
say, for example::

    {"ar": {"num_heads": 20}, "vq": {"stride": [4, 16, 16]}, "defaults": {"top_k": 50}}

Every section and field may be left out. Its default is the assumption that docs/spec.md marks [A].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from arlon_export.checkpoints.checkpoint import read_json
from arlon_export.checkpoints.published_config import Shapes, ratio
from arlon_export.checkpoints.state_dict import StateDict, renamed
from arlon_rt.bundle import MAX_TOP_K, from_json
from arlon_rt.config import ARConfig, InjectionConfig, VQConfig
from arlon_rt.errors import BundleError
from arlon_rt.options import GenerateOptions

ASSUMPTIONS = "arlon.json"
INJECTION_PREFIX = "injection."


@dataclass(frozen=True, kw_only=True)
class ARAssumptions:
    """Section ``"ar"`` (docs/spec.md 3)."""

    num_heads: int = 16
    max_length: int | None = None
    """Cache slots. The default has room for the longest prompt, BOS and a code at each place of the position tables."""
    max_top_k: int | None = None
    """Largest ``top_k`` of a request; the default is 1024, or the number of codes if that is smaller."""
    rope_theta: float = 10_000.0
    position_of: Literal["self", "next"] = "next"
    """Whether a token carries its own grid position or that of the token it predicts."""


@dataclass(frozen=True, kw_only=True)
class VQAssumptions:
    """Section ``"vq"`` (docs/spec.md 2)."""

    stride: tuple[int, int, int] = (4, 8, 8)
    """Latents per code along (frame, height, width)."""
    norm_groups: int = 32


@dataclass(frozen=True, kw_only=True)
class InjectionAssumptions:
    """Section ``"injection"`` (docs/spec.md 4)."""

    layers: tuple[int, ...] | None = None
    """Injected block pairs in rising order; the default is the first ones, one for each adapter."""


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """``arlon.json``."""

    ar: ARAssumptions = ARAssumptions()
    vq: VQAssumptions = VQAssumptions()
    injection: InjectionAssumptions = InjectionAssumptions()
    defaults: GenerateOptions = field(default_factory=GenerateOptions)
    """Default options of a request: steps, guidance, sampling (docs/spec.md 9)."""


def read_assumptions(paths: Iterable[Path]) -> Assumptions:
    """The ``arlon.json`` beside these weights. Several folders may have one, each with other sections.

    Raises:
        BundleError: a field is unknown or of the wrong type, or two files have the same section.
    """
    sections: dict[str, object] = {}
    for folder in dict.fromkeys(path if path.is_dir() else path.parent for path in paths):
        file = folder / ASSUMPTIONS
        if not file.is_file():
            continue
        stated = read_json(file)
        from_json(Assumptions, stated, str(file))
        if twice := sections.keys() & stated.keys():
            raise BundleError(f"{file}: {', '.join(sorted(twice))} is stated in another {ASSUMPTIONS}, too; keep one")
        sections |= stated
    return from_json(Assumptions, sections, ASSUMPTIONS)


def ar_config(path: Path, found: StateDict, assumed: ARAssumptions, *, max_prompt: int) -> tuple[ARConfig, str]:
    """The token model's configuration, and a note that names the tensors whose shapes were read."""
    shapes = Shapes(found, str(path))
    rows = [shapes.of(f"positions.{axis}.weight", 2)[0] for axis in range(3)]
    num_codes = shapes.of("token_embedding.weight", 2)[0] - 2
    return ARConfig(
        num_codes=num_codes, hidden_size=shapes.width("norm.weight"), num_layers=shapes.count("blocks."),
        num_heads=assumed.num_heads, ffn_size=shapes.width("blocks.0.fc1.bias"),
        text_dim=shapes.of("text_projection.weight", 2)[1], grid=(rows[0], rows[1], rows[2]),
        max_length=max_prompt + 1 + math.prod(rows) if assumed.max_length is None else assumed.max_length,
        max_top_k=min(MAX_TOP_K, num_codes) if assumed.max_top_k is None else assumed.max_top_k,
        rope_theta=assumed.rope_theta, position_of=assumed.position_of,
    ), _note(shapes, "ar")


def vq_config(path: Path, found: StateDict, assumed: VQAssumptions) -> tuple[VQConfig, str]:
    """The VQ-VAE's configuration, and a note that names the tensors whose shapes were read."""
    shapes = Shapes(found, str(path))
    num_codes, code_dim = shapes.of("codebook.weight", 2)
    stages = shapes.count("encoder.stages.")
    return VQConfig(
        num_codes=num_codes, code_dim=code_dim, stride=assumed.stride,
        channels=tuple(shapes.width(f"encoder.stages.{i}.0.bias") for i in range(stages)),
        num_res_blocks=shapes.count("encoder.stages.0.") - 1,  # number 0 is the strided convolution
        norm_groups=assumed.norm_groups, latent_channels=shapes.width("decoder.conv_out.bias"),
        has_encoder=True,
    ), _note(shapes, "vq")


def injection_config(
    path: Path, found: StateDict, assumed: InjectionAssumptions, *, hidden_size: int
) -> tuple[InjectionConfig, str]:
    """The configuration of the adapters, whose keys start with ``injection.``, and the same kind of note.

    Raises:
        BundleError: the stated layers do not rise, or their number is not that of the adapters.
    """
    shapes = Shapes(found, str(path))
    adapters = shapes.count(f"{INJECTION_PREFIX}adapters.")
    width = shapes.width(f"{INJECTION_PREFIX}adapters.0.fc1.bias")
    layers = tuple(range(adapters)) if assumed.layers is None else assumed.layers
    _check_layers(path, layers, adapters)
    return InjectionConfig(layers=layers, adapter_ratio=ratio(width, hidden_size)), _note(shapes, "injection")


def _check_layers(path: Path, layers: Sequence[int], adapters: int) -> None:
    if list(layers) != sorted(set(layers)):
        raise BundleError(f"{ASSUMPTIONS}: injection.layers is {list(layers)}; they must rise, each named once")
    if len(layers) != adapters:
        raise BundleError(
            f"{ASSUMPTIONS}: injection.layers names {len(layers)} block pairs, but {path} has {adapters} adapters"
        )


def _note(shapes: Shapes, section: str) -> str:
    return f"{shapes.note()}; all else is as section {section!r} of {ASSUMPTIONS} says, or its defaults"


def with_injection_prefix(found: StateDict) -> StateDict:
    """The adapters' tensors under the prefix ``injection.``, which their keys have in the transformer."""
    if any(name.startswith(INJECTION_PREFIX) for name in found):
        return found
    return renamed(found, lambda name: INJECTION_PREFIX + name)
