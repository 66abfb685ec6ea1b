"""ONNX Runtime as a backend, on the CPU and on CUDA, through IOBinding.

The CUDA path (providers, device buffers, device outputs) has not been executed on a GPU yet.
A run ends with its stream synchronised, so its handles may go to another session or thread at once.

This backend captures no CUDA graphs. According to ONNX Runtime's source (not tried), a replay writes to memory that the
arena counts as free after the capture and may have handed out again, and it leaves out nodes on the CPU. A capture
belongs to one thread, and fails when another thread allocates meanwhile, as overlapped lanes do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from arlon_rt.backends.device import device_parts
from arlon_rt.backends.ort.library import (
    CUDA,
    TYPES,
    contract_differences,
    import_runtime,
    one_line,
    open_graph,
    providers_of,
    session_options,
)
from arlon_rt.backends.session import Array, Front, Handle
from arlon_rt.bundle import Bundle
from arlon_rt.errors import BackendError, BundleError
from arlon_rt.graphs import GraphSpec


class OrtHandle:
    """A tensor of ONNX Runtime on the session's device; implements `arlon_rt.backends.session.Handle`."""

    def __init__(self, value: Any, device: str) -> None:
        self.value = value
        """The ``onnxruntime.OrtValue``."""
        self.device = device
        self.shape: tuple[int, ...] = tuple(value.shape())
        self.dtype: np.dtype[Any] = np.dtype(TYPES[value.data_type()])

    def numpy(self) -> Array:
        array: Array = self.value.numpy()
        return np.array(array) if self.value.device_name() == "cpu" else array


class OrtSession:
    """One graph opened in ONNX Runtime; implements `arlon_rt.backends.session.Session`."""

    def __init__(self, opened: Any, spec: GraphSpec, *, precision: str, device: str) -> None:
        self._runtime = import_runtime()
        self._opened: Any | None = opened
        self._front = Front(spec, precision, OrtHandle, device)
        self.spec, self.float_dtype = spec, self._front.float_dtype
        self._device_type, self._device_id = device_parts(device)

    @classmethod
    def open(
        cls, bundle: Bundle, graph: str, *, device: str, precision: str, threads: int | None,
        profile: Path | None = None,
    ) -> OrtSession:
        """The session of ``graph``; see `arlon_rt.backends.open.open_session`.

        ``profile`` is how the name of the file begins that `end_profile` returns.
        """
        if precision == "bf16":
            others = " or ".join(p for p in bundle.manifest.graphs.get(graph, {}) if p != precision) or "fp32, exported"
            raise BackendError(f"precision is 'bf16', which ONNX Runtime does not run here; use --precision {others}")
        providers, options = providers_of(device), session_options(threads)
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        opened = open_graph(bundle, graph, precision, providers, options)
        spec = bundle.spec(graph)
        if found := contract_differences(opened, spec, precision):
            raise BundleError(f"{bundle.graph_file(graph, precision)} does not fit its contract: {found[0]}")
        if device != "cpu" and CUDA not in opened.get_providers():
            raise BackendError(
                f"device is {device!r}, but CUDA did not start: there is no GPU, no driver, or CUDA's libraries are "
                'missing, which pip install "onnxruntime-gpu[cuda,cudnn]" brings'
            )
        return cls(opened, spec, precision=precision, device=device)

    def run(self, feed: Mapping[str, Array | Handle], hold: Collection[str] = ()) -> dict[str, Array | Handle]:
        opened = self._front.opened(self._opened)
        handles = self._front.handles(feed, hold)
        binding = opened.io_binding()
        try:
            shared = self._bind_inputs(binding, feed, handles)
            for tensor in self.spec.outputs:
                if tensor.alias:
                    binding.bind_ortvalue_output(tensor.name, shared[tensor.alias].value)
                elif tensor.name in hold:
                    binding.bind_output(tensor.name, self._device_type, self._device_id)
                else:
                    binding.bind_output(tensor.name, "cpu")
            opened.run_with_iobinding(binding)
            results = binding.get_outputs()
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(f"{self.spec.name}: {one_line(error)}") from error
        outputs = {
            t.name: shared[t.alias] if t.alias else OrtHandle(value, self._front.device)
            for t, value in zip(self.spec.outputs, results, strict=True)
        }
        return {name: handle if name in hold else handle.numpy() for name, handle in outputs.items()}

    def upload(self, name: str, array: Array) -> OrtHandle:
        self._front.opened(self._opened)
        return self._on_device(self._front.uploaded(name, array))

    def end_profile(self) -> Path:
        """The JSON file with an event for each node of each run; the session must have been opened with ``profile``."""
        return Path(self._front.opened(self._opened).end_profiling())

    def close(self) -> None:
        self._opened = None

    def _bind_inputs(
        self, binding: Any, feed: Mapping[str, Array | Handle], handles: Mapping[str, OrtHandle]
    ) -> dict[str, OrtHandle]:
        """Bind every input; returns the buffers that outputs share, by input name.

        The copy of an array to CUDA is complete when it returns. `bind_cpu_input` would copy on a stream of its own:
        while another thread runs the session too, the graph could start before that copy is done.
        """
        shared: dict[str, OrtHandle] = {}
        for tensor in self.spec.inputs:
            name, value = tensor.name, feed[tensor.name]
            if isinstance(value, np.ndarray):
                array = self._front.converted(name, value)
                if self._device_type == "cpu" and name not in self._front.aliased:
                    binding.bind_cpu_input(name, array)
                    continue
                held = self._on_device(array.copy() if self._device_type == "cpu" else array)
            else:
                held = handles[name]
            binding.bind_ortvalue_input(name, held.value)
            if name in self._front.aliased:
                shared[name] = held
        return shared

    def _on_device(self, array: Array) -> OrtHandle:
        """A buffer on the device that holds a contiguous array; on the CPU it is the array's own."""
        value = self._runtime.OrtValue.ortvalue_from_numpy(array, self._device_type, self._device_id)
        return OrtHandle(value, self._front.device)
