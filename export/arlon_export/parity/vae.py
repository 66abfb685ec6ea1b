"""Parity of the video autoencoder: runs the shipped graphs from, or up to, their inner float tensor ``pixels``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from arlon_export.checkpoints.checkpoint import Checkpoint, read_json
from arlon_export.checkpoints.state_dict import StateDict, open_state_dict
from arlon_export.export import export_bundle
from arlon_export.onnx_graphs.check import relative_error
from arlon_export.parity.cases import Array, Cases, Family, Result, field, read_cases
from arlon_export.parity.dit import dit_checkpoint
from arlon_rt.backends.ort import import_runtime
from arlon_rt.bundle import Bundle, from_json
from arlon_rt.config import DiTConfig, VAEConfig
from arlon_rt.errors import BundleError
from arlon_rt.networks import decoder_frame_index, encoder_frame_index

PIXELS = "pixels"
_SPATIAL = ("block_out_channels", "layers_per_block", "norm_num_groups", "scaling_factor", "latent_channels")
_TEMPORAL = ("filters", "num_res_blocks", "channel_multipliers", "temporal_downsample", "latent_embed_dim", "embed_dim")
_FIXED = {"act_fn": "silu", "use_quant_conv": True, "use_post_quant_conv": True, "mid_block_add_attention": True}
"""Fields of diffusers' configuration for which this architecture supports one value."""


def vae_family(folder: Path) -> Family:
    """The family of ``vae.safetensors``, ``vae_2d_config.json``, ``vae_temporal_config.json`` and ``vae_io.npz``."""
    def compare(bundle: Path, precision: str, tolerance: float) -> Iterator[Result]:
        path, weights = folder / "vae_io.npz", open_state_dict(folder / "vae.safetensors")
        cases = read_cases(path)
        config = read_vae_config(folder, weights)
        opened = export_bundle(
            _checkpoint(config, weights, cases), bundle, precisions=[precision], only=["vae_decoder", "vae_encoder"]
        )
        decoder, encoder = _open_decoder(opened, precision), _open_encoder(opened, precision)
        for case, arrays in cases.items():
            if "x" in arrays:
                expected = field(path, case, arrays, "z")
                actual, what = _encode(encoder, arrays["x"], config), f"encode, {arrays['x'].shape[2]} frames"
            else:
                latents, expected = (field(path, case, arrays, name) for name in ("z", "out"))
                frames = int(field(path, case, arrays, "num_frames"))
                actual, what = _decode(decoder, latents, frames, config), f"decode, {frames} frames"
            yield Result(case=f"vae {case}", what=what, error=relative_error(actual, expected), tolerance=tolerance)

    return Family(name="vae", compare=compare)


def read_vae_config(folder: Path, weights: StateDict) -> VAEConfig:
    """The configuration that both published files state; scale and shift come from the weights."""
    spatial, temporal = (read_json(folder / f"vae_{part}_config.json") for part in ("2d", "temporal"))
    for name, value in _FIXED.items():
        if spatial.get(name, value) != value:
            raise BundleError(f"vae_2d_config.json: {name} is {spatial[name]!r}; only {value!r} is supported")
    fields: dict[str, Any] = {n: spatial[n] for n in _SPATIAL if n in spatial}
    fields |= {n: temporal[n] for n in _TEMPORAL if n in temporal}
    fields |= {n: weights[n].load().flatten().tolist() for n in ("scale", "shift") if n in weights}
    return from_json(VAEConfig, fields, "vae_*_config.json")


def _checkpoint(config: VAEConfig, weights: StateDict, cases: Cases) -> Checkpoint:
    """A checkpoint of the autoencoder alone, whose axes have room for these cases."""
    transformer = DiTConfig(hidden_size=4, depth=1, num_heads=1, caption_channels=4, model_max_length=1)
    whole = dit_checkpoint(transformer, {"vae": weights}, [c["z"].shape for c in cases.values()])
    return dataclasses.replace(whole, model=dataclasses.replace(whole.model, vae=config))


def _decode(session: Any, latents: Array, num_frames: int, config: VAEConfig) -> Array:
    """Normalised latents (1, 4, latent, h, w) -> pixels (1, 3, frame, H, W), chunk by chunk."""
    pixels: list[Array] = []
    for first in range(0, latents.shape[2], config.chunk_latents):
        frames = min(num_frames - config.chunk_frames * len(pixels), config.chunk_frames)
        feed = {
            "latents": latents[:, :, first : first + config.chunk_latents],
            "frame_index": decoder_frame_index(frames, config),
        }
        pixels.append(session.run([PIXELS], feed)[0])
    return np.concatenate(pixels).swapaxes(0, 1)[None].astype(np.float32)


def _encode(session: Any, pixels: Array, config: VAEConfig) -> Array:
    """Pixels (1, 3, frame, H, W) -> normalised latents (1, 4, latent, h, w), chunk by chunk."""
    frames = pixels[0].swapaxes(0, 1).astype(np.float32)
    latents = []
    for first in range(0, len(frames), config.chunk_frames):
        chunk = frames[first : first + config.chunk_frames]
        feed = {PIXELS: chunk, "frame_index": encoder_frame_index(len(chunk), config)}
        if "frames" in {i.name for i in session.get_inputs()}:  # only its shape is read
            feed["frames"] = np.zeros((len(chunk), *chunk.shape[2:], 3), np.uint8)
        latents.append(session.run(["latents"], feed)[0])
    return np.concatenate(latents, axis=2)


def _open_decoder(bundle: Bundle, precision: str) -> Any:
    """The shipped decoder with ``pixels`` as a further output."""
    path = bundle.graph_file("vae_decoder", precision)
    model = onnx.load(path, load_external_data=False)
    model.graph.output.append(_recorded_pixels(model, path))
    return _open(model, path)


def _open_encoder(bundle: Bundle, precision: str) -> Any:
    """The shipped encoder with ``pixels`` as an input; the nodes that computed it are removed."""
    path = bundle.graph_file("vae_encoder", precision)
    model = onnx.load(path, load_external_data=False)
    pixels = _recorded_pixels(model, path)
    needed, nodes = {o.name for o in model.graph.output}, []
    for node in reversed(model.graph.node):
        if PIXELS not in node.output and needed & set(node.output):
            nodes.append(node)
            needed |= set(node.input)
    inputs = [pixels, *(i for i in model.graph.input if i.name in needed)]
    for field_name, kept in (("node", nodes[::-1]), ("input", inputs)):
        model.graph.ClearField(field_name)
        getattr(model.graph, field_name).extend(kept)
    return _open(model, path)


def _recorded_pixels(model: onnx.ModelProto, path: Path) -> onnx.ValueInfoProto:
    for value in model.graph.value_info:
        if value.name == PIXELS:
            found: onnx.ValueInfoProto = value
            return found
    raise BundleError(f"{path} has no inner tensor named {PIXELS!r}")


def _open(model: onnx.ModelProto, path: Path) -> Any:
    runtime = import_runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
