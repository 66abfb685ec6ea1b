"""The seam between networks and backends: what a session is, and what every session checks and says alike."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from arlon_rt.backends.device import device_parts
from arlon_rt.errors import BackendError, MissingExtraError
from arlon_rt.graphs import FLOAT_DTYPE, GraphSpec, TensorSpec, shape_text, signature

Array = npt.NDArray[Any]


class Handle(Protocol):
    """A tensor that stays on the device of its session. Feed it to a later run, or copy it to the host."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def device(self) -> str:
        """``"cpu"``, ``"cuda"`` or ``"cuda:1"``."""

    def numpy(self) -> Array:
        """A copy on the host."""


G = TypeVar("G")
H = TypeVar("H", bound=Handle)


class Session(Protocol):
    """One opened graph. `run` keeps no state between calls, and several threads may call it."""

    @property
    def spec(self) -> GraphSpec:
        """The contract of the graph."""

    @property
    def float_dtype(self) -> np.dtype[Any]:
        """The dtype that ``"float"`` of the contract means in this precision set."""

    def run(self, feed: Mapping[str, Array | Handle], hold: Collection[str] = ()) -> dict[str, Array | Handle]:
        """The outputs of one run, by name.

        Args:
            feed: every input by name. An array of a ``"float"`` input may be float32 in any precision set.
            hold: outputs that stay on the device and come back as handles; the others come back as arrays.

        An output with an alias is written into the buffer of that input. A handle that was fed there comes back as the
        output; an array that was fed there is copied first, and stays as it was.

        Raises:
            BackendError: the session is closed, the feed does not fit the contract (the message names the input), or
                the run failed.
        """

    def upload(self, name: str, array: Array) -> Handle:
        """A handle of ``array`` as the input ``name``, for runs that all feed the same. Do not change ``array`` later.

        Raises:
            BackendError: as `run`.
        """

    def close(self) -> None:
        """Free the graph. A second call does nothing; handles stay valid."""


@runtime_checkable
class Looping(Protocol):
    """A session that runs its graph many times in a row while the host waits once, at the end."""

    def loop(
        self, feed: Mapping[str, Array | Handle], each: Mapping[str, Array], carry: Mapping[str, str],
        hold: Collection[str] = (),
    ) -> dict[str, Array | Handle]:
        """The outputs of as many runs as ``each`` has entries, by name.

        Args:
            feed: the other inputs of the first run, as `Session.run` takes them; inputs that ``carry`` names are
                arrays.
            each: input -> (run, *shape): the inputs that differ from run to run.
            carry: input -> the output of the run before, of the same shape and type, that is fed to it from the second
                run on. Aliased inputs take the output of the run before in any case.
            hold: outputs of the last run that stay on the device.

        Returns:
            Held outputs as handles, the others as arrays (run, *shape).

        Raises:
            BackendError: as `Session.run`.
        """


