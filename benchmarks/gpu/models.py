"""The graphs that are measured: those of a bundle, and exports of full-size modules with random weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
import torch
from full_size_weights import WEIGHT_GAIN
from torch import nn

from arlon_export.checkpoints.checkpoint import build_module
from arlon_export.onnx_graphs.precision import kept_fp32
from arlon_export.onnx_graphs.to_onnx import export_graph
from arlon_rt.bundle import Bundle, GraphEntry, write_manifest
from arlon_rt.config import (
    ARConfig,
    DiTConfig,
    InjectionConfig,
    ModelConfig,
    TextConfig,
    VAEConfig,
    VideoConfig,
    VQConfig,
)
from arlon_rt.graphs import GraphSpec, graph_specs, signature

SMALL = ModelConfig(
    text=TextConfig(vocab_size=64, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2, max_length=16),
    ar=ARConfig(
        num_codes=64, hidden_size=32, num_layers=2, num_heads=2, ffn_size=64, text_dim=32, grid=(6, 3, 4),
        max_length=96, max_top_k=16,
    ),
    vq=VQConfig(num_codes=64, code_dim=8, stride=(2, 2, 2), channels=(16, 16), num_res_blocks=1, norm_groups=4),
    dit=DiTConfig(hidden_size=32, depth=1, num_heads=2, caption_channels=32, model_max_length=16),
    injection=InjectionConfig(layers=(0,)),
    vae=VAEConfig(
        block_out_channels=(16, 16, 16, 16), layers_per_block=1, norm_num_groups=4, scaling_factor=0.18215,
        filters=16, num_res_blocks=1, channel_multipliers=(1, 1, 2, 2), temporal_downsample=(False, True, True),
    ),
    video=VideoConfig(height=48, width=64, segment_frames=34),
)
"""The same networks at widths of 16 and 32, for ``--smoke``."""
DECISIVE = {"dit": "one denoising step", "ar_step": "one token", "vae_decoder": "one VAE chunk"}
"""Graph that takes most of a video's time -> what one run of it computes."""


@dataclass(frozen=True)
class Case:
    """One graph, for torch and a backend to open with the same weights."""

    bundle: Bundle
    spec: GraphSpec
    precision: str
    network: nn.Module
    """In ``precision``, on the CPU, without gradients."""

    @property
    def file(self) -> Path:
        return self.bundle.graph_file(self.spec.name, self.precision)


def decisive_first(model: ModelConfig) -> list[str]:
    """The graphs of ``model``, the `DECISIVE` ones first, in case time runs out."""
    graphs = graph_specs(model)
    return [*(g for g in DECISIVE if g in graphs), *(g for g in graphs if g not in DECISIVE)]


class Subject(Protocol):
    """A model whose graphs are measured."""

    name: str
    model: ModelConfig

    def rows(self) -> list[tuple[str, str]]:
        """(graph, precision) of each row, the most important ones first."""

    def case(self, graph: str, precision: str) -> Case: ...


class BundleSubject:
    """The graphs of a bundle. Torch reads its weights from the .onnx files."""

    name = "bundle"

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.model = bundle.model

    def rows(self) -> list[tuple[str, str]]:
        graphs = self.bundle.manifest.graphs
        return [(g, p) for p in ("fp16", "fp32") for g in decisive_first(self.model) if p in graphs.get(g, ())]

    def case(self, graph: str, precision: str) -> Case:
        spec = graph_specs(self.model)[graph]
        network = build_module(self.model, spec.network).eval().requires_grad_(False)
        read_weights(network, self.bundle.graph_file(graph, precision))
        return Case(self.bundle, spec, precision, network.half() if precision == "fp16" else network)


