"""Reads published weights as a `Checkpoint`: those of Open-Sora v1.2, T5 v1.1 and ARLON's add-ons."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arlon_export.checkpoints.add_ons import (
    Assumptions,
    ar_config,
    injection_config,
    read_assumptions,
    vq_config,
    with_injection_prefix,
)
from arlon_export.checkpoints.checkpoint import Checkpoint, expected_shapes
from arlon_export.checkpoints.published_config import dit_config, text_config, vae_config, with_statistics
from arlon_export.checkpoints.state_dict import StateDict, check_fit, merge, open_state_dict, renamed, weight_files
from arlon_rt.bundle import check_model
from arlon_rt.config import DiTConfig, ModelConfig, TextConfig, VAEConfig, VideoConfig
from arlon_rt.errors import BundleError, BundleNotFoundError, OptionsError
from arlon_rt.options import OPTIONS, GenerateOptions

TOKENIZER = "spiece.model"
GUIDED_DEFAULTS = {name: OPTIONS[name].default for name in ("num_inference_steps", "guidance_scale")}
BASELINE_DEFAULTS = GUIDED_DEFAULTS | {"num_inference_steps": 30}
EMBEDDING_ALIAS = "encoder.embed_tokens.weight"
"""T5's second name of ``shared.weight``. A file holds one of the two names, or both."""


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The tensors of one network, not yet compared with its configuration."""

    what: str
    found: StateDict
    note: str
    """Where the configuration comes from; it ends an error message."""
    ignored: tuple[str, ...] = ()
    """Keys that the file may have and the network does not use."""


def read_published(
    *, dit: Path, vae: Path, text_encoder: Path, ar: Path | None = None, vq: Path | None = None,
    injection: Path | None = None, video: VideoConfig | None = None, exact: bool = False,
) -> Checkpoint:
    """Open published weights, each in a file or a Hugging Face folder; only headers are read.

    Without ``ar``, ``vq`` and ``injection`` the model is plain Open-Sora v1.2 (baseline mode). ``arlon.json`` beside
    the add-ons states what their shapes do not say; see `arlon_export.checkpoints.add_ons`.

    Args:
        video: the default video; ``None`` stands for 512x512, 24 frames a second, 68 frames.
        exact: keep position tables in full precision. ``False`` rounds them as the published bf16 run did
            (docs/spec.md 5.4).

    Raises:
        BundleNotFoundError: a file, a shard or the tokenizer is missing.
        BundleError: a file is damaged, or tensors do not fit their configuration; every such key is named.
    """
    _check_together(ar=ar, vq=vq, injection=injection)
    transformer, dit_part = _open_dit(dit, exact)
    autoencoder, vae_part = _open_vae(vae)
    encoder, text_part = _open_text(text_encoder, dit, transformer)
    parts = {"text": text_part, "dit": dit_part, "vae": vae_part}
    model = ModelConfig(
        text=encoder, dit=transformer, vae=autoencoder, video=video or VideoConfig(height=512, width=512)
    )
    defaults: Mapping[str, Any] = BASELINE_DEFAULTS
    if ar and vq and injection:
        assumed = read_assumptions((ar, vq, injection))
        model, parts = _with_add_ons(model, parts, assumed, dit=dit, ar=ar, vq=vq, injection=injection)
        stated = dataclasses.asdict(assumed.defaults)
        defaults = GUIDED_DEFAULTS | {name: value for name, value in stated.items() if value is not None}
    _check(model, parts)
    paths = {"dit": dit, "vae": vae, "text_encoder": text_encoder, "ar": ar, "vq": vq, "injection": injection}
    checkpoint = Checkpoint(
        model=model, weights={network: _used(part) for network, part in parts.items()},
        tokenizer=find_tokenizer(text_encoder), defaults=defaults,
        provenance={
            "sources": {name: _sizes(path) for name, path in paths.items() if path},
            "left_out": {"text_encoder": _summary(text_part.ignored)},
        },
    )
    _check_defaults(checkpoint)
    return checkpoint


def find_tokenizer(text_encoder: Path) -> Path:
    """The path of T5's ``spiece.model``: beside the weights or in a folder ``tokenizer``, as on Hugging Face.

    Raises:
        BundleNotFoundError: it is in none of these places; the message names them.
    """
    folder = text_encoder if text_encoder.is_dir() else text_encoder.parent
    places = [folder / TOKENIZER, folder / "tokenizer" / TOKENIZER, folder.absolute().parent / "tokenizer" / TOKENIZER]
    for place in places:
        if place.is_file():
            return place
    raise BundleNotFoundError(
        f"T5's tokenizer is missing: there is neither {', nor '.join(map(str, places))}; copy it to one of these paths"
    )


def _check_together(**add_ons: Path | None) -> None:
    missing = [name for name, path in add_ons.items() if path is None]
    if 0 < len(missing) < len(add_ons):
        raise BundleError(
            f"no weights are named for {' and '.join(missing)}; name {', '.join(add_ons)} together or not at all"
        )


def _open_dit(path: Path, exact: bool) -> tuple[DiTConfig, _Part]:
    found = open_state_dict(path)
    config, note = dit_config(path, found)
    config = dataclasses.replace(config, precision_tables="exact" if exact else "bf16")
    return config, _Part(what=str(path), found=found, note=note)


def _open_vae(path: Path) -> tuple[VAEConfig, _Part]:
    found = open_state_dict(path)
    config, note = vae_config(path, found)
    return config, _Part(what=str(path), found=with_statistics(found, config), note=note)


def _open_text(path: Path, dit: Path, transformer: DiTConfig) -> tuple[TextConfig, _Part]:
    """T5's encoder. The file may hold a whole T5; its decoder is ignored."""
    found = open_state_dict(path)
    if "shared.weight" not in found:
        found = renamed(found, lambda name: "shared.weight" if name == EMBEDDING_ALIAS else name)
    config, note = text_config(path, found, max_length=transformer.model_max_length)
    if config.d_model != transformer.caption_channels:
        raise BundleError(
            f"{path}: d_model is {config.d_model}, but caption_channels of {dit} is {transformer.caption_channels}; "
            "take the T5 that it was trained with, DeepFloyd/t5-v1_1-xxl for Open-Sora v1.2"
        )
    ignored = tuple(n for n in found if n.startswith("decoder.") or n in ("lm_head.weight", EMBEDDING_ALIAS))
    return config, _Part(what=str(path), found=found, note=note, ignored=ignored)


