"""ONNX Runtime as a backend, on the CPU and on CUDA, through IOBinding.

The CUDA path (providers, device buffers, device outputs) is written but has not been executed on a GPU yet.
A run ends with its stream synchronised, so a handle may go to another session or thread as soon as it is there.

There are no CUDA graphs here. As ONNX Runtime's source reads (not tried), a replay writes to memory that the arena
counts as free after the capture and may have given to another tensor, and leaves out what runs on the CPU; a capture
belongs to one thread, and is spoilt when another thread allocates meanwhile, as overlapped stages do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from arlon_rt.backends.device import device_parts
from arlon_rt.backends.ort.library import CUDA, import_runtime, providers_of, session_options
from arlon_rt.backends.session import Array, FeedCheck, Handle
from arlon_rt.bundle import Bundle
from arlon_rt.errors import BackendError, BundleError
from arlon_rt.graphs import FLOAT_DTYPE, GraphSpec, TensorSpec, signature

_ELEMENTS = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(bfloat16)": "bfloat16",
    "tensor(int64)": "int64", "tensor(bool)": "bool", "tensor(uint8)": "uint8",
}
_DAMAGED = ("InvalidProtobuf", "NoSuchFile", "InvalidGraph", "NoModel")


class OrtHandle:
    """A tensor held by ONNX Runtime, on the session's device."""

    def __init__(self, value: Any, device: str) -> None:
        self.value = value
        """The ``onnxruntime.OrtValue``."""
        self.device = device
        self.shape: tuple[int, ...] = tuple(value.shape())
        self.dtype: np.dtype[Any] = np.dtype(_ELEMENTS[value.data_type()])

    def numpy(self) -> Array:
        """A copy on the host."""
        array: Array = self.value.numpy()
        return np.array(array) if self.value.device_name() == "cpu" else array


class OrtSession:
    """One graph opened in ONNX Runtime; implements `arlon_rt.backends.session.Session`."""

    def __init__(self, runtime: ModuleType, opened: Any, spec: GraphSpec, *, precision: str, device: str) -> None:
        self._runtime = runtime
        self._opened: Any | None = opened
        self._spec = spec
        self._check = FeedCheck(spec, precision)
        self._aliased = {t.alias for t in spec.outputs if t.alias}
        self._float_dtype = np.dtype(FLOAT_DTYPE[precision])
        self._device = device
        self._device_type, self._device_id = device_parts(device)

    @classmethod
    def open(
        cls, bundle: Bundle, graph: str, *, device: str, precision: str, threads: int | None,
        profile: Path | None = None,
    ) -> OrtSession:
        """Open ``graph``; see `arlon_rt.backends.session.open_session`.

        ``profile`` begins the name of the file that `end_profile` gives.
        """
        if precision == "bf16":
            others = " or ".join(p for p in bundle.manifest.graphs.get(graph, {}) if p != precision) or "fp32, exported"
            raise BackendError(f"precision is 'bf16', which ONNX Runtime does not run here; use --precision {others}")
        runtime = import_runtime()
        providers = providers_of(runtime, device)
        options = session_options(runtime, threads)
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        opened = open_file(runtime, bundle, graph, precision, providers, options)
        spec = bundle.spec(graph)
        if found := differences(spec, precision, opened):
            raise BundleError(f"{bundle.graph_file(graph, precision)} does not fit its contract: {found[0]}")
        if device != "cpu" and CUDA not in opened.get_providers():
            raise BackendError(
                f"device is {device!r}, but CUDA did not start: there is no GPU, no driver, or CUDA's libraries are "
                'missing, which pip install "onnxruntime-gpu[cuda,cudnn]" brings'
            )
        return cls(runtime, opened, spec, precision=precision, device=device)

    @property
    def spec(self) -> GraphSpec:
        return self._spec

    @property
    def float_dtype(self) -> np.dtype[Any]:
        return self._float_dtype

    def run(self, feed: Mapping[str, Array | Handle], hold: Collection[str] = ()) -> dict[str, Array | Handle]:
        """Run the graph once; see `arlon_rt.backends.session.Session.run`."""
        opened = self._opened
        if opened is None:
            raise BackendError(f"{self._spec.name}: the session is closed")
        self._check(feed, hold)
        binding = opened.io_binding()
        try:
            shared = self._bind_inputs(binding, feed)
            self._bind_outputs(binding, hold, shared)
            opened.run_with_iobinding(binding)
            results = binding.get_outputs()
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(f"{self._spec.name}: {_one_line(error)}") from error
        return {t.name: self._result(t, v, hold, shared) for t, v in zip(self._spec.outputs, results, strict=True)}

    def upload(self, name: str, array: Array) -> OrtHandle:
        """The input ``name`` as a handle; see `arlon_rt.backends.session.Session.upload`."""
        tensor = next((t for t in self._spec.inputs if t.name == name), None)
        if tensor is None:
            raise BackendError(f"{self._spec.name}: cannot upload {name}; there is no such input")
        return self._on_device(self._converted(tensor, array))

    def end_profile(self) -> Path:
        """The JSON file with an event for each node of each run so far; the session was opened with ``profile``."""
        assert self._opened is not None
        return Path(self._opened.end_profiling())

    def close(self) -> None:
        """Free the graph. A second call does nothing; handles stay valid."""
        self._opened = None

    def _bind_inputs(self, binding: Any, feed: Mapping[str, Array | Handle]) -> dict[str, OrtHandle]:
        """Bind every input; returns the buffers that outputs share, by input name.

        An array goes to CUDA by a copy that is complete when it returns. `bind_cpu_input` would copy on a stream that
        the run need not take: with the session running in another thread too, the graph could start before its input
        is there.
        """
        shared: dict[str, OrtHandle] = {}
        for tensor in self._spec.inputs:
            value = feed[tensor.name]
            if isinstance(value, np.ndarray):
                array = self._converted(tensor, value)
                if self._device_type == "cpu" and tensor.name not in self._aliased:
                    binding.bind_cpu_input(tensor.name, array)
                    continue
                held = self._on_device(array.copy() if self._device_type == "cpu" else array)
            else:
                held = self._own(tensor, value)
            binding.bind_ortvalue_input(tensor.name, held.value)
            if tensor.name in self._aliased:
                if any(held is other for other in shared.values()):
                    raise BackendError(f"{self._spec.name}: the handle fed as {tensor.name} is fed as another too")
                shared[tensor.name] = held
        return shared

    def _bind_outputs(self, binding: Any, hold: Collection[str], shared: Mapping[str, OrtHandle]) -> None:
        for tensor in self._spec.outputs:
            if tensor.alias:
                binding.bind_ortvalue_output(tensor.name, shared[tensor.alias].value)
            elif tensor.name in hold:
                binding.bind_output(tensor.name, self._device_type, self._device_id)
            else:
                binding.bind_output(tensor.name, "cpu")

    def _result(
        self, tensor: TensorSpec, value: Any, hold: Collection[str], shared: Mapping[str, OrtHandle]
    ) -> Array | Handle:
        held = shared[tensor.alias] if tensor.alias else OrtHandle(value, self._device)
        return held if tensor.name in hold else held.numpy()

    def _converted(self, tensor: TensorSpec, array: Array) -> Array:
        """The array as the graph takes it: contiguous, ``"float"`` inputs in the type of the precision set."""
        if tensor.dtype != "float" or array.dtype == self.float_dtype:
            return np.ascontiguousarray(array)
        with np.errstate(over="raise"):
            try:
                return np.ascontiguousarray(array, self.float_dtype)
            except FloatingPointError:
                raise BackendError(
                    f"{self._spec.name}: {tensor.name} has values too large for {self.float_dtype}; use fp32"
                ) from None

    def _on_device(self, array: Array) -> OrtHandle:
        """A buffer on the device with the content of ``array``, contiguous; on the CPU it is the array itself."""
        value = self._runtime.OrtValue.ortvalue_from_numpy(array, self._device_type, self._device_id)
        return OrtHandle(value, self._device)

    def _own(self, tensor: TensorSpec, value: Handle) -> OrtHandle:
        if not isinstance(value, OrtHandle):
            raise BackendError(f"{self._spec.name}: {tensor.name} is a {type(value).__name__} of another backend")
        if device_parts(value.device) != (self._device_type, self._device_id):
            raise BackendError(f"{self._spec.name}: {tensor.name} is on {value.device}, the session on {self._device}")
        return value


