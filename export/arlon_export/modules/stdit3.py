"""STDiT3 of Open-Sora v1.2 with its published state-dict keys, and with ARLON's semantic injection."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arlon_export.modules.dit_layers import Block, CaptionEmbedder, FinalLayer, ScalarEmbedder, residual_dtype
from arlon_export.modules.injection import SemanticInjection
from arlon_rt.config import DiTConfig, InjectionConfig
from arlon_rt.networks import position_table

NUM_TIMESTEPS = 1000.0
"""The timestep of pure noise."""


class PatchEmbedder(nn.Module):
    """Latents -> one token a patch."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv3d(config.in_channels, config.hidden_size, config.patch_size, stride=config.patch_size)

    def forward(self, latents: Tensor) -> Tensor:
        """(batch, channel, frame, height, width), whole patches -> (batch, frame, patch, size)."""
        tokens: Tensor = self.proj(latents.to(self.proj.weight.dtype))
        return tokens.flatten(3).permute(0, 2, 3, 1)


class RotaryFrequencies(nn.Module):
    """Holds ``rope.freqs`` (radians a frame), fixed.

    `STDiT3.velocity` computes its tables from them. Graphs take tables as inputs; the host computes those from
    `DiTConfig.rope_theta`, or from `DiTConfig.rope_freqs` if a checkpoint has other frequencies.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
        freqs = config.rope_theta**-exponents if config.rope_freqs is None else torch.tensor(config.rope_freqs)
        self.freqs = nn.Parameter(freqs.float(), requires_grad=False)

    def forward(self, frames: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of frames 0, 1, …, each (frames, head_dim / 2)."""
        angles = torch.arange(frames, device=self.freqs.device)[:, None] * self.freqs.float()
        return angles.cos(), angles.sin()


