"""Writes files with which NVIDIA's Polygraphy compares engines with ONNX Runtime: a loader and a script per engine."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from arlon_engines.build import Request, plan
from arlon_engines.engine import Job
from arlon_engines.profiles import Bound, shape
from arlon_rt.bundle import HEADER_BYTES, MODULES, Bundle
from arlon_rt.errors import OutputError

TOLERANCE = {"fp32": "1e-3", "fp16": "2e-2", "bf16": "1e-1"}
"""Allowed median difference, relative and absolute: it has room for another order of summation at this precision."""

LOADER = '''"""Loads the graph {graph} as `arlon-rt build` does, for --model-type trt-network-script."""

import {module} as trt
from polygraphy.backend.trt import network_from_onnx_path


def load_network():
    builder, network, parser = network_from_onnx_path({onnx!r})
    for layer in map(network.get_layer, range(network.num_layers)):
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True
    return builder, network, parser
'''

SCRIPT = """#!/bin/sh
# Compares the engine of {graph} ({identity}) with ONNX Runtime. It needs polygraphy, onnxruntime and the GPU.
# ONNX Runtime has no bf16 kernels on a CPU; compare bf16 engines with the fp32 graph's outputs by hand.
set -eu
cd "$(dirname "$0")"
{environment}
if [ "${{1:-}}" = convert ]; then   # Polygraphy's own engine, of the same network and profiles; needs no GPU for RTX
    exec {convert}
fi
tail -c +{first_byte} {engine} > {graph}.plan
{reference}
{compare}
"""


def write_scripts(bundle: Bundle, request: Request, folder: Path) -> list[Path]:
    """Write ``<graph>.py`` and ``<graph>.<gpu>.sh`` for each engine of the request; return the scripts.

    Raises:
        OutputError: the folder cannot be written.
    """
    scripts: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for planned in plan(bundle, request):
            job = planned.job
            onnx = bundle.graph_file(job.graph, request.precision).resolve()
            loader = LOADER.format(graph=job.graph, module=MODULES[request.flavour], onnx=str(onnx))
            (folder / f"{job.graph}.py").write_text(loader, encoding="utf-8")
            script = folder / f"{job.graph}.{job.identity.compute_capability}.sh"
            script.write_text(_script(bundle, job, onnx), encoding="utf-8")
            script.chmod(0o755)
            scripts.append(script)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error}") from error
    return scripts


def _script(bundle: Bundle, job: Job, onnx: Path) -> str:
    identity, graph = job.identity, job.graph
    rtx = identity.flavour == "tensorrt-rtx"
    gpu = identity.compute_capability.removeprefix("sm")
    tolerance = TOLERANCE[identity.precision]
    profiles = [
        word for profile in job.profiles for bound in ("min", "opt", "max")
        for word in (f"--trt-{bound}-shapes", *_shapes(bundle, job, profile.name, bound))
    ]
    return SCRIPT.format(
        graph=graph, identity=identity, first_byte=HEADER_BYTES + 1, engine=shlex.quote(str(job.target.resolve())),
        environment="export POLYGRAPHY_USE_TENSORRT_RTX=1" if rtx else "# standard TensorRT",
        convert=shlex.join([
            "polygraphy", "convert", f"{graph}.py", "--model-type", "trt-network-script", "--convert-to", "trt",
            "-o", f"{graph}.plan", *profiles,
            *(["--compute-capabilities", f"{gpu[:-1]}.{gpu[-1]}"] if rtx else []),
            *(["--strongly-typed", "--weight-streaming"] if identity.weight_streaming else []),
        ]),
        reference=shlex.join([
            "polygraphy", "run", str(onnx), "--onnxrt", "--seed", "1", "--input-shapes",
            *_shapes(bundle, job, job.profiles[0].name, "opt"),
            "--save-inputs", f"{graph}.inputs.json", "--save-outputs", f"{graph}.onnxrt.json",
        ]),
        compare=shlex.join([
            "polygraphy", "run", f"{graph}.plan", "--model-type", "engine", "--trt",
            "--load-inputs", f"{graph}.inputs.json", "--load-outputs", f"{graph}.onnxrt.json",
            "--check-error-stat", "median", "--rtol", tolerance, "--atol", tolerance,
        ]),
    )


def _shapes(bundle: Bundle, job: Job, profile: str, bound: Bound) -> Sequence[str]:
    chosen = next(p for p in job.profiles if p.name == profile)
    inputs = bundle.spec(job.graph).inputs
    return [f"{t.name}:[{','.join(map(str, shape(t, chosen, bound)))}]" for t in inputs]
