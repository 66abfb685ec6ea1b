"""The seam between the stages and the backends: what a session is, which one opens, and the check of what is fed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from arlon_rt.errors import BackendError, MissingExtraError
from arlon_rt.graphs import GraphSpec, TensorSpec, signature

Array = npt.NDArray[Any]


class Handle(Protocol):
    """A tensor that stays where its session runs. Opaque: hand it to a later feed, or copy it out."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def numpy(self) -> Array:
        """A copy on the host."""


class Session(Protocol):
    """One opened graph. `run` keeps no state between calls and may be called from several threads."""

    @property
    def spec(self) -> GraphSpec:
        """The contract of the graph."""

    @property
    def float_dtype(self) -> np.dtype[Any]:
        """What the contract's dtype ``"float"`` is in this precision set."""

    def run(self, feed: Mapping[str, Array | Handle], hold: Collection[str] = ()) -> dict[str, Array | Handle]:
        """Run the graph once.

        Args:
            feed: every input by name. An array of a ``"float"`` input may be float32 in any precision set.
            hold: outputs that stay on the device and come back as handles; the others come back as arrays.

        An output with an alias is written into the buffer of that input where a handle was fed, which then comes
        back itself; an array fed there is copied in and stays as it was.

        Raises:
            BackendError: the feed does not fit the contract (the message names the input), or the run failed.
        """

    def upload(self, name: str, array: Array) -> Handle:
        """The input ``name`` as a handle, for runs that all feed the same; leave ``array`` as it is from then on."""

    def close(self) -> None:
        """Free the graph. A second call does nothing; handles stay valid."""


@runtime_checkable
class Looping(Protocol):
    """A session that runs its graph many times in a row while the host waits once, at the end."""

    def loop(
        self, feed: Mapping[str, Array | Handle], each: Mapping[str, Array], carry: Mapping[str, str],
        hold: Collection[str] = (),
    ) -> dict[str, Array | Handle]:
        """Run the graph once for each entry of ``each``.

        Args:
            feed: the other inputs of the first run, as `Session.run` takes them; arrays, where they are carried.
            each: input -> (run, *shape): what differs from run to run.
            carry: input -> the output of the run before that it takes after the first run, of the same size and type.
                Aliased inputs carry on by themselves.
            hold: outputs that stay on the device: those of the last run.

        Returns:
            Held outputs as handles, the others as arrays (run, *shape).

        Raises:
            BackendError: as `Session.run`.
        """





class FeedCheck:
    """The check of what is fed to one graph, before a backend sees it."""

    def __init__(self, spec: GraphSpec, precision: str) -> None:
        self._spec = spec
        self._dtypes = tuple(numpy_dtype(dtype) for _, dtype, _ in signature(spec.inputs, precision))
        self._axes = {axis.name: axis for axis in spec.axes}

    def __call__(self, feed: Mapping[str, Array | Handle], hold: Collection[str] = ()) -> None:
        """Raise `BackendError` unless ``feed`` holds exactly the inputs, with fitting dtypes, ranks and sizes.

        ``hold`` names outputs.
        """
        spec = self._spec
        if unknown := set(hold) - {t.name for t in spec.outputs}:
            raise BackendError(f"{spec.name}: cannot hold {', '.join(sorted(unknown))}; there is no such output")
        if feed.keys() != {t.name for t in spec.inputs}:
            raise BackendError(f"{spec.name}: {_name_differences(spec, feed)}")
        sizes: dict[str, int] = {}
        for tensor, dtype in zip(spec.inputs, self._dtypes, strict=True):
            value = feed[tensor.name]
            if not hasattr(value, "dtype"):
                kind = type(value).__name__
                raise BackendError(f"{spec.name}: {tensor.name} is a {kind}; an array or a handle is expected")
            if value.dtype != dtype and not _converts(tensor, value):
                raise BackendError(f"{spec.name}: {tensor.name} is {value.dtype}; {dtype} is expected")
            if problem := self._shape_problem(tensor, value.shape, sizes):
                raise BackendError(f"{spec.name}: {tensor.name} has shape {value.shape}; {problem}")

    def _shape_problem(self, tensor: TensorSpec, shape: tuple[int, ...], sizes: dict[str, int]) -> str | None:
        """What is wrong with a shape, given the ``sizes`` of the named axes so far, to which it adds its own."""
        if len(shape) != len(tensor.axes):
            return f"its axes are ({', '.join(map(str, tensor.axes))})"
        for place, (size, axis) in enumerate(zip(shape, tensor.axes, strict=True)):
            if isinstance(axis, int):
                if size != axis:
                    return f"axis {place} must be {axis}"
                continue
            allowed = self._axes[axis]
            if not allowed.min <= size <= allowed.max:
                return f"axis {place} ({axis}) must be {allowed.min}..{allowed.max}"
            if sizes.setdefault(axis, size) != size:
                return f"axis {place} ({axis}) is {sizes[axis]} in the inputs before it"
        return None


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of this name; ``"bfloat16"``, which numpy has not, is that of ml_dtypes.

    Raises:
        MissingExtraError: ml_dtypes is not installed.
    """
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise MissingExtraError(f"bf16 needs ml_dtypes ({error}); run: pip install ml_dtypes") from error
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def _converts(tensor: TensorSpec, value: Array | Handle) -> bool:
    return tensor.dtype == "float" and isinstance(value, np.ndarray) and value.dtype == np.float32


def _name_differences(spec: GraphSpec, feed: Mapping[str, Array | Handle]) -> str:
    wanted = [t.name for t in spec.inputs]
    missing, extra = [n for n in wanted if n not in feed], [n for n in feed if n not in wanted]
    problem = f"not fed: {', '.join(missing)}" if missing else f"fed, but no input: {', '.join(extra)}"
    return f"{problem}; the inputs are {', '.join(wanted)}"
