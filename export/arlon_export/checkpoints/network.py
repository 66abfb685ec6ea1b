"""A network whose weights are not in memory: a module on the meta device, and tensors that are read when needed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from arlon_export.checkpoints.state_dict import StateDict, StoredTensor, check_fit
from arlon_export.errors import ExportError


@dataclass(frozen=True, kw_only=True)
class Network:
    """One network to export. Opening it reads only the headers of its files."""

    name: str
    """text, ar, vq, dit or vae."""
    module: nn.Module
    """On the meta device, in fp32 and eval mode."""
    tensors: StateDict
    """Every parameter and buffer of ``module``: those of the checkpoint, and the tables that the module computes."""

    @property
    def nbytes(self) -> int:
        """Size of all tensors as they are stored."""
        return sum(math.prod(stored.shape) * stored.dtype.itemsize for stored in self.tensors.values())

    def loaded(self, names: Collection[str]) -> nn.Module:
        """The module on the CPU with the tensors ``names`` in fp32; the others are zeros that take no memory.

        A tensor whose file holds it in fp32 is mapped, so it takes no memory of its own either.
        """
        def value(name: str, tensor: Tensor) -> Tensor:
            if name in names:
                return self.tensors[name].load().to(tensor.dtype)
            return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)

        return with_tensors(self.module, value)


def open_network(name: str, build: Callable[[], nn.Module], weights: StateDict, what: str) -> Network:
    """The network of the module that ``build`` returns, with ``weights``; ``what`` names these in errors.

    Raises:
        BundleError: keys or shapes are not those of the module; all are named.
        ExportError: a buffer that no checkpoint holds was computed on the meta device, so it has no values.
    """
    with torch.device("meta"):
        module = build().eval().requires_grad_(False)
    state = module.state_dict()
    check_fit(weights, {key: tuple(tensor.shape) for key, tensor in state.items()}, what)
    tables = {key: _computed_table(name, key, tensor) for key, tensor in module.named_buffers() if key not in state}
    return Network(name=name, module=module.to("meta"), tensors={**{key: weights[key] for key in state}, **tables})


def with_tensors(module: nn.Module, value: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """A copy of ``module`` whose parameters and buffers are ``value(name, tensor)``; the old ones are not copied."""
    replaced: dict[int, object] = {}
    for name, parameter in module.named_parameters():
        replaced[id(parameter)] = nn.Parameter(value(name, parameter), requires_grad=False)
    for name, buffer in module.named_buffers():
        replaced[id(buffer)] = value(name, buffer)
    return copy.deepcopy(module, replaced)


def _computed_table(network: str, name: str, tensor: Tensor) -> StoredTensor:
    if tensor.is_meta:
        raise ExportError(f"{network}: {name} is in no checkpoint and was made on the meta device; make it on the CPU")
    return StoredTensor(name, tuple(tensor.shape), tensor.dtype, tensor.detach)
