"""The autoregressive token model: it continues a text prefix and BOS with codes (docs/spec.md 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arlon_rt.config import ARConfig


def sample(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, uniform: Tensor, max_top_k: int
) -> Tensor:
    """Draw one token (1, 1) int64 from logits (1, codes) fp32 with one TopK.

    All settings have shape (1,). ``uniform`` in [0, 1) picks from the mass kept by ``top_k`` and ``top_p``; the best
    token is always kept, also where ``top_p`` is 0.
    """
    values, codes = logits.topk(max_top_k, dim=-1)
    values = (values - values[:, :1]) / temperature.clamp(min=1e-6)
    rank = torch.arange(max_top_k, device=logits.device)
    probability = values.masked_fill(rank >= top_k.clamp(min=1), float("-inf")).softmax(dim=-1)
    cumulative = probability.cumsum(dim=-1)
    kept = (cumulative - probability) < top_p.clamp(min=1e-6)
    mass = (probability * kept).sum(dim=-1, keepdim=True)
    chosen = (cumulative <= uniform * mass).sum(dim=-1, keepdim=True)
    last = kept.sum(dim=-1, keepdim=True) - 1
    return codes.gather(1, torch.minimum(chosen, last))


def write_cache(cache: Tensor, update: Tensor, write_index: Tensor) -> Tensor:
    """The cache (b, head, max_length, head_dim) with ``update`` (b, head, n, head_dim) from slot ``write_index`` (b,).

    In an exported graph this is TensorScatter, which backends do in place.
    """
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            "TensorScatter", [cache, update, write_index], {"axis": -2, "mode": "linear"},
            dtype=cache.dtype, shape=cache.shape, version=24,
        )
    slots = write_index[:, None] + torch.arange(update.shape[2], device=update.device)
    return cache.scatter(2, slots[:, None, :, None].expand_as(update), update)


class Rotary(nn.Module):
    """Rotary embedding of queries and keys by cache slot; the first and second half of a head are paired."""

    cos: Tensor
    sin: Tensor

    def __init__(self, max_length: int, head_dim: int, theta: float) -> None:
        super().__init__()
        # Always on the CPU, even if the model is built on the meta device: no checkpoint holds these tables.
        frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim)
        angle = torch.outer(torch.arange(max_length, dtype=torch.float64, device="cpu"), frequency)
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def forward(self, x: Tensor, slots: Tensor) -> Tensor:
        """x (b, head, n, head_dim) at slots (b, n)."""
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        if torch.onnx.is_in_onnx_export():
            return torch.onnx.ops.rotary_embedding(x, cos, sin, slots)
        cos, sin = cos[slots].unsqueeze(1), sin[slots].unsqueeze(1)
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class Block(nn.Module):
    """One pre-norm transformer layer: the caller computes the attention between `project` and `finish`."""

    def __init__(self, config: ARConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.norm1 = nn.LayerNorm(config.hidden_size)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm2 = nn.LayerNorm(config.hidden_size)
        self.fc1 = nn.Linear(config.hidden_size, config.ffn_size)
        self.fc2 = nn.Linear(config.ffn_size, config.hidden_size)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """(b, n, hidden) -> queries, keys and values, each (b, head, n, head_dim), not yet rotated."""
        batch, length, hidden = x.shape
        heads = (batch, length, self.num_heads, hidden // self.num_heads)
        qkv: Tensor = self.qkv(self.norm1(x))
        return tuple(part.reshape(heads).transpose(1, 2) for part in qkv.chunk(3, dim=-1))

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add the attention output (b, head, n, head_dim) and the feed-forward to x (b, n, hidden)."""
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x


