"""The rectified flow's arithmetic: the timesteps, the size of each step and its frames (docs/spec.md 5.7)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from arlon_rt.config import FlowConfig

# The transform's reference: 512 x 512 pixels, and 5 latents for each 17 frames.
BASE_AREA = 512 * 512
FRAMES_OF_CHUNK, LATENTS_OF_CHUNK = 17, 5


@dataclass(frozen=True, kw_only=True)
class Step:
    """One Euler step: ``latents + step_size * velocity`` on the frames of ``frame_mask``."""

    timestep: float
    """0 (video) .. 1000 (noise)."""
    step_size: float
    """(this timestep - the next) / 1000."""
    frame_mask: NDArray[np.bool_]
    """(frame,) frames that are generated; the others stay at t = 0 and keep their latents."""
    noise_mask: NDArray[np.bool_]
    """(frame,) frames that join at this step, noised to this timestep first."""


def timesteps(n: int, height: int, width: int, frames: int, flow: FlowConfig) -> NDArray[np.float64]:
    """Timesteps (step,) of ``n`` steps, falling from ``num_timesteps`` (docs/spec.md 5.7).

    tau_i = 1 - i/n;  t_i = 1000 r tau_i / (1 + (r-1) tau_i)  with
    r = sqrt(height width / 512^2) sqrt(5 floor(frames/17)),  the second factor 1 for an image:
    larger and longer videos spend more of their steps on strong noise.
    ``height`` and ``width`` are in pixels, as asked for.
    """
    tau = 1 - np.arange(n) / n
    if flow.use_timestep_transform:
        duration = 1 if frames == 1 else max(frames // FRAMES_OF_CHUNK, 1) * LATENTS_OF_CHUNK
        ratio = math.sqrt(height * width / BASE_AREA) * math.sqrt(duration)
        tau = np.minimum(ratio * tau / (1 + (ratio - 1) * tau), 1.0)  # rounding must not lift the first above 1
    return flow.num_timesteps * tau


def schedule(
    timesteps: Sequence[float] | NDArray[np.floating], mask: NDArray[np.floating], flow: FlowConfig
) -> list[Step]:
    """The steps of one segment (docs/spec.md 5.7).

    ``mask`` (frame,) in [0, 1] says how much of each latent frame is generated: 1 is all of it, 0 keeps the frame, and
    a frame between joins once the timestep has fallen to 1000 mask. Frames with mask 1 start as pure noise and are not
    noised again.
    """
    levels = flow.num_timesteps * np.asarray(mask, np.float64)
    times = [float(t) for t in timesteps]
    noised = levels == flow.num_timesteps
    steps = []
    for t, following in zip(times, [*times[1:], 0.0], strict=True):
        active = levels >= t
        steps.append(Step(
            timestep=t, step_size=(t - following) / flow.num_timesteps, frame_mask=active, noise_mask=active & ~noised
        ))
        noised = active
    return steps
