"""A network without its weights: its module on the meta device, each tensor read from its file when it is needed."""

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
    """What an export needs of one network; opening it reads headers alone."""

    name: str
    """text, ar, vq, dit or vae."""
    module: nn.Module
    """On the meta device, in fp32 and eval mode."""
    tensors: StateDict
    """Every parameter and buffer of ``module``: the checkpoint's, and the tables that the module makes itself."""

    @property
    def nbytes(self) -> int:
        """Of all tensors as they are stored."""
        return sum(math.prod(stored.shape) * stored.dtype.itemsize for stored in self.tensors.values())

    def loaded(self, names: Collection[str]) -> nn.Module:
        """The module on the CPU with the tensors ``names`` in fp32; all others are zeros that take no memory.

        A tensor that its file holds in fp32 stays mapped and takes no memory of its own, either.
        """
        def value(name: str, tensor: Tensor) -> Tensor:
            if name in names:
                return self.tensors[name].load().to(tensor.dtype)
            return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)

        return with_tensors(self.module, value)


def open_network(name: str, build: Callable[[], nn.Module], weights: StateDict, what: str) -> Network:
    """The network that ``build`` makes, with ``weights``; ``what`` names these in errors.

    Raises:
        BundleError: keys and shapes are not the module's; every one is named.
        ExportError: the module makes a buffer that no checkpoint holds, and it came out without values.
    """
    with torch.device("meta"):
        module = build().eval().requires_grad_(False)
    state = module.state_dict()
    check_fit(weights, {key: tuple(tensor.shape) for key, tensor in state.items()}, what)
    made = {key: _made(name, key, tensor) for key, tensor in module.named_buffers() if key not in state}
    return Network(name=name, module=module.to("meta"), tensors={**{key: weights[key] for key in state}, **made})


def with_tensors(module: nn.Module, value: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """A copy of ``module`` whose parameters and buffers are ``value(name, tensor)``; nothing is copied first."""
    replaced: dict[int, object] = {}
    for name, parameter in module.named_parameters():
        replaced[id(parameter)] = nn.Parameter(value(name, parameter), requires_grad=False)
    for name, buffer in module.named_buffers():
        replaced[id(buffer)] = value(name, buffer)
    return copy.deepcopy(module, replaced)


def _made(network: str, name: str, tensor: Tensor) -> StoredTensor:
    if tensor.is_meta:
        raise ExportError(f"{network}: {name} is in no checkpoint and was made on the meta device; make it on the CPU")
    return StoredTensor(name, tuple(tensor.shape), tensor.dtype, tensor.detach)
