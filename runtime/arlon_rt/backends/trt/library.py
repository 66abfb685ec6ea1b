"""TensorRT as a module: how it is imported, what it logs, and whether an engine fits its contract."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

from arlon_rt.bundle import MODULES, Flavour
from arlon_rt.errors import BundleError, EngineError, MissingExtraError
from arlon_rt.graphs import GraphSpec, StatedTensor, differences
from arlon_rt.units import mebibytes

TYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64", "BOOL": "bool", "UINT8": "uint8",
}
"""TensorRT's ``DataType``, by name -> the dtypes of graphs.py."""


def import_tensorrt(flavour: Flavour) -> ModuleType:
    """The module of a backend.

    Raises:
        MissingExtraError: it is not installed; the message names the pip command.
    """
    try:
        return import_module(MODULES[flavour])
    except ImportError as error:
        raise MissingExtraError(
            f'{MODULES[flavour]} cannot be imported ({error}); run: pip install "arlon-rt[{flavour}]"'
        ) from error


def check_contract(trt: ModuleType, engine: Any, spec: GraphSpec, precision: str) -> None:
    """Raise `BundleError` unless an engine's inputs and outputs fit the contract and it updates caches in place."""
    def stated(name: str) -> StatedTensor:
        dtype, shape = engine.get_tensor_dtype(name).name, engine.get_tensor_shape(name)
        return name, TYPES.get(dtype, dtype), tuple(None if size < 0 else size for size in shape)

    tensors = [stated(engine.get_tensor_name(i)) for i in range(engine.num_io_tensors)]
    outputs = {tensor.name for tensor in spec.outputs}
    found = differences(
        spec, precision, [t for t in tensors if t[0] not in outputs], [t for t in tensors if t[0] in outputs],
        stated_by="engine",
    )
    if found:
        raise BundleError(f"the engine of {spec.name} does not fit its contract: {'; '.join(found)}")
    for tensor in spec.outputs:
        if tensor.alias and engine.get_aliased_input_tensor(tensor.name) != tensor.alias:
            raise BundleError(
                f"{tensor.name} of the engine of {spec.name} does not share the memory of {tensor.alias}: its cache "
                "would be copied at every token; build it again with a TensorRT that updates caches in place"
            )


def stream_weights(engine: Any, name: str, plan_bytes: int, on_device: int | None) -> None:
    """Set how many bytes of an engine's plan stay on the GPU; ``None``: all. The engine has no context yet.

    Raises:
        EngineError: the engine was not built to stream that much.
    """
    streamable = engine.streamable_weights_size
    streamed = 0 if on_device is None else max(0, plan_bytes - on_device)
    if streamed > streamable:
        raise EngineError(
            f"{name}: {mebibytes(streamed)} of its weights are to be streamed, and the engine streams "
            f"{mebibytes(streamable)} at most; build it with --weight-streaming, or allow a larger vram_budget"
        )
    if streamable:
        engine.weight_streaming_budget_v2 = streamable - streamed


def new_log(trt: ModuleType) -> Any:
    """A log for TensorRT that keeps the errors."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(message)

    return Log()