class RandomSubject:
    """Modules of any size with random weights in fp16. Each is exported when it is measured."""

    def __init__(self, name: str, model: ModelConfig, folder: Path, device: str) -> None:
        self.name = name
        self.model = model
        self._folder = folder
        self._device = device
        self._last: tuple[str, nn.Module] | None = None

    def rows(self) -> list[tuple[str, str]]:
        return [(g, "fp16") for g in decisive_first(self.model)]

    def case(self, graph: str, precision: str) -> Case:
        spec = graph_specs(self.model)[graph]
        network = self._network(spec.network)
        return Case(export_bundle(self._folder / graph, self.model, spec, network, precision), spec, precision, network)

    def _network(self, name: str) -> nn.Module:
        if self._last is None or self._last[0] != name:
            self._last = None  # freed before the next one is built: two full-size networks may not fit
            self._last = (name, random_network(self.model, name, self._device).half())
        return self._last[1].cpu()


class StandInSubject(RandomSubject):
    """A substitute for the bundle in ``--smoke`` without one: random graphs in fp32, read from their files."""

    def rows(self) -> list[tuple[str, str]]:
        return [(g, "fp32") for g in ("ar_step", "vq_decoder", "caption")]

    def _network(self, name: str) -> nn.Module:
        return random_network(self.model, name, self._device)

    def case(self, graph: str, precision: str) -> Case:
        return BundleSubject(super().case(graph, precision).bundle).case(graph, precision)


def random_network(model: ModelConfig, name: str, device: str) -> nn.Module:
    """A network on the CPU whose random weights, drawn on ``device``, keep activations near 1."""
    torch.manual_seed(0)
    with torch.device(device):
        network = build_module(model, name).eval().requires_grad_(False)
        for key, weight in network.named_parameters():
            if key == "rope.freqs":
                continue
            fan_in = math.prod(weight.shape[1:]) if weight.dim() > 1 else 0
            noise = torch.randn_like(weight)
            weight.copy_(noise * (WEIGHT_GAIN / math.sqrt(fan_in)) if fan_in else weight.mean() + 0.02 * noise)
    return network.cpu()


def export_bundle(folder: Path, model: ModelConfig, spec: GraphSpec, network: nn.Module, precision: str) -> Bundle:
    """A bundle of one graph of ``model``, which arlon_rt's own sessions can open."""
    (folder / "onnx").mkdir(parents=True)
    file, weights = f"onnx/{spec.name}.{precision}.onnx", f"{spec.name}.data"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own code
        graph = export_graph(model, spec, network, precision=precision)
    ir.save(graph, folder / file, external_data=weights)
    entry = GraphEntry(
        file=file, data=(f"onnx/{weights}",) if (folder / "onnx" / weights).exists() else (),
        inputs=signature(spec.inputs, precision), outputs=signature(spec.outputs, precision),
        kept_fp32=kept_fp32(spec.name, graph, precision),
    )
    write_manifest(folder, model=model, defaults={"num_frames": 17}, graphs={spec.name: {precision: entry}})
    return Bundle.open(folder)


def read_weights(network: nn.Module, file: Path) -> None:
    """Copy the initialisers of ``file`` into the weights of ``network`` that have the same names."""
    weights = network.state_dict()
    for name, value in ir.load(file).graph.initializers.items():
        if name in weights and value.const_value is not None:
            weights[name].copy_(torch.from_numpy(np.array(value.const_value.numpy())))


def weight_bytes(case: Case) -> int:
    """Bytes of weights that one run reads in this precision. A table from which Gather takes a few rows counts 0."""
    width = 2 if case.precision == "fp16" else 4
    names = case.network.state_dict()
    values = [v for n, v in ir.load(case.file).graph.initializers.items() if n in names]
    return sum(width * math.prod(_sizes(v)) for v in values if {n.op_type for n in _readers(v)} != {"Gather"})


def _sizes(value: ir.Value) -> Sequence[int]:
    assert value.const_value is not None
    sizes: Any = value.const_value.shape
    return tuple(int(s) for s in sizes)


def _readers(value: ir.Value) -> list[ir.Node]:
    """The nodes that use a weight, directly or through the Cast that widens it."""
    found = []
    for node in value.consumers():
        found += _readers(node.outputs[0]) if node.op_type == "Cast" else [node]
    return found
