"""The diffusion transformer: noise to latents in a few steps, guided by text and coarse latents (docs/spec.md 4, 5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arlon_rt.backends import Handle, Session
from arlon_rt.config import ModelConfig
from arlon_rt.errors import BackendError
from arlon_rt.networks.embedding import Text, guidance_weights, stacked
from arlon_rt.networks.flow import Step
from arlon_rt.networks.tables import position_table, rotary_tables

Feed = NDArray[Any] | Handle
NoiseSource = Callable[[int], NDArray[np.float32]]
"""Step -> noise, shaped like the latents. Called only for steps at which frames join."""
OnStep = Callable[[int, int], None]
"""Called with (done, total) after each step."""


def denoise(
    dit: Session,
    latents: NDArray[np.float32],
    steps: Sequence[Step],
    noise: NoiseSource,
    conditions: Mapping[str, Feed] | Callable[[int], Mapping[str, Feed]],
    on_step: OnStep = lambda done, total: None,
) -> NDArray[np.float32]:
    """The latents (1, channel, frame, height, width) after all steps of the rectified flow.

    They stay on the device between steps. ``conditions`` are the other inputs of the ``dit`` graph: the same at every
    step, or a function of the step.
    """
    state: Feed = latents
    silence = np.zeros_like(latents)
    for index, step in enumerate(steps):
        joining = bool(step.noise_mask.any())
        outputs = dit.run({
            **(conditions(index) if callable(conditions) else conditions),
            "latents": state,
            "timestep": np.array([step.timestep], np.float32),
            "step_size": np.array([step.step_size], np.float32),
            "frame_mask": step.frame_mask,
            "noise": noise(index) if joining else silence,
            "noise_mask": step.noise_mask,
        }, hold=["latents_out"])
        state = outputs["latents_out"]
        on_step(index + 1, len(steps))
    denoised = state if isinstance(state, np.ndarray) else state.numpy()
    if not np.isfinite(denoised).all():
        raise BackendError(
            "latents of dit are not finite numbers; fp16 may have overflowed: open the pipeline with "
            "precision='fp32', and where it already runs in fp32, check the bundle with `arlon-rt verify`"
        )
    return denoised


@dataclass(frozen=True, kw_only=True)
class View:
    """What the transformer reads of the video, beside prompt and latents."""

    height: int
    """In pixels, as requested: not rounded to whole latents."""
    width: int
    latent_height: int
    latent_width: int
    fps: float
    guidance_scale: float


class Denoiser:
    """The opened graphs ``caption``, ``semantic`` (with injection) and ``dit``."""

    def __init__(
        self, caption: Session, semantic: Session | None, dit: Session, model: ModelConfig, *,
        published_tables: bool = False,
    ) -> None:
        """``published_tables``: position and rotary tables as the published bf16 run had them (docs/spec.md 5.4)."""
        self.caption, self.semantic, self.dit, self.model = caption, semantic, dit, model
        self.published_tables = published_tables


class Denoising:
    """The denoising of one video. It keeps the keys and values of the last prompt on the device."""

    def __init__(self, denoiser: Denoiser, view: View) -> None:
        self._denoiser, self._view = denoiser, view
        config = denoiser.model.dit
        _, patch_height, patch_width = config.patch_size
        self._patches = math.ceil(view.latent_height / patch_height), math.ceil(view.latent_width / patch_width)
        self._position = position_table(
            *self._patches, config.hidden_size, height=view.height, width=view.width,
            input_sq_size=config.input_sq_size, published_bf16=denoiser.published_tables,
        )
        self._captions: dict[bool, tuple[tuple[Text, Text | None], dict[str, Feed]]] = {}

    def denoise(
        self, latents: NDArray[np.float32], steps: Sequence[Step], noise: NoiseSource, *, text: Text,
        negative: Text | None, coarse: NDArray[np.float32] | None, guided_steps: int | None = None,
        on_step: OnStep = lambda done, total: None,
    ) -> NDArray[np.float32]:
        """Latents (1, channel, frame, height, width) of one segment; ``latents`` has noise on frames to generate.

        ``negative`` replaces the learned null caption. ``coarse``, shaped like the latents, is injected; ``None``
        injects nothing. Only the first ``guided_steps`` are guided; ``None``: all of them.
        """
        config = self._denoiser.model.dit
        cos, sin = rotary_tables(
            latents.shape[2], config.head_dim, config.rope_theta,
            frequencies=config.rope_freqs, published_bf16=self._denoiser.published_tables,
        )
        dit = self._denoiser.dit
        conditions: dict[str, Feed] = {
            **self._features(coarse, latents.shape[2]),
            "position": self._position, "rotary_cos": cos, "rotary_sin": sin,
            "fps": np.array([self._view.fps], np.float32),
        }
        # to the device once a segment, not once a step
        held = {n: dit.upload(n, value) if isinstance(value, np.ndarray) else value for n, value in conditions.items()}
        guidance = self._view.guidance_scale != 1
        until = len(steps) if guided_steps is None else guided_steps

        def at(step: int) -> Mapping[str, Feed]:
            return {**held, **self._captioned(text, negative, guidance and step < until)}

        return denoise(dit, latents, steps, noise, at, on_step)

    def _captioned(self, text: Text, negative: Text | None, guided: bool) -> dict[str, Feed]:
        """Keys and values of the prompt, with guidance also those of the null row; computed once for each prompt."""
        known = self._captions.get(guided)
        if known is None or known[0] != (text, negative):
            hidden, mask = stacked([text, negative or text] if guided else [text])
            outputs = self._denoiser.caption.run({
                "last_hidden_state": hidden,
                # Open-Sora cuts its null caption to the prompt's length (docs/spec.md 5.3): both rows have its mask
                "use_null": np.array([False, negative is None][: len(hidden)]),
            }, hold=["caption_kv"])
            weights = guidance_weights(self._view.guidance_scale, len(hidden))
            upload = self._denoiser.dit.upload
            self._captions[guided] = known = (text, negative), {
                "caption_kv": outputs["caption_kv"], "text_mask": upload("text_mask", mask),
                "guidance_weights": upload("guidance_weights", weights),
            }
        return known[1]

    def _features(self, coarse: NDArray[np.float32] | None, frames: int) -> dict[str, Feed]:
        """The injected features; zeros leave the transformer as it is (the gate alpha is 0)."""
        injection, semantic = self._denoiser.model.injection, self._denoiser.semantic
        if injection is None or semantic is None:
            return {}
        if coarse is not None:
            return {"features": semantic.run({"coarse": coarse}, hold=["features"])["features"]}
        shape = len(injection.layers), 1, frames, math.prod(self._patches), 3 * self._denoiser.model.dit.hidden_size
        return {"features": np.zeros(shape, self._denoiser.dit.float_dtype)}
