"""Parity of the sampler: the runtime's loop runs a ``dit`` graph whose network is replaced by a toy velocity.

Re-noising, guidance and the Euler update are those of the shipped graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from arlon_export.checkpoints.checkpoint import Checkpoint
from arlon_export.checkpoints.network import Network, open_network
from arlon_export.checkpoints.state_dict import StoredTensor
from arlon_export.export import export_bundle
from arlon_export.modules.stdit3 import STDiT3
from arlon_export.onnx_graphs.check import relative_error
from arlon_export.parity.cases import Array, Family, Result, field, read_cases
from arlon_export.parity.dit import dit_checkpoint
from arlon_rt.backends import Session, open_session
from arlon_rt.bundle import Bundle
from arlon_rt.config import DiTConfig
from arlon_rt.errors import BundleError
from arlon_rt.networks import denoise, guidance_weights, schedule, timesteps

CONDITIONAL, UNCONDITIONAL, ACTIVE = 0.3, -0.1, 0.05
"""What the toy velocity adds: for the conditional row, for the unconditional row, and on generated frames of a mask."""
FPS = 24.0


class ToyTransformer(STDiT3):
    """v = einsum('ij,bjthw->bithw', A, tanh(z)) + (t/1000) z 0.1 + c, plus ``ACTIVE`` on generated frames.

    The first element of a row's keys is c; the first element of its values is added on generated frames.
    """

    def __init__(self, config: DiTConfig, mixing: Array) -> None:
        super().__init__(config)
        self.register_buffer("mixing", torch.from_numpy(mixing))

    def _predict(
        self, latents: Tensor, timestep: Tensor, frame_mask: Tensor, fps: Tensor, position: Tensor,
        rotary: tuple[Tensor, Tensor], caption_kv: Tensor, text_mask: Tensor, features: Tensor | None,
    ) -> Tensor:
        constant, active = (caption_kv[0, which, :, 0, 0, 0][:, None, None, None, None] for which in (0, 1))
        mixed = torch.matmul(self.get_buffer("mixing"), torch.tanh(latents).flatten(2)).reshape(latents.shape)
        unread = sum((x.float().sum() for x in (fps, position, *rotary, text_mask)), torch.zeros(()))
        generated = frame_mask[:, None, :, None, None].float()
        return mixed + timestep / 1000 * latents * 0.1 + constant + active * generated + 0 * unread


@dataclass(frozen=True, kw_only=True)
class _ToyCheckpoint(Checkpoint):
    mixing: Array

    def network(self, network: str) -> Network:
        toy = ToyTransformer(self.model.dit, self.mixing)
        weights = {n: StoredTensor(n, tuple(t.shape), t.dtype, t.detach) for n, t in toy.state_dict().items()}
        return open_network(network, lambda: ToyTransformer(self.model.dit, self.mixing), weights, "the toy network")


def flow_family(path: Path) -> Family:
    """The family of ``rflow_io.npz``: whole trajectories of the sampler."""
    def compare(bundle: Path, precision: str, tolerance: float) -> Iterator[Result]:
        cases = read_cases(path)
        if "A" not in cases:
            raise BundleError(f"{path} has no array A, the toy network's matrix")
        mixing = cases.pop("A")[""]
        opened = _export(bundle, mixing, [c["z0"].shape for c in cases.values()])
        session = open_session(opened, "dit")
        try:
            for case, arrays in cases.items():
                yield from _compare(path, case, arrays, session, opened, tolerance)
        finally:
            session.close()

    return Family(name="rflow", compare=compare)


def _export(bundle: Path, mixing: Array, shapes: list[tuple[int, ...]]) -> Bundle:
    """The toy's bundle, always in fp32: the sampler computes in fp32 in every precision set."""
    config = DiTConfig(hidden_size=4, depth=1, num_heads=1, caption_channels=4, model_max_length=2, out_channels=4)
    plain = dit_checkpoint(config, {}, shapes)
    toy = _ToyCheckpoint(
        model=plain.model, weights={}, tokenizer=None, defaults=plain.defaults, provenance=plain.provenance,
        mixing=mixing,
    )
    return export_bundle(toy, bundle, precisions=["fp32"], only=["dit"])


def _compare(
    path: Path, case: str, arrays: dict[str, Array], session: Session, bundle: Bundle, tolerance: float
) -> Iterator[Result]:
    latents, hwf, expected = (field(path, case, arrays, name) for name in ("z0", "hwf", "out"))
    count, scale = int(field(path, case, arrays, "steps")), float(field(path, case, arrays, "cfg"))
    height, width, frames = (int(size) for size in hwf)
    times = timesteps(count, height, width, frames, bundle.model.flow)
    error = relative_error(times, field(path, case, arrays, "timesteps"))
    yield Result(case=f"rflow {case}", what=f"timesteps, {count} steps", error=error, tolerance=tolerance)
    masked = "mask" in arrays
    mask = arrays["mask"][0] if masked else np.ones(latents.shape[2], np.float32)
    steps = schedule(times, mask, bundle.model.flow)
    conditions = _conditions(bundle, latents.shape, scale, ACTIVE if masked else 0.0)
    final = denoise(session, latents, steps, lambda step: field(path, case, arrays, "noises")[step], conditions)
    what = "trajectory, kept frames" if masked else "trajectory"
    yield Result(case=f"rflow {case}", what=what, error=relative_error(final, expected), tolerance=tolerance)


def _conditions(bundle: Bundle, shape: tuple[int, ...], scale: float, active: float) -> dict[str, Array]:
    config, rows = bundle.model.dit, 1 if scale == 1 else 2
    frames, height, width = shape[2:]
    patches = -(-height // 2) * -(-width // 2)
    kv = np.zeros((2 * config.depth, 2, rows, config.num_heads, 1, config.head_dim), np.float32)
    kv[0, 0, :, 0, 0, 0] = [CONDITIONAL, UNCONDITIONAL][:rows]
    kv[0, 1, :, 0, 0, 0] = active
    tables = np.zeros((frames, config.head_dim // 2), np.float32)
    return {
        "guidance_weights": guidance_weights(scale, rows),
        "position": np.zeros((patches, config.hidden_size), np.float32),
        "rotary_cos": tables, "rotary_sin": tables, "fps": np.array([FPS], np.float32), "caption_kv": kv,
        "text_mask": np.ones((rows, 1), np.bool_),
    }
