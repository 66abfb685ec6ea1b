"""The Muon optimizer for hidden weights; `optimizers` also sets up AdamW for a model's other weights.

Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with the step size of
J. Liu et al., "Muon is scalable for LLM training" (arXiv:2502.16982), eq. 4, so that both share one learning rate.
`torch.optim.Muon` accepts no convolution weights; this one treats them as matrices (out, in·kernel).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the odd polynomial that brings all singular values near 1; from Jordan et al."""
MIN_SIDE = 8
"""A matrix with a smaller side is left to AdamW."""


def orthogonal(matrices: Tensor) -> Tensor:
    """Nearly the semi-orthogonal matrices closest to a stack (n, rows, columns): Newton-Schulz iterations in bf16."""
    a, b, c = COEFFICIENTS
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = (matrices if wide else matrices.mT).bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x if wide else x.mT
    return result.to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Steps along the orthogonalised Nesterov momentum of each weight (out, in, …), with decoupled weight decay."""

    def __init__(
        self, weights: Iterable[Tensor], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(momentum, group["momentum"]).flatten(1)
                alike[ahead.shape].append((weight, ahead))
            for shape, pairs in alike.items():
                updates = orthogonal(torch.stack([ahead for _, ahead in pairs]))
                length = group["lr"] * 0.2 * max(shape) ** 0.5
                for (weight, _), update in zip(pairs, updates, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.sub_(update.view_as(weight), alpha=length)


def hidden_weights(model: nn.Module) -> list[Tensor]:
    """Weights of linear and convolution layers with sides of at least `MIN_SIDE`, without a token head."""
    return [
        module.weight for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)) and name.rpartition(".")[2] != "head"
        and min(module.weight.flatten(1).shape) >= MIN_SIDE
    ]


def optimizers(model: nn.Module, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the hidden weights of ``model``, AdamW for biases, norms, embeddings and small projections."""
    hidden = hidden_weights(model)
    chosen = {id(weight) for weight in hidden}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [Muon(hidden, lr, weight_decay),
            torch.optim.AdamW(rest, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99))]