class Front(Generic[H]):
    """What the sessions of every backend check and say alike; each session has one and asks it first."""

    def __init__(self, spec: GraphSpec, precision: str, handle: type[H], device: str) -> None:
        """``handle`` is the backend's own kind of handle."""
        self.spec, self.device, self._handle = spec, device, handle
        self.float_dtype = numpy_dtype(FLOAT_DTYPE[precision])
        tensors = signature((*spec.inputs, *spec.outputs), precision)
        self.dtypes = {name: numpy_dtype(dtype) for name, dtype, _ in tensors}
        self.aliased = {t.alias for t in spec.outputs if t.alias}
        """Inputs that a run overwrites."""
        self._inputs = {tensor.name: tensor for tensor in spec.inputs}
        self._axes = {axis.name: axis for axis in spec.axes}

    def opened(self, graph: G | None) -> G:
        """The backend's ``graph``, which a session drops when it is closed.

        Raises:
            BackendError: it was dropped.
        """
        if graph is None:
            raise closed(self.spec)
        return graph

    def handles(self, feed: Mapping[str, Array | Handle], hold: Collection[str]) -> dict[str, H]:
        """The handles of a feed, after a check of the whole feed.

        Raises:
            BackendError: the feed does not fit the contract, a handle is of another backend or device, or a run would
                write into one handle twice.
        """
        graph = self.spec.name
        if unknown := set(hold) - {t.name for t in self.spec.outputs}:
            raise BackendError(f"{graph}: cannot hold {', '.join(sorted(unknown))}; there is no such output")
        if feed.keys() != self._inputs.keys():
            missing, extra = [n for n in self._inputs if n not in feed], [n for n in feed if n not in self._inputs]
            problem = f"not fed: {', '.join(missing)}" if missing else f"fed, but no input: {', '.join(extra)}"
            raise BackendError(f"{graph}: {problem}; the inputs are {', '.join(self._inputs)}")
        sizes: dict[str, int] = {}
        for name, tensor in self._inputs.items():
            self._check(tensor, feed[name], sizes)
        found: dict[str, H] = {}
        overwritten: set[int] = set()
        for name, value in feed.items():
            if isinstance(value, np.ndarray):
                continue
            if not isinstance(value, self._handle):
                raise BackendError(f"{graph}: {name} is a {type(value).__name__} of another backend")
            if value.device != self.device and device_parts(value.device) != device_parts(self.device):
                raise BackendError(f"{graph}: {name} is on {value.device}, the session on {self.device}")
            if name in self.aliased:
                if id(value) in overwritten:
                    raise BackendError(f"{graph}: the handle fed as {name} is fed as another too")
                overwritten.add(id(value))
            found[name] = value
        return found

    def converted(self, name: str, array: Array) -> Array:
        """An array that was checked, contiguous and in the dtype of the graph.

        Raises:
            BackendError: a value is too large for that dtype.
        """
        dtype = self.dtypes[name]
        with np.errstate(over="raise"):
            try:
                return np.ascontiguousarray(array, dtype)
            except FloatingPointError:
                raise BackendError(f"{self.spec.name}: {name} has values too large for {dtype}; use fp32") from None

    def uploaded(self, name: str, array: Array) -> Array:
        """An array for an upload, checked and `converted`.

        Raises:
            BackendError: there is no such input, or the array does not fit it.
        """
        if name not in self._inputs:
            raise BackendError(f"{self.spec.name}: cannot upload {name}; there is no such input")
        self._check(self._inputs[name], array, {})
        return self.converted(name, array)

    def _check(self, tensor: TensorSpec, value: Array | Handle, sizes: dict[str, int]) -> None:
        """Raise `BackendError` unless ``value`` fits an input; ``sizes`` has the named axes of those before it."""
        where, dtype = f"{self.spec.name}: {tensor.name}", self.dtypes[tensor.name]
        if not hasattr(value, "dtype"):
            raise BackendError(f"{where} is a {type(value).__name__}; an array or a handle is expected")
        if value.dtype != dtype and not (
            tensor.dtype == "float" and isinstance(value, np.ndarray) and value.dtype == np.float32
        ):
            raise BackendError(f"{where} is {value.dtype}; {dtype} is expected")
        if problem := self._shape_problem(tensor, value.shape, sizes):
            raise BackendError(f"{where} has shape {value.shape}; {problem}")

    def _shape_problem(self, tensor: TensorSpec, shape: tuple[int, ...], sizes: dict[str, int]) -> str | None:
        """What is wrong with a shape; the sizes of its named axes are added to ``sizes``."""
        if len(shape) != len(tensor.axes):
            return f"its axes are {shape_text(tensor.axes)}"
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


def closed(spec: GraphSpec) -> BackendError:
    """The error of every call to a session that was closed."""
    return BackendError(f"{spec.name}: the session is closed")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of this name. ``"bfloat16"``, which numpy lacks, is that of ml_dtypes.

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