def _with_add_ons(
    model: ModelConfig, parts: Mapping[str, _Part], assumed: Assumptions, *,
    dit: Path, ar: Path, vq: Path, injection: Path,
) -> tuple[ModelConfig, dict[str, _Part]]:
    """The baseline's model and parts with the add-ons; the adapters' tensors become the transformer's."""
    tokens, codes = open_state_dict(ar), open_state_dict(vq)
    adapters = with_injection_prefix(open_state_dict(injection))
    token_model, ar_note = ar_config(ar, tokens, assumed.ar, max_prompt=model.text.max_length)
    codec, vq_note = vq_config(vq, codes, assumed.vq)
    layers, injection_note = injection_config(
        injection, adapters, assumed.injection, hidden_size=model.dit.hidden_size
    )
    base = parts["dit"]
    return dataclasses.replace(model, ar=token_model, vq=codec, injection=layers), {
        **parts,
        "dit": _Part(
            what=f"{base.what} with {injection}", found=merge({dit: base.found, injection: adapters}),
            note=f"{base.note}\n{injection_note}",
        ),
        "ar": _Part(what=str(ar), found=tokens, note=ar_note),
        "vq": _Part(what=str(vq), found=codes, note=vq_note),
    }


def _check(model: ModelConfig, parts: Mapping[str, _Part]) -> None:
    """Raise one `BundleError` that names everything that does not fit."""
    try:
        check_model(model)
    except BundleError as error:
        raise BundleError("\n".join([str(error), *(part.note for part in parts.values())])) from None
    faults = []
    for network, part in parts.items():
        try:
            check_fit(part.found, expected_shapes(model, network), part.what, ignored=part.ignored)
        except BundleError as error:
            faults.append(f"{error}\n{part.note}")
    if faults:
        raise BundleError("\n".join(faults))


def _check_defaults(checkpoint: Checkpoint) -> None:
    try:
        GenerateOptions().resolved(checkpoint)
    except OptionsError as error:
        raise BundleError(f"arlon.json: defaults: {error}") from None


def _used(part: _Part) -> StateDict:
    return {name: tensor for name, tensor in part.found.items() if name not in part.ignored}


def _sizes(path: Path) -> dict[str, int]:
    """File name -> bytes."""
    return {file.name: file.stat().st_size for file in weight_files(path)}


def _summary(ignored: tuple[str, ...]) -> list[str]:
    """The ignored keys by name; those of a decoder are counted instead."""
    decoder = sum(name.startswith("decoder.") for name in ignored)
    others = [name for name in ignored if not name.startswith("decoder.")]
    return ([f"decoder.* ({decoder} tensors)"] if decoder else []) + others
