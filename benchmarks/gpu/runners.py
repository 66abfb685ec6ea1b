"""Runners of a graph: a session of arlon_rt; ONNX Runtime bound once, or as a CUDA graph; PyTorch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from arlon_export.onnx_graphs.wrappers import GraphModule
from arlon_rt.backends import Handle, Looping, Session
from arlon_rt.graphs import GraphSpec
from arlon_rt.networks import AT_ONCE
from gpu.device import Device
from gpu.models import Case

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]


class Runner(Protocol):
    """One graph, opened with its inputs on the device. Calling it runs the graph once."""

    def __call__(self) -> object: ...

    def outputs(self) -> dict[str, Array]:
        """The outputs of the last call, on the host."""

    def close(self) -> None: ...


class ShippedSession:
    """A session of `arlon_rt`, of any backend. Inputs and outputs stay on the device; every call binds them again."""

    def __init__(self, session: Session, feed: Feed) -> None:
        self.session = session
        self._arrays = feed
        self._feed = {n: session.upload(n, a.copy()) for n, a in feed.items()}
        self._hold = [t.name for t in session.spec.outputs]
        self._last: Mapping[str, Array | Handle] = {}

    def __call__(self) -> None:
        self._last = self.session.run(self._feed, self._hold)

    def write_tokens(self) -> None:
        """Run ``ar_step`` `AT_ONCE` times in a loop on the device, as the token model does."""
        assert isinstance(self.session, Looping)
        arrays, caches = self._arrays, [t.alias for t in self.session.spec.outputs if t.alias]
        each = {name: np.stack([arrays[name]] * AT_ONCE) for name in ("grid", "write_index", "uniform")}
        feed: dict[str, Array | Handle] = {name: held for name, held in self._feed.items() if name not in each}
        feed["tokens"] = arrays["tokens"]
        self.session.loop(feed, each, {"tokens": "next_token"}, [f"{name}_out" for name in caches])

    def outputs(self) -> dict[str, Array]:
        return {n: v if isinstance(v, np.ndarray) else v.numpy() for n, v in self._last.items()}

    def close(self) -> None:
        self.session.close()
        self._feed, self._last = {}, {}


class BoundSession:
    """The same file in ONNX Runtime with every input and output bound once: the cost of a graph without its session."""

    def __init__(
        self, case: Case, feed: Feed, device: Device, threads: int | None, like: Feed, *, cuda_graph: bool = False
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.use_deterministic_compute = True  # as in `OrtSession`
        options.log_severity_level = 3
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        self._opened: Any = onnxruntime.InferenceSession(str(case.file), options, device.providers(cuda_graph))
        if device.name != "cpu" and "CUDAExecutionProvider" not in self._opened.get_providers():
            raise RuntimeError("ONNX Runtime did not start CUDA")
        self._binding = self._opened.io_binding()
        inputs = {name: _on_device(array, device) for name, array in feed.items()}
        self._outputs = {
            t.name: inputs[t.alias] if t.alias else _on_device(like[t.name], device) for t in case.spec.outputs
        }
        for name, value in inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def __call__(self) -> None:
        self._opened.run_with_iobinding(self._binding)

    def outputs(self) -> dict[str, Array]:
        return {n: np.array(v.numpy()) for n, v in self._outputs.items()}

    def nodes(self) -> dict[str, int]:
        """Execution provider -> number of its nodes. Nodes on the CPU of a GPU run cost copies."""
        assigned = self._opened.get_provider_graph_assignment_info()
        return dict(Counter(part.ep_name for part in assigned for _ in part.get_nodes()))

    def close(self) -> None:
        self._opened = self._binding = None
        self._outputs = {}


class TorchModule:
    """The torch module of a graph: eager, or with torch.compile if it has ``options``."""

    def __init__(
        self, spec: GraphSpec, network: nn.Module, feed: Feed, device: Device, *,
        exact: bool = False, options: Mapping[str, Any] | None = None,
    ) -> None:
        module, count = GraphModule(spec, network.to(device.name)), len(spec.outputs)
        self._inputs = [torch.from_numpy(feed[t.name].copy()).to(device.name) for t in spec.inputs]
        self._names = [t.name for t in spec.outputs]
        self._precision: Callable[[], Any] = device.exact_float32 if exact else nullcontext
        self._last: tuple[Tensor, ...] = ()

        def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
            outputs: tuple[Tensor, ...] = module(*inputs)
            return outputs[:count]

        self._forward: Callable[..., tuple[Tensor, ...]] = forward
        if options is not None:
            torch.compiler.reset()
            for tensor in self._inputs:
                torch._dynamo.mark_static_address(tensor)  # otherwise a CUDA graph copies every cache at every call
            self._forward = torch.compile(forward, dynamic=False, fullgraph=True, **options)

    def __call__(self) -> None:
        with torch.inference_mode(), self._precision():
            self._last = self._forward(*self._inputs)

    def outputs(self) -> dict[str, Array]:
        return {n: t.cpu().numpy() for n, t in zip(self._names, self._last, strict=True)}

    def close(self) -> None:
        self._inputs, self._last = [], ()
        self._forward = tuple


def _on_device(array: Array, device: Device) -> Any:
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(array.copy(), device.name, 0)
