"""The model configuration: every size and every assumption that a bundle's manifest states about its networks."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """T5 v1.1 encoder (gated GELU), and how prompts become tokens. Field names follow transformers' T5Config."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    max_length: int = 300
    """Prompts are truncated to this many tokens, the closing ``</s>`` included."""
    clean_caption: bool = True
    """Lower-case and clean prompts twice, as Open-Sora v1.2 does (docs/spec.md 5.5)."""
    prompt_suffix: str = ""
    """Appended to each prompt that names no such score itself: ``" aesthetic score: 6.5."`` in Open-Sora. Empty for a
    model that was trained without scores."""


@dataclass(frozen=True, kw_only=True)
class ARConfig:
    """Decoder-only token model: text prefix, BOS, then codes row-major within a code-frame (docs/spec.md 3)."""

    num_codes: int
    hidden_size: int
    num_layers: int
    num_heads: int
    ffn_size: int
    text_dim: int
    grid: tuple[int, int, int]
    """Rows of the learned position tables: (code_frame, code_height, code_width). Later frames start a new window."""
    max_length: int
    """Cache slots: the longest prompt, BOS and the codes of the largest window."""
    max_top_k: int
    rope_theta: float = 10_000.0
    position_of: Literal["self", "next"] = "next"
    """Whether a token carries the grid position of itself or of the token it predicts."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def bos(self) -> int:
        return self.num_codes

    @property
    def vocab_size(self) -> int:
        """The codes, BOS and EOS."""
        return self.num_codes + 2


@dataclass(frozen=True, kw_only=True)
class VQConfig:
    """Latent VQ-VAE: codes on a grid of normalised video latents (docs/spec.md 2)."""

    num_codes: int
    code_dim: int
    stride: tuple[int, int, int]
    """Latents per code along (frame, height, width); each a power of two."""
    channels: tuple[int, ...]
    """Width of each level from the latents inward; a level halves every axis whose stride allows it."""
    num_res_blocks: int = 2
    norm_groups: int = 32
    latent_channels: int = 4
    encoder_channels: tuple[int, ...] | None = None
    """Widths of the encoder's levels, where they differ from the decoder's."""
    has_encoder: bool = False
    """Whether a bundle has the encoder's graph, which a request that continues a clip or an image needs."""


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """STDiT3 (Open-Sora v1.2); field names follow its published config.json."""

    hidden_size: int
    depth: int
    """Pairs of spatial and temporal blocks."""
    num_heads: int
    caption_channels: int
    model_max_length: int
    input_sq_size: int = 512
    mlp_ratio: float = 4.0
    in_channels: int = 4
    out_channels: int = 8
    """8 in the published model (pred_sigma); the first ``in_channels`` are the velocity."""
    patch_size: tuple[int, int, int] = (1, 2, 2)
    rope_theta: float = 10_000.0
    rope_freqs: tuple[float, ...] | None = None
    """Rotary frequencies (radians a frame) of a checkpoint whose ``rope.freqs`` do not follow from ``rope_theta``."""
    precision_tables: Literal["exact", "bf16"] = "exact"
    """Whether the fp16 and bf16 sets take position tables as the published bf16 run had them (docs/spec.md 5.4)."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True, kw_only=True)
class InjectionConfig:
    """Semantic injection: gated adaptive normalisation of the temporal branch (docs/spec.md 4)."""

    layers: tuple[int, ...]
    """The pairs of blocks that are injected, e.g. the first half."""
    adapter_ratio: float = 1.0
    """Hidden width of each adapter's MLP, divided by the DiT's width."""


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Video autoencoder: diffusers' AutoencoderKL a frame, then a causal temporal autoencoder (docs/spec.md 5.6)."""

    block_out_channels: tuple[int, ...]
    layers_per_block: int
    norm_num_groups: int
    scaling_factor: float
    filters: int
    num_res_blocks: int
    channel_multipliers: tuple[int, ...]
    temporal_downsample: tuple[bool, ...]
    latent_embed_dim: int = 4
    embed_dim: int = 4
    latent_channels: int = 4
    shift: tuple[float, ...] = (-0.10, 0.34, 0.27, 0.98)
    scale: tuple[float, ...] = (3.85, 2.32, 2.33, 3.06)
    chunk_frames: int = 17

    @property
    def time_stride(self) -> int:
        return int(2 ** sum(self.temporal_downsample))

    @property
    def space_stride(self) -> int:
        return int(2 ** (len(self.block_out_channels) - 1))

    @property
    def chunk_latents(self) -> int:
        return math.ceil(self.chunk_frames / self.time_stride)

    def whole(self, pixels: int, latents: int = 1) -> int:
        """The largest number of pixels, no more than ``pixels``, that whole blocks of ``latents`` latents cover."""
        block = latents * self.space_stride
        return pixels // block * block


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Rectified flow with Open-Sora's time transform (docs/spec.md 5.7)."""

    num_timesteps: int = 1000
    use_timestep_transform: bool = True


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """The video that a bundle makes by default."""

    height: int
    width: int
    fps: int = 24
    segment_frames: int = 68
    overlap_frames: int = 17
    max_height: int | None = None
    """Largest height in pixels that the graphs are meant for; ``None``: ``height``."""
    max_width: int | None = None

    @property
    def largest(self) -> tuple[int, int]:
        """(height, width) in pixels of the largest picture that the graphs are meant for."""
        return self.max_height or self.height, self.max_width or self.width


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """All networks of a bundle. Without ``ar``, ``vq`` and ``injection`` the model is plain Open-Sora v1.2."""

    text: TextConfig
    dit: DiTConfig
    vae: VAEConfig
    video: VideoConfig
    flow: FlowConfig = FlowConfig()
    ar: ARConfig | None = None
    vq: VQConfig | None = None
    injection: InjectionConfig | None = None

    def narrowed(self, *, height: int, width: int, segment_frames: int) -> ModelConfig:
        """The configuration of a bundle that makes no larger picture and no longer segment."""
        return dataclasses.replace(self, video=dataclasses.replace(
            self.video, height=height, width=width, max_height=None, max_width=None, segment_frames=segment_frames
        ))