def open_file(
    runtime: ModuleType, bundle: Bundle, graph: str, precision: str, providers: list[Any], options: Any
) -> Any:
    path = bundle.graph_file(graph, precision)
    try:
        # With its fallback ONNX Runtime prints an error on stdout and opens the graph on the CPU.
        return runtime.InferenceSession(str(path), sess_options=options, providers=providers, enable_fallback=0)
    except Exception as error:
        if type(error).__name__ in _DAMAGED:
            raise BundleError(
                f"{path} is damaged ({_one_line(error)}); run `arlon-rt verify {bundle.path}`"
            ) from error
        raise BackendError(f"{path} cannot be opened: {_one_line(error)}") from error


def differences(spec: GraphSpec, precision: str, opened: Any) -> list[str]:
    """Names, dtypes, ranks and static sizes of an opened graph against the contract."""
    found = []
    for kind, nodes, tensors in (
        ("input", opened.get_inputs(), spec.inputs), ("output", opened.get_outputs(), spec.outputs),
    ):
        have, want = [n.name for n in nodes], [t.name for t in tensors]
        if have != want:
            found.append(f"{kind}s are {', '.join(have)}; the contract has {', '.join(want)}")
            continue
        for node, (name, dtype, axes) in zip(nodes, signature(tensors, precision), strict=True):
            element = _ELEMENTS.get(node.type, node.type)
            if element != dtype or not _fits(spec, node.shape, axes, exact=kind == "input"):
                found.append(f"{kind} {name} is {element} {tuple(node.shape)}; the contract has {dtype} {axes}")
    return found


def _fits(spec: GraphSpec, shape: list[int | str | None], axes: tuple[int | str, ...], *, exact: bool) -> bool:
    """Whether a graph's shape serves the contract's axes; an output's static size may be left open (not ``exact``)."""
    if len(shape) != len(axes):
        return False
    for size, axis in zip(shape, axes, strict=True):
        if isinstance(axis, int):
            if size != axis and (exact or isinstance(size, int)):
                return False
        elif isinstance(size, int) and not spec.axis(axis).min == size == spec.axis(axis).max:
            return False
    return True


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
