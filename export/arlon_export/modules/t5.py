"""The encoder of T5 v1.1 (gated GELU) with the state-dict keys of transformers' T5EncoderModel."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arlon_rt.config import TextConfig


class T5LayerNorm(nn.Module):
    """x / rms(x) * weight, in float32; returns the weight's dtype."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.eps = config.layer_norm_epsilon
        self.weight = nn.Parameter(torch.ones(config.d_model))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.eps).to(self.weight.dtype)


class SelfAttention(nn.Module):
    """Attention whose scores are not scaled; that of the first block also holds the position bias of all blocks."""

    def __init__(self, config: TextConfig, *, has_bias: bool) -> None:
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.num_heads = config.num_heads
        self.num_buckets = config.relative_attention_num_buckets
        self.max_distance = config.relative_attention_max_distance
        self.q = nn.Linear(config.d_model, inner, bias=False)
        self.k = nn.Linear(config.d_model, inner, bias=False)
        self.v = nn.Linear(config.d_model, inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        if has_bias:
            self.relative_attention_bias = nn.Embedding(self.num_buckets, config.num_heads)

    def position_bias(self, length: int) -> Tensor:
        """(1, head, query, key) of a prompt of ``length`` tokens."""
        positions = torch.arange(length, device=self.q.weight.device)
        buckets = relative_buckets(positions[None, :] - positions[:, None], self.num_buckets, self.max_distance)
        bias: Tensor = self.relative_attention_bias(buckets).permute(2, 0, 1)
        return bias[None]

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x (batch, token, d_model), bias (batch, head, query, key) added to the scores -> as x."""
        query, key, value = (self._heads(projection(x)) for projection in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype), scale=1.0)
        out: Tensor = self.o(y.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        """(batch, token, head * d_kv) -> (batch, head, token, d_kv)."""
        return x.reshape(*x.shape[:-1], self.num_heads, -1).transpose(1, 2)


class AttentionLayer(nn.Module):
    """Normalised self-attention and its residual sum."""

    def __init__(self, config: TextConfig, *, has_bias: bool) -> None:
        super().__init__()
        self.SelfAttention = SelfAttention(config, has_bias=has_bias)  # the name in transformers and in checkpoints
        self.layer_norm = T5LayerNorm(config)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        y: Tensor = x + self.SelfAttention(self.layer_norm(x), bias)
        return y


class GatedMLP(nn.Module):
    """wo(gelu_tanh(wi_0 x) * wi_1 x); the product and wo are in float32, because T5-XXL leaves float16's range."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wi_1 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.wi_0(x).float(), approximate="tanh") * self.wi_1(x).float()
        return F.linear(hidden, self.wo.weight.float())


class FeedForwardLayer(nn.Module):
    """Normalised gated MLP and its residual sum."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.DenseReluDense = GatedMLP(config)
        self.layer_norm = T5LayerNorm(config)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.DenseReluDense(self.layer_norm(x))
        return y


class Block(nn.Module):
    """Self-attention, then the MLP."""

    def __init__(self, config: TextConfig, *, has_bias: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([AttentionLayer(config, has_bias=has_bias), FeedForwardLayer(config)])

    def position_bias(self, length: int) -> Tensor:
        """`SelfAttention.position_bias`; all blocks use that of the first."""
        attention = self.layer[0]
        assert isinstance(attention, AttentionLayer)
        return attention.SelfAttention.position_bias(length)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        attention, feed_forward = self.layer
        y: Tensor = feed_forward(attention(x, bias))
        return y


class Stack(nn.Module):
    """All blocks and the closing norm."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.block = nn.ModuleList(Block(config, has_bias=index == 0) for index in range(config.num_layers))
        self.final_layer_norm = T5LayerNorm(config)


class T5Encoder(nn.Module):
    """Token ids -> hidden states; the residual stream is always float32."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = Stack(config)
        self._reset_parameters(config)
        self.register_load_state_dict_pre_hook(drop_embedding_alias)  # type: ignore[no-untyped-call]

    def _reset_parameters(self, config: TextConfig) -> None:
        """Initialise with normal weights of T5's scales; queries start small because scores are not scaled."""
        inner = config.num_heads * config.d_kv
        deviations = {
            "shared": 1.0, "q": (config.d_model * config.d_kv) ** -0.5, "k": config.d_model**-0.5,
            "v": config.d_model**-0.5, "o": inner**-0.5, "relative_attention_bias": config.d_model**-0.5,
            "wi_0": config.d_model**-0.5, "wi_1": config.d_model**-0.5, "wo": config.d_ff**-0.5,
        }
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=deviations[name.rpartition(".")[2]])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, prompt) int64, (batch, prompt) bool (True for valid tokens) -> (batch, prompt, d_model)."""
        blocks = [block for block in self.encoder.block if isinstance(block, Block)]
        bias = blocks[0].position_bias(input_ids.shape[1])
        keep = attention_mask[:, None, None, :]
        bias = bias.masked_fill(~keep, torch.finfo(bias.dtype).min)
        x = self.shared(input_ids).float()
        for block in blocks:
            x = block(x, bias)
        y: Tensor = self.encoder.final_layer_norm(x)
        return y


def relative_buckets(distance: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """T5's bidirectional buckets of key position - query position (int64, any shape).

    Half of the buckets are for keys after the query. Of each half, one half holds one distance a bucket and the rest
    grows logarithmically up to ``max_distance``.
    """
    half = num_buckets // 2
    exact = half // 2
    size = distance.abs()
    ratio = torch.log(size.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    logarithmic = (exact + (ratio * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(distance > 0, half, 0) + torch.where(size < exact, size, logarithmic)


def drop_embedding_alias(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Drop the second name of the embedding, which files of ``torch.save`` hold beside ``shared.weight``."""
    if f"{prefix}shared.weight" in state:
        state.pop(f"{prefix}encoder.embed_tokens.weight", None)
