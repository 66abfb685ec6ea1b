"""A pipeline whose graphs are PyTorch modules in float32: the reference for exported graphs and for training runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from arlon_export.onnx_graphs.wrappers import GraphModule
from arlon_rt.config import ModelConfig
from arlon_rt.graphs import GraphSpec, graph_specs
from arlon_rt.networks import Networks
from arlon_rt.pipeline import Pipeline

OnCall = Callable[[GraphSpec, Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]], None]
"""Called with a graph's spec, its inputs and its outputs."""


class TorchSession:
    """One graph of the contract, run by its PyTorch module in fp32. Its handles are arrays."""

    float_dtype = np.dtype(np.float32)

    def __init__(self, spec: GraphSpec, network: Callable[[], nn.Module], on_call: OnCall | None = None) -> None:
        self.spec, self._network, self._on_call = spec, network, on_call

    def run(self, feed: Mapping[str, NDArray[Any]], hold: Collection[str] = ()) -> dict[str, NDArray[Any]]:
        inputs = {t.name: np.ascontiguousarray(feed[t.name]) for t in self.spec.inputs}
        outputs = run_module(GraphModule(self.spec, self._network()), self.spec, inputs)
        if self._on_call:
            self._on_call(self.spec, inputs, outputs)
        return outputs

    def upload(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        return array

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Unexported:
    """What a pipeline reads of a bundle, for networks that were not exported."""

    model: ModelConfig
    tokenizer_path: Path
    defaults: Mapping[str, Any]


def run_module(
    module: nn.Module, spec: GraphSpec, feed: Mapping[str, NDArray[Any]], dtype: torch.dtype = torch.float32
) -> dict[str, NDArray[Any]]:
    """The graph's outputs by name, bf16 as float32. ``module`` is its `GraphModule`, whose floats are ``dtype``."""
    inputs = [torch.from_numpy(feed[t.name]) for t in spec.inputs]
    with torch.inference_mode():
        outputs = module(*(x.to(dtype) if t.dtype == "float" else x for t, x in zip(spec.inputs, inputs, strict=True)))
    wide = (value.float() if value.dtype == torch.bfloat16 else value for value in outputs)  # numpy has no bfloat16
    return {t.name: value.numpy() for t, value in zip(spec.outputs, wide, strict=False)}


def torch_pipeline(
    model: ModelConfig, network: Callable[[str], nn.Module], tokenizer: Path, defaults: Mapping[str, Any],
    on_call: OnCall | None = None,
) -> Pipeline:
    """A pipeline of fp32 modules on the CPU. Each run calls ``network`` with a network's name to get its module."""
    unexported: Any = Unexported(model=model, tokenizer_path=tokenizer, defaults=defaults)
    sessions: Any = {
        name: TorchSession(spec, lambda name=spec.network: network(name), on_call)  # type: ignore[misc]
        for name, spec in graph_specs(model).items()
    }
    return Pipeline(unexported, Networks.of(unexported, sessions, "fp32"))