class TokenModel(nn.Module):
    """Decoder-only transformer over [text, BOS, codes]; a token's rotary index is its cache slot.

    Caches are a flat list key_0, value_0, key_1, … of (b, head, max_length, head_dim), as graphs.py names them.
    """

    def __init__(self, config: ARConfig) -> None:
        super().__init__()
        if not 1 <= config.max_top_k <= config.num_codes:
            raise ValueError(f"ar.max_top_k is {config.max_top_k}; it must be 1..num_codes ({config.num_codes})")
        self.config = config
        self.text_projection = nn.Linear(config.text_dim, config.hidden_size)
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.ModuleList([nn.Embedding(rows, config.hidden_size) for rows in config.grid])
        self.rotary = Rotary(config.max_length, config.head_dim, config.rope_theta)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.num_layers)])
        self.norm = nn.LayerNorm(config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.apply(_initialise)
        for block in self._blocks():
            for layer in (block.out, block.fc2):
                nn.init.normal_(layer.weight, std=0.02 / (2 * config.num_layers) ** 0.5)

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def empty_caches(self, batch: int) -> list[Tensor]:
        """Zeroed caches for ``batch`` rows."""
        c, like = self.config, self.head.weight
        shape = (batch, c.num_heads, c.max_length, c.head_dim)
        return [like.new_zeros(shape) for _ in range(2 * c.num_layers)]

    def _embed(self, tokens: Tensor, grid: Tensor) -> Tensor:
        x: Tensor = self.token_embedding(tokens)
        for axis, table in enumerate(self.positions):
            x = x + table(grid[..., axis])
        return x

    def logits(self, last_hidden_state: Tensor, text_length: Tensor, tokens: Tensor, grid: Tensor) -> Tensor:
        """All next-token logits (b, n, codes + 2) in one parallel pass, for training.

        ``last_hidden_state`` (b, p, text_dim) padded on the right, of which each row's first ``text_length`` (b,) are
        valid; ``tokens`` (b, n), BOS included, stand right after them; ``grid`` (b or 1, n, 3).
        """
        batch, prompt = last_hidden_state.shape[:2]
        place = torch.arange(prompt + tokens.shape[1], device=tokens.device)
        is_text = place < prompt
        slots = torch.where(is_text, place, place - prompt + text_length[:, None])
        valid = ~is_text | (place < text_length[:, None])
        mask = (place[None, :] <= place[:, None]) & valid[:, None, :]
        text = self.text_projection(last_hidden_state)
        x = torch.cat([text, self._embed(tokens, grid).expand(batch, -1, -1)], dim=1)
        for block in self._blocks():
            query, key, value = block.project(x)
            query, key = self.rotary(query, slots), self.rotary(key, slots)
            x = block.finish(x, F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None]))
        out: Tensor = self.head(self.norm(x[:, prompt:]))
        return out

    def prefix(self, last_hidden_state: Tensor, caches: Sequence[Tensor]) -> list[Tensor]:
        """The ar_prefix graph: text rows (b, p, text_dim), padded on the right -> caches filled from slot 0.

        `step` starts at a prompt's true length and overwrites the padding rows.
        """
        batch, prompt = last_hidden_state.shape[:2]
        slots = torch.arange(prompt, device=last_hidden_state.device).expand(batch, prompt)
        start = torch.zeros_like(slots[:, 0])
        x: Tensor = self.text_projection(last_hidden_state)
        filled: list[Tensor] = []
        for layer, block in enumerate(self._blocks()):
            query, key, value = block.project(x)
            query, key = self.rotary(query, slots), self.rotary(key, slots)
            filled.append(write_cache(caches[2 * layer], key, start))
            filled.append(write_cache(caches[2 * layer + 1], value, start))
            x = block.finish(x, F.scaled_dot_product_attention(query, key, value, is_causal=True))
        return filled

    def step_logits(
        self, tokens: Tensor, grid: Tensor, write_index: Tensor, caches: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits (b, codes + 2) after the last of ``tokens`` (1, n), written at ``write_index`` (b,); new caches."""
        slots = write_index[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        cached = torch.arange(self.config.max_length, device=tokens.device)
        mask = (cached <= slots[:, :, None]).unsqueeze(1)
        x = self._embed(tokens, grid[None]).expand(write_index.shape[0], -1, -1)
        filled: list[Tensor] = []
        for layer, block in enumerate(self._blocks()):
            query, key, value = block.project(x)
            query, key = self.rotary(query, slots), self.rotary(key, slots)
            keys = write_cache(caches[2 * layer], key, write_index)
            values = write_cache(caches[2 * layer + 1], value, write_index)
            filled += [keys, values]
            x = block.finish(x, F.scaled_dot_product_attention(query, keys, values, attn_mask=mask))
        out: Tensor = self.head(self.norm(x[:, -1]))
        return out, filled

    def step(
        self, tokens: Tensor, grid: Tensor, write_index: Tensor, guidance_weights: Tensor, temperature: Tensor,
        top_k: Tensor, top_p: Tensor, uniform: Tensor, caches: Sequence[Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        """The ar_step graph: tokens (1, n) shared by all rows -> the next token (1, 1) and the caches.

        ``grid`` (n, 3), ``write_index`` and ``guidance_weights`` (b,). BOS and EOS are never drawn.
        """
        row_logits, filled = self.step_logits(tokens, grid, write_index, caches)
        codes = row_logits[:, : self.config.num_codes].float()
        guided = (guidance_weights[:, None] * codes).sum(dim=0, keepdim=True)
        return sample(guided, temperature, top_k, top_p, uniform, self.config.max_top_k), filled


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
