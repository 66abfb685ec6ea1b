"""Sessions of the TensorRT backend on the GPU of fake_gpu.py, and what is fed to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from arlon_rt import Pipeline
from arlon_rt.backends.session import numpy_dtype
from arlon_rt.backends.trt import Gpu
from arlon_rt.backends.trt.session import TrtSession
from arlon_rt.bundle import Bundle
from arlon_rt.graphs import FLOAT_DTYPE, graph_specs
from arlon_rt.networks import Networks
from fake_gpu import plan_of
from tiny_bundle import TINY


def opened(gpu: Gpu, folder: Path, graph: str, precision: str = "fp32", **changed: Any) -> TrtSession:
    return gpu.session(plan_of(folder, graph, precision, **changed), Bundle.open(folder).spec(graph), precision)


def pipeline_of(gpu: Gpu, folder: Path, precision: str) -> Pipeline:
    bundle = Bundle.open(folder)
    sessions = {graph: opened(gpu, folder, graph, precision) for graph in graph_specs(bundle.model)}
    return Pipeline(bundle, Networks.of(bundle, sessions, precision))


def step_feed(precision: str = "fp32", batch: int = 1, codes: int = 1) -> dict[str, np.ndarray]:
    """For ``ar_step``."""
    dtype = numpy_dtype(FLOAT_DTYPE[precision])
    shape = (batch, TINY.ar.num_heads, TINY.ar.max_length, TINY.ar.head_dim)
    caches = {f"{kind}_{layer}": np.ones(shape, dtype) for layer in range(TINY.ar.num_layers)
              for kind in ("key", "value")}
    return {
        "tokens": np.ones((1, codes), np.int64), "grid": np.zeros((codes, 3), np.int64),
        "write_index": np.full(batch, 3, np.int64), "guidance_weights": np.full(batch, 1 / batch, np.float32),
        "temperature": np.ones(1, np.float32), "top_k": np.full(1, 4, np.int64), "top_p": np.ones(1, np.float32),
        "uniform": np.full(1, 0.3, np.float32), **caches,
    }
