"""Parity of the diffusion transformer: runs the graphs ``caption`` and ``dit`` on each row of a recorded batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from arlon_export.checkpoints.checkpoint import Checkpoint
from arlon_export.checkpoints.published_config import read_dit_config
from arlon_export.checkpoints.state_dict import StateDict, open_state_dict
from arlon_export.export import export_bundle
from arlon_export.onnx_graphs.check import relative_error
from arlon_export.parity.cases import Array, Cases, Family, Result, field, read_cases
from arlon_rt.backends import Session, open_session
from arlon_rt.config import DiTConfig, ModelConfig, TextConfig, VAEConfig, VideoConfig
from arlon_rt.networks import position_table, rotary_tables

PIXELS_PER_LATENT, FRAMES_PER_CHUNK, LATENTS_PER_CHUNK = 8, 17, 5


def dit_family(config_path: Path) -> Family:
    """The family of the files ``NAME.json``, ``NAME.safetensors`` and ``NAME_io.npz``."""
    def compare(bundle: Path, precision: str, tolerance: float) -> Iterator[Result]:
        weights, recorded = config_path.with_suffix(".safetensors"), config_path.with_name(f"{config_path.stem}_io.npz")
        cases = read_cases(recorded)
        shapes = [field(recorded, case, arrays, "x").shape for case, arrays in cases.items()]
        checkpoint = dit_checkpoint(read_dit_config(config_path), {"dit": open_state_dict(weights)}, shapes)
        opened = export_bundle(checkpoint, bundle, precisions=[precision], only=["caption", "dit"])
        caption, dit = (open_session(opened, graph, precision=precision) for graph in ("caption", "dit"))
        try:
            yield from _compare(config_path.stem, recorded, cases, opened.model.dit, caption, dit, tolerance)
        finally:
            caption.close()
            dit.close()

    return Family(name=config_path.stem, compare=compare)


def dit_checkpoint(config: DiTConfig, weights: dict[str, StateDict], shapes: list[tuple[int, ...]]) -> Checkpoint:
    """A checkpoint of the transformer alone, whose axes have room for latents of these shapes.

    The configurations of the text encoder and the autoencoder only state the sizes that the transformer shares.
    """
    frames, height, width = (max(2, *(s[axis] for s in shapes)) for axis in (2, 3, 4))
    chunks = max(2, math.ceil(frames / LATENTS_PER_CHUNK))
    return Checkpoint(
        model=ModelConfig(
            text=TextConfig(
                vocab_size=1, d_model=config.caption_channels, d_kv=1, d_ff=1, num_layers=1, num_heads=1,
                max_length=config.model_max_length,
            ),
            dit=config,
            vae=VAEConfig(
                block_out_channels=(32, 32, 32, 32), layers_per_block=1, norm_num_groups=32, scaling_factor=1.0,
                filters=32, num_res_blocks=1, channel_multipliers=(1, 1, 1), temporal_downsample=(False, True, True),
            ),
            video=VideoConfig(
                height=PIXELS_PER_LATENT * height, width=PIXELS_PER_LATENT * width,
                segment_frames=FRAMES_PER_CHUNK * chunks,
            ),
        ),
        weights=weights, tokenizer=None, defaults={"num_frames": FRAMES_PER_CHUNK}, provenance={"made_for": "parity"},
    )


def _compare(
    family: str, path: Path, cases: Cases, config: DiTConfig, caption: Session, dit: Session, tolerance: float,
) -> Iterator[Result]:
    for case, arrays in cases.items():
        latents, expected = (field(path, case, arrays, name) for name in ("x", "out"))
        rows = [_run_row(path, case, arrays, row, config, caption, dit) for row in range(len(latents))]
        active = arrays.get("x_mask", np.ones((len(latents), latents.shape[2]))).astype(np.bool_)
        # (row, frame) first, so that the mask picks frames; the recorded output has more channels than the velocity has
        moved = np.moveaxis(np.concatenate(rows) - latents, 2, 1)
        velocity = np.moveaxis(expected[:, : config.in_channels], 2, 1)
        if active.any():
            error, sizes = relative_error(moved[active], velocity[active]), "x".join(map(str, latents.shape[2:]))
            yield Result(case=f"{family} {case}", what=f"velocity, {sizes}", error=error, tolerance=tolerance)
        if not active.all():
            kept = float(np.abs(moved[~active]).max())
            yield Result(case=f"{family} {case}", what="kept frames unchanged", error=kept, tolerance=0.0)


def _run_row(
    path: Path, case: str, arrays: dict[str, Array], row: int, config: DiTConfig, caption: Session, dit: Session
) -> Array:
    """One step of size 1 from the recorded latents: latents + velocity on active frames."""
    def one(name: str, dtype: str = "float32") -> Array:
        return field(path, case, arrays, name)[row : row + 1].astype(dtype)

    latents = one("x")
    frames, height, width = latents.shape[2:]
    _, ph, pw = config.patch_size
    cos, sin = rotary_tables(frames, config.head_dim, config.rope_theta, frequencies=config.rope_freqs)
    kv = caption.run({"last_hidden_state": one("y")[:, 0], "use_null": np.zeros(1, np.bool_)}, hold=["caption_kv"])
    outputs = dit.run({
        "latents": latents, "timestep": one("timestep"), "step_size": np.ones(1, np.float32),
        "guidance_weights": np.ones(1, np.float32),
        "frame_mask": one("x_mask", "bool")[0] if "x_mask" in arrays else np.ones(frames, np.bool_),
        "noise": np.zeros_like(latents), "noise_mask": np.zeros(frames, np.bool_),
        "position": position_table(
            math.ceil(height / ph), math.ceil(width / pw), config.hidden_size,
            height=float(one("height")[0]), width=float(one("width")[0]), input_sq_size=config.input_sq_size,
        ),
        "rotary_cos": cos, "rotary_sin": sin, "fps": one("fps"),
        "caption_kv": kv["caption_kv"], "text_mask": one("mask", "bool"),
    })
    return np.asarray(outputs["latents_out"])
