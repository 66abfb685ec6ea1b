"""Memory plans for a model of the published sizes, without its weights: the tables of docs/edge.md.

    python benchmarks/memory_plans.py --profile 512x512x68 --vram-budget 16G --vram-budget 8G
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from full_size_weights import FULL_SIZE

from arlon_engines.profiles import parse_size
from arlon_export.checkpoints.checkpoint import expected_shapes
from arlon_rt.bundle import Bundle, GraphEntry, write_manifest
from arlon_rt.config import ModelConfig
from arlon_rt.graphs import FLOAT_DTYPE, GraphSpec, graph_specs, signature
from arlon_rt.memory import ITEM_BYTES, moved_bytes

OF_PREFIX = ("blocks.", "text_projection.")
OF_ENCODERS = ("encoder", "quant_conv")
OF_DECODERS = ("decoder", "post_quant_conv")


def main() -> int:
    args = arguments()
    size = parse_size(args.profile, FULL_SIZE)
    with tempfile.TemporaryDirectory() as folder:
        bundle_without_weights(Path(folder), FULL_SIZE, args.precision)
        for budget in args.vram_budget:
            print(f"--vram-budget {budget}", flush=True)
            command = [
                sys.executable, "-m", "arlon_rt.cli", "generate", "any prompt", "--bundle", folder, "--dry-run",
                "--vram-budget", budget, "--precision", args.precision, "--guidance-scale", str(args.guidance_scale),
                "--height", str(size.height), "--width", str(size.width), "--num-frames", str(size.frames),
            ]
            subprocess.run(command, env={**os.environ, "COLUMNS": "100"}, stderr=subprocess.STDOUT, check=False)
            print(flush=True)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--profile", default="512x512x68", metavar="WxHxF")
    parser.add_argument("--precision", default="fp16", choices=("fp16", "fp32", "bf16"))
    parser.add_argument("--guidance-scale", type=float, default=7.0)
    parser.add_argument("--vram-budget", action="append", required=True, metavar="SIZE")
    return parser.parse_args()


def bundle_without_weights(folder: Path, model: ModelConfig, precision: str) -> Bundle:
    """A bundle whose manifest states the bytes of each graph, and whose graphs are empty files."""
    graphs = {}
    for name, spec in graph_specs(model).items():
        file = folder / "onnx" / f"{name}.{precision}.onnx"
        file.parent.mkdir(exist_ok=True)
        file.touch()
        graphs[name] = {precision: GraphEntry(
            file=f"onnx/{file.name}", inputs=signature(spec.inputs, precision),
            outputs=signature(spec.outputs, precision),
            bytes=weight_bytes(model, spec, precision) + moved_bytes(spec, precision),
        )}
    write_manifest(folder, model=model, defaults={}, graphs=graphs)
    return Bundle.open(folder)


def weight_bytes(model: ModelConfig, spec: GraphSpec, precision: str) -> int:
    """Bytes of the weights that a graph reads, from the names in its network's state dict."""
    width = ITEM_BYTES[FLOAT_DTYPE[precision]]
    return width * sum(
        math.prod(shape) for name, shape in expected_shapes(model, spec.network).items()
        if any(graph == spec.name for graph in readers(name, spec.network))
    )


def readers(weight: str, network: str) -> Iterator[str]:
    """The graphs that read a weight."""
    parts = weight.split(".")
    if network == "text":
        yield "text_encoder"
    elif network == "ar":
        yield from ("ar_step", *(["ar_prefix"] if weight.startswith(OF_PREFIX) else []))
    elif network == "vq":
        yield from ("vq_decoder",) * ("decoder" in parts or "codebook" in parts)
        yield from ("vq_encoder",) * ("encoder" in parts or "codebook" in parts)
    elif network == "vae":
        yield from ("vae_decoder",) * any(part in parts for part in OF_DECODERS)
        yield from ("vae_encoder",) * any(part in parts for part in OF_ENCODERS)
    elif parts[0] == "injection":
        yield "semantic"
    elif parts[0] == "y_embedder" or "kv_linear" in parts:
        yield "caption"
    else:
        yield "dit"


if __name__ == "__main__":
    sys.exit(main())