class STDiT3(nn.Module):
    """The diffusion transformer: pairs of blocks, one within each frame and one along time (docs/spec.md 5.3).

    Without `InjectionConfig` this is plain Open-Sora v1.2. With it, the add-on's keys have the prefix ``injection.``
    and a published checkpoint has all others.
    """

    def __init__(self, config: DiTConfig, injection: InjectionConfig | None = None) -> None:
        super().__init__()
        if config.patch_size[0] != 1:
            raise ValueError(f"dit.patch_size is {config.patch_size}; it must start with 1, one latent frame")
        if config.head_dim * config.num_heads != config.hidden_size or config.head_dim % 2:
            raise ValueError(
                f"dit.hidden_size is {config.hidden_size}; its {config.num_heads} heads must get an equal, even share"
            )
        size = config.hidden_size
        self.config = config
        self.rope = RotaryFrequencies(config)
        self.x_embedder = PatchEmbedder(config)
        self.t_embedder = ScalarEmbedder(size)
        self.fps_embedder = ScalarEmbedder(size)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(size, 6 * size))
        self.y_embedder = CaptionEmbedder(config)
        self.spatial_blocks = nn.ModuleList(Block(config, temporal=False) for _ in range(config.depth))
        self.temporal_blocks = nn.ModuleList(Block(config, temporal=True) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)
        self.injection = SemanticInjection(config, injection) if injection else None
        self._injected = [self.temporal_blocks[layer] for layer in injection.layers] if injection else []
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise with Xavier weights, such that the velocity and the injection are zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.final_layer.linear.weight)
        if self.injection is not None:
            self.injection.reset_modulations()

    def caption_kv(self, last_hidden_state: Tensor, use_null: Tensor) -> Tensor:
        """The caption graph: cross-attention keys and values of all blocks, (spatial 0, temporal 0, spatial 1, …).

        Args:
            last_hidden_state: (batch, prompt, caption_channels), at most ``model_max_length`` tokens.
            use_null: (batch,) bool, rows that take the learned null caption.

        Returns:
            (2 * depth, 2, batch, head, prompt, head_dim).
        """
        caption = self.y_embedder(last_hidden_state, use_null)
        return torch.stack([block.cross_attn.keys_values(caption) for block in self._blocks()])

    def semantic(self, coarse: Tensor) -> Tensor:
        """The semantic graph: (batch, channel, frame, height, width) -> (layer, batch, frame, patches, 3 * size)."""
        if self.injection is None:
            raise ValueError("this STDiT3 has no injection; construct it with an InjectionConfig to use coarse latents")
        features: Tensor = self.injection(self._pad(coarse))
        return features

    def velocity(
        self, latents: Tensor, timestep: Tensor, text: Tensor, text_mask: Tensor, frame_mask: Tensor,
        fps: Tensor, height: Tensor, width: Tensor, features: Tensor | None, use_null: Tensor,
    ) -> Tensor:
        """The whole network for training and parity; rows are independent of each other.

        Args:
            latents: (batch, channel, frame, height, width).
            timestep: (batch,) in 0..1000.
            text: (batch, prompt, caption_channels).
            text_mask: (batch, prompt) bool, True for valid tokens.
            frame_mask: (batch, frame) bool, False for clean (kept) frames.
            fps: (batch,) frames a second.
            height, width: (batch,) requested pixels, the same in every row.
            features: as `semantic` gives them, or None.
            use_null: (batch,) bool, rows trained or guided without their text.

        Returns:
            (batch, out_channels, frame, height, width) float32. Values on kept frames have no meaning, since samplers
            restore these frames. (The published code modulates its final layer twice on them; this one does not.)
        """
        pixels = (float(height[0]), float(width[0]))
        if not bool((height == height[0]).all() and (width == width[0]).all()):
            sizes = f"height is {height.tolist()}, width {width.tolist()}"
            raise ValueError(f"{sizes}; all rows of a batch must share one size")
        grid = self._grid(*latents.shape[3:])
        position = _cached_position(self.config, *grid, *pixels).to(latents.device)
        rotary = self.rope(latents.shape[2])
        kv = self.caption_kv(text, use_null)
        return self._predict(latents, timestep, frame_mask, fps, position, rotary, kv, text_mask, features)

    def step(
        self, latents: Tensor, timestep: Tensor, step_size: Tensor, guidance_weights: Tensor, frame_mask: Tensor,
        noise: Tensor, noise_mask: Tensor, position: Tensor, rotary_cos: Tensor, rotary_sin: Tensor, fps: Tensor,
        caption_kv: Tensor, text_mask: Tensor, features: Tensor | None = None,
    ) -> Tensor:
        """The dit graph: one denoising step, inputs as `arlon_rt.graphs.dit` names and orders them.

        Re-noising, guidance and the Euler update are in float32; frames whose mask is False pass through unchanged.
        """
        level = timestep / NUM_TIMESTEPS
        renoised = (1 - level) * latents + level * noise
        latents = torch.where(noise_mask[None, None, :, None, None], renoised, latents)
        rotary = (rotary_cos, rotary_sin)
        out = self._predict(
            latents, timestep, frame_mask[None], fps, position, rotary, caption_kv, text_mask, features
        )
        rows = out[:, : self.config.in_channels]
        velocity = (guidance_weights[:, None, None, None, None] * rows).sum(0, keepdim=True)
        return torch.where(frame_mask[None, None, :, None, None], latents + step_size * velocity, latents)

    def _predict(
        self, latents: Tensor, timestep: Tensor, frame_mask: Tensor, fps: Tensor, position: Tensor,
        rotary: tuple[Tensor, Tensor], caption_kv: Tensor, text_mask: Tensor, features: Tensor | None,
    ) -> Tensor:
        """The network's output in float32. Latents, times and features have as many rows as the caption, or one."""
        height, width = latents.shape[3:]
        tokens = self.x_embedder(self._pad(latents))
        tokens = tokens + position.to(tokens.dtype)
        x = tokens.to(residual_dtype(tokens.dtype)).expand(caption_kv.shape[2], -1, -1, -1)
        time, modulation = self._times(timestep, fps, frame_mask)
        injected = {} if features is None else dict(zip(self._injected, features.unbind(0), strict=True))
        for block, kv in zip(self._blocks(), caption_kv.unbind(0), strict=True):
            x = block(x, modulation, kv, text_mask, rotary, injected.get(block))
        return self._unpatchify(self.final_layer(x, time), height, width).float()

    def _times(self, timestep: Tensor, fps: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Time vectors of every frame: (row, frame, 1, size) for the final layer, (row, frame, 6, size) for blocks.

        A row has two times, 0 for its kept frames and its timestep for the others; each frame gathers its own.
        """
        both = torch.stack([torch.zeros_like(timestep), timestep], dim=1).flatten()
        time = self.t_embedder(both) + self.fps_embedder(fps).repeat_interleave(2, dim=0)
        modulation = self.t_block(time).reshape(-1, 6, self.config.hidden_size)
        first = 2 * torch.arange(timestep.shape[0], device=timestep.device)
        pick = first[:, None] + frame_mask.long()
        return time[pick][:, :, None], modulation[pick]

    def _blocks(self) -> list[Block]:
        pairs = zip(self.spatial_blocks, self.temporal_blocks, strict=True)
        return [block for pair in pairs for block in pair if isinstance(block, Block)]

    def _pad(self, latents: Tensor) -> Tensor:
        """Zeros at the right and bottom, up to whole patches."""
        _, patch_height, patch_width = self.config.patch_size
        height, width = latents.shape[3:]
        rows, columns = self._grid(height, width)
        return F.pad(latents, (0, columns * patch_width - width, 0, rows * patch_height - height))

    def _unpatchify(self, values: Tensor, height: int, width: int) -> Tensor:
        """(batch, frame, patch, row * column * channel of a patch) -> (batch, channel, frame, height, width)."""
        _, ph, pw = self.config.patch_size
        grid = values.reshape(*values.shape[:2], *self._grid(height, width), ph, pw, self.config.out_channels)
        whole = grid.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
        return whole[..., :height, :width]

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches along each side, rounded up (without negative numbers, because ONNX's integer division truncates)."""
        _, patch_height, patch_width = self.config.patch_size
        return (height + patch_height - 1) // patch_height, (width + patch_width - 1) // patch_width


@functools.lru_cache(maxsize=64)
def _cached_position(config: DiTConfig, grid_height: int, grid_width: int, height: float, width: float) -> Tensor:
    return torch.from_numpy(position_table(
        grid_height, grid_width, config.hidden_size, height=height, width=width, input_sq_size=config.input_sq_size
    ))
