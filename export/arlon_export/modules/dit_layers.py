"""The layers of STDiT3: attention, MLP, embedders and the two kinds of block."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arlon_export.modules.injection import inject
from arlon_rt.config import DiTConfig

NORM_EPS = 1e-6
SINUSOID_CHANNELS = 256


def residual_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the residual stream for weights of ``dtype``: float32 for fp16 weights.

    The stream is a sum over all blocks that is never normalised, so it leaves fp16's range. bf16 has float32's range
    and stays, as in the published run (docs/spec.md 5.4).
    """
    return torch.float32 if dtype == torch.float16 else dtype


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis; torch and the ONNX op both take the statistics in float32."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), NORM_EPS)


class MLP(nn.Module):
    """fc2(gelu_tanh(fc1(x)))."""

    def __init__(self, size: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return y


class ScalarEmbedder(nn.Module):
    """Numbers (n,) -> their sinusoids (cosines first, period up to 10,000) -> two linear layers -> (n, size)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(SINUSOID_CHANNELS, size), nn.SiLU(), nn.Linear(size, size))

    def forward(self, values: Tensor) -> Tensor:
        half = SINUSOID_CHANNELS // 2
        exponents = torch.arange(half, dtype=torch.float32, device=values.device) / half
        angles = values.float()[:, None] * torch.exp(-math.log(10_000.0) * exponents)
        sinusoid = torch.cat([angles.cos(), angles.sin()], dim=-1)
        y: Tensor = self.mlp(sinusoid.to(next(self.mlp.parameters()).dtype))
        return y


class CaptionEmbedder(nn.Module):
    """Caption features -> the transformer's width; rows without a caption read the learned ``y_embedding`` instead."""

    y_embedding: Tensor

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        shape = (config.model_max_length, config.caption_channels)
        self.register_buffer("y_embedding", torch.randn(shape) / math.sqrt(config.caption_channels))
        self.y_proj = MLP(config.caption_channels, config.hidden_size, config.hidden_size)

    def forward(self, text: Tensor, use_null: Tensor) -> Tensor:
        """(batch, prompt, caption_channels), (batch,) bool -> (batch, prompt, hidden_size)."""
        null = self.y_embedding[: text.shape[1]]
        y: Tensor = self.y_proj(torch.where(use_null[:, None, None], null, text.to(null.dtype)))
        return y


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the interleaved channel pairs of x (batch, head, frame, head_dim) by angles (frame, head_dim / 2)."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    if torch.onnx.is_in_onnx_export():
        # As one row of batch * head heads, so that the operator needs no copy of the tables for each batch row.
        turned: Tensor = torch.onnx.ops.rotary_embedding(x.flatten(0, 1)[None], cos[None], sin[None], interleaved=True)
        return turned.reshape(x.shape)
    even, odd = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(batch, token, head * head_dim) -> (batch, head, token, head_dim)."""
    return x.reshape(*x.shape[:-1], num_heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(batch, head, token, head_dim) -> (batch, token, head * head_dim)."""
    return x.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Attention with normalised queries and keys, rotary if the caller has tables: (batch, token, size) -> same."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(size, 3 * size)
        self.q_norm = RMSNorm(size // num_heads)
        self.k_norm = RMSNorm(size // num_heads)
        self.proj = nn.Linear(size, size)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
        query, key, value = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        query, key = self.q_norm(query), self.k_norm(key)
        if rotary is not None:
            query, key = rotate(query, *rotary), rotate(key, *rotary)
        y: Tensor = self.proj(merge_heads(F.scaled_dot_product_attention(query, key, value)))
        return y


class CrossAttention(nn.Module):
    """Attention from every token to the prompt, whose keys and values are computed once a prompt."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = nn.Linear(size, size)
        self.kv_linear = nn.Linear(size, 2 * size)
        self.proj = nn.Linear(size, size)

    def keys_values(self, caption: Tensor) -> Tensor:
        """(batch, prompt, size) -> (2, batch, head, prompt, head_dim)."""
        kv: Tensor = self.kv_linear(caption)
        return kv.reshape(*kv.shape[:-1], 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor, caption_kv: Tensor, text_mask: Tensor) -> Tensor:
        """x (batch, token, size), caption_kv as `keys_values` gives it, text_mask (batch, prompt) bool -> as x.

        x is the residual stream, not normalised; queries are computed in its dtype.
        """
        weight, bias = (p.to(x.dtype) for p in (self.q_linear.weight, self.q_linear.bias))
        query = split_heads(F.linear(x, weight, bias).to(caption_kv.dtype), self.num_heads)
        key, value = caption_kv.unbind(0)
        # ONNX Runtime's Attention does not broadcast a mask over queries.
        mask = text_mask[:, None, None, :].expand(-1, -1, x.shape[1], -1)
        y: Tensor = self.proj(merge_heads(F.scaled_dot_product_attention(query, key, value, attn_mask=mask)))
        return y


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LN(x) * (1 + scale) + shift in the dtype of shift; LN has no weights and is computed in the dtype of x."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS).to(shift.dtype) * (1 + scale) + shift


class Block(nn.Module):
    """Self-attention (within a frame or along time), cross-attention, MLP; the first and last modulated and gated."""

    def __init__(self, config: DiTConfig, *, temporal: bool) -> None:
        super().__init__()
        size = config.hidden_size
        self.temporal = temporal
        self.scale_shift_table = nn.Parameter(torch.randn(6, size) / math.sqrt(size))
        self.attn = SelfAttention(size, config.num_heads)
        self.cross_attn = CrossAttention(size, config.num_heads)
        self.mlp = MLP(size, int(size * config.mlp_ratio), size)

    def forward(
        self, x: Tensor, modulation: Tensor, caption_kv: Tensor, text_mask: Tensor,
        rotary: tuple[Tensor, Tensor], features: Tensor | None,
    ) -> Tensor:
        """One block.

        Args:
            x: (batch, frame, patch, size), of `residual_dtype`.
            modulation: (batch or 1, frame, 6, size): shift, scale and gate of the attention, then of the MLP.
            caption_kv: (2, batch, head, prompt, head_dim).
            text_mask: (batch, prompt) bool.
            rotary: cosines and sines, each (frame, head_dim / 2); read by temporal blocks.
            features: (batch or 1, frame, patch, 3 * size) of an injected block, or None.
        """
        table = modulation + self.scale_shift_table
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = table.chunk(6, dim=-2)
        wide = torch.promote_types(table.dtype, x.dtype)  # values added to the stream are computed in its dtype
        gate_msa, gate_mlp = gate_msa.to(wide), gate_mlp.to(wide)
        branch = gate_msa * self._attend(modulate(x, shift_msa, scale_msa), rotary)
        x = x + (branch if features is None else inject(branch, features))
        x = x + self.cross_attn(x.flatten(1, 2), caption_kv, text_mask).reshape(x.shape)
        y: Tensor = x + gate_mlp * self.mlp(modulate(x, shift_mlp, scale_mlp))
        return y

    def _attend(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        if self.temporal:
            along_time = x.transpose(1, 2)
            y: Tensor = self.attn(along_time.flatten(0, 1), rotary).reshape(along_time.shape).transpose(1, 2)
            return y
        within_frame: Tensor = self.attn(x.flatten(0, 1)).reshape(x.shape)
        return within_frame


class FinalLayer(nn.Module):
    """Modulated normalisation, then the patches' output values."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.scale_shift_table = nn.Parameter(torch.randn(2, size) / math.sqrt(size))
        self.linear = nn.Linear(size, math.prod(config.patch_size) * config.out_channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (batch, frame, patch, size), time (batch or 1, frame, 1, size) -> (batch, frame, patch, patch values)."""
        shift, scale = (time + self.scale_shift_table).chunk(2, dim=-2)
        y: Tensor = self.linear(modulate(x, shift, scale))
        return y
