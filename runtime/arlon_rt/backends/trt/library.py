"""TensorRT as a module: how it is imported, what it logs, and whether an engine of it is what graphs.py states."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

from arlon_rt.bundle import MODULES, Flavour
from arlon_rt.errors import BundleError, EngineError, MissingExtraError
from arlon_rt.graphs import GraphSpec, signature
from arlon_rt.units import mebibytes

TYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64", "BOOL": "bool", "UINT8": "uint8",
}
"""What graphs.py calls TensorRT's DataType, of those that its inputs and outputs have."""


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
    """Hold an engine's inputs and outputs to graphs.py: names, types, ranks, static sizes, aliases.

    Raises:
        BundleError: they differ.
    """
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    wanted = [*(t.name for t in spec.inputs), *(t.name for t in spec.outputs)]
    if sorted(names) != sorted(wanted):
        raise BundleError(f"the engine of {spec.name} has {', '.join(names)}; the contract has {', '.join(wanted)}")
    for tensor, (name, dtype, axes) in zip(
        (*spec.inputs, *spec.outputs), signature((*spec.inputs, *spec.outputs), precision), strict=True
    ):
        found = TYPES.get(engine.get_tensor_dtype(name).name, engine.get_tensor_dtype(name).name)
        shape = tuple(engine.get_tensor_shape(name))
        fits = len(shape) == len(axes) and all(
            not isinstance(axis, int) or size in (axis, -1) for size, axis in zip(shape, axes, strict=True)
        )
        if found != dtype or not fits:
            raise BundleError(
                f"{name} of the engine of {spec.name} is {found} {shape}; the contract has {dtype} {axes}"
            )
        if tensor.alias and engine.get_aliased_input_tensor(name) != tensor.alias:
            raise BundleError(
                f"{name} of the engine of {spec.name} does not share the memory of {tensor.alias}: its cache would be "
                "copied at every token; build it again with a TensorRT that updates caches in place"
            )


def stream_weights(engine: Any, name: str, plan_bytes: int, on_device: int | None) -> None:
    """Let an engine, before it has a context, keep ``on_device`` bytes of its plan on the GPU; ``None``: all.

    Raises:
        EngineError: it was not built to stream so much.
    """
    streamable = engine.streamable_weights_size
    if on_device is None or on_device >= plan_bytes:
        if streamable:
            engine.weight_streaming_budget_v2 = streamable
        return
    if plan_bytes - on_device > streamable:
        raise EngineError(
            f"{name}: {mebibytes(plan_bytes - on_device)} of its weights are to be streamed, and the engine streams "
            f"{mebibytes(streamable)} at most; build it with --weight-streaming, or allow a larger vram_budget"
        )
    engine.weight_streaming_budget_v2 = streamable - (plan_bytes - on_device)


def new_log(trt: ModuleType) -> Any:
    """TensorRT's log, of which errors are kept."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(message)

    return Log()
