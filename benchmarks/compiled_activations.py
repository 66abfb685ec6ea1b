"""The activations that TensorRT for RTX states when it compiles graphs of the published widths, without a GPU.

    python benchmarks/compiled_activations.py --profile 256x256x68 --profile 512x512x68

The networks have random weights and are one block, or one pair of blocks, deep: activations do not depend on the depth.
They are compiled in fp16 for SM89. `ALIVE` in arlon_rt/memory/activations.py is the figure "alive", rounded up.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from full_size_weights import FULL_SIZE
from gpu.models import export_bundle, random_network

from arlon_engines.flavour import open_flavour
from arlon_engines.gate import attention_layers
from arlon_engines.profiles import Size, parse_size, profiles_of, shape
from arlon_rt.config import InjectionConfig, ModelConfig
from arlon_rt.graphs import graph_specs
from arlon_rt.memory import BASE, Demand, widest


def shallow(model: ModelConfig) -> ModelConfig:
    """The model with one layer in each transformer and a short vocabulary."""
    assert model.ar
    return dataclasses.replace(
        model, text=dataclasses.replace(model.text, num_layers=1, vocab_size=256),
        ar=dataclasses.replace(model.ar, num_layers=1), dit=dataclasses.replace(model.dit, depth=1),
        injection=InjectionConfig(layers=(0,)),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--profile", action="append", required=True, metavar="WxHxF")
    args, model, trt = parser.parse_args(), shallow(FULL_SIZE), open_flavour("tensorrt-rtx").trt
    stated: list[int] = []

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]  # the bindings are not typed
        def log(self, severity: Any, message: str) -> None:
            stated.extend(int(n) for n in re.findall(r"^Total Activation Memory: (\d+) bytes", message))

    log = Log()
    sizes = [parse_size(text, FULL_SIZE) for text in args.profile]
    for graph, spec in graph_specs(model).items():
        network = random_network(model, spec.network, "cpu").half()
        with tempfile.TemporaryDirectory() as folder:
            bundle = export_bundle(Path(folder) / graph, model, spec, network, "fp16")
            for size in sizes:
                stated.clear()
                compile_graph(trt, log, bundle.graph_file(graph, "fp16"), model, graph, size)
                print(f"{size} {graph}: {max(stated)} bytes, alive {alive(model, graph, size, max(stated)):.2f}")
    return 0


def compile_graph(trt: Any, log: Any, file: Path, model: ModelConfig, graph: str, size: Size) -> None:
    """Build the engine of a graph, for what TensorRT logs meanwhile."""
    builder = trt.Builder(log)
    network = builder.create_network(0)
    if not trt.OnnxParser(network, log).parse_from_file(str(file)):
        raise RuntimeError(f"{graph} is not parsed")
    for layer in attention_layers(trt, [network.get_layer(i) for i in range(network.num_layers)]):
        layer.attention.decomposable = True
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    for ranges in profiles_of(model, graph, (size,)):
        profile = builder.create_optimization_profile()
        for tensor in graph_specs(model)[graph].inputs:
            profile.set_shape(tensor.name, *(shape(tensor, ranges, bound) for bound in ("min", "opt", "max")))
        config.add_optimization_profile(profile)
    if builder.build_serialized_network(network, config) is None:
        raise RuntimeError(f"{graph} is not built")


def alive(model: ModelConfig, graph: str, size: Size, stated: int) -> float:
    """The stated bytes as a number of tensors as large as the widest, with two rows, which engines allow."""
    demand = Demand(
        height=size.height, width=size.width, latents=20, guided=True, also_unguided=False, ar_guided=True, inject=True
    )
    spec = graph_specs(demand.narrowed(model))[graph]
    rows = {"batch": 2} if any(axis.name == "batch" for axis in spec.axes) else {}
    return (stated - BASE) / (2 * widest(model, graph, {**demand.sizes(spec), **rows}))


if __name__ == "__main__":
    sys.exit(main())
