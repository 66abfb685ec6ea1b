"""The backends of arlon_rt: which run on this machine and why the others do not, their engines and sessions."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from arlon_engines.build import Request, build
from arlon_engines.errors import BuildError
from arlon_engines.events import EngineProgress, Event
from arlon_engines.flavour import open_flavour
from arlon_engines.profiles import Size
from arlon_rt.backends import Session, compute_capability, open_sessions
from arlon_rt.backends.ort import available_providers, installed_runtimes
from arlon_rt.bundle import ENGINES, FLAVOURS, Bundle, Flavour, store_to_build_in
from arlon_rt.errors import ArlonError


class BuildTimeout(RuntimeError):
    """An engine was not built in the time that was left."""


class Backend(Protocol):
    """A backend that runs graphs of a bundle."""

    @property
    def name(self) -> str:
        """Its name in arlon_rt: ``"tensorrt"``."""

    @property
    def version(self) -> str: ...

    def build(self, bundle: Bundle, graphs: Sequence[str], precision: str, deadline: float) -> float | None:
        """Build the engines of ``graphs``. Returns the seconds it took, or ``None`` for a backend without engines.

        Raises:
            BuildTimeout: ``deadline``, on time.monotonic, passed first.
            ArlonError: a graph cannot be built.
        """

    def open(self, bundle: Bundle, graphs: Sequence[str], precision: str) -> dict[str, Session]:
        """Graph -> its session. `build` must have been called before."""


class OnnxRuntime:
    """ONNX Runtime on ``device``; implements `Backend`."""

    name = "onnxruntime"

    def __init__(self, device: str, threads: int | None) -> None:
        self.version = ", ".join(f"{name} {version}" for name, version in installed_runtimes().items())
        self._device, self._threads = device, threads

    def build(self, bundle: Bundle, graphs: Sequence[str], precision: str, deadline: float) -> None:
        return None

    def open(self, bundle: Bundle, graphs: Sequence[str], precision: str) -> dict[str, Session]:
        return open_sessions(bundle, graphs, device=self._device, precision=precision, threads=self._threads)


class Engines:
    """A TensorRT, with engines for the bundle's picture size and longest segment; implements `Backend`.

    The engines lie in ``folder``: in a bundle in it, or in a copy of any other bundle, whose own folder is not changed.
    They have arlon_rt's identities, and `open_sessions` opens them, as in a pipeline.
    """

    def __init__(
        self, flavour: Flavour, gpu: str, folder: Path, device: str = "cuda",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name: Flavour = flavour
        self.version = str(open_flavour(flavour).trt.__version__)
        self._gpu, self._folder, self._device, self._clock = gpu, folder, device, clock

    def build(self, bundle: Bundle, graphs: Sequence[str], precision: str, deadline: float) -> float:
        def in_time(event: Event) -> None:
            if isinstance(event, EngineProgress) and self._clock() > deadline:   # ends the process that builds
                raise BuildTimeout(f"{self.name} was still building {event.graph} when its time was over")

        if self._clock() > deadline:
            raise BuildTimeout(f"no time was left to build {', '.join(graphs)}")
        copy, video = self.copy(bundle), bundle.model.video
        failed = build(copy, Request(
            flavour=self.name, precision=precision, gpus=(self._gpu,), only=tuple(graphs),
            sizes=(Size(width=video.width, height=video.height, frames=video.segment_frames),),
        ), in_time)
        if failed:
            raise BuildError("; ".join(f.message for f in failed))
        built = store_to_build_in(copy).index().engines
        return sum(
            e.build_seconds for e in built if e.header.graph in graphs
            and (e.header.identity.flavour, e.header.identity.precision) == (self.name, precision)
        )

    def open(self, bundle: Bundle, graphs: Sequence[str], precision: str) -> dict[str, Session]:
        return open_sessions(
            self.copy(bundle), graphs, backend=self.name, device=self._device, precision=precision, trust_engines=True
        )

    def copy(self, bundle: Bundle) -> Bundle:
        """The bundle in whose folder engines are built: ``bundle`` itself, or its copy."""
        if bundle.path.is_relative_to(self._folder):
            return bundle
        folder = self._folder / ENGINES / bundle.hash
        if not folder.exists():
            shutil.copytree(bundle.path, folder, ignore=shutil.ignore_patterns(ENGINES))
        return Bundle.open(folder)


def find_backends(device: str, folder: Path, threads: int | None) -> tuple[dict[str, Backend], dict[str, str]]:
    """The backends that run on the GPU ``device``, and for each of the others the reason why it does not."""
    found: dict[str, Backend] = {}
    missing: dict[str, str] = {}
    if reason := _no_onnx_runtime():
        missing["onnxruntime"] = reason
    else:
        found["onnxruntime"] = OnnxRuntime(device, threads)
    for flavour in FLAVOURS:
        try:
            opened = open_flavour(flavour)
            gpu = compute_capability(0)
            opened.check_gpu(gpu)
            found[flavour] = Engines(flavour, gpu, folder, device)
        except (ArlonError, OSError) as error:   # OSError: a module loads a library that is missing
            missing[flavour] = " ".join(str(error).split())
    return found, missing


def _no_onnx_runtime() -> str | None:
    """The reason why ONNX Runtime cannot run on the GPU, or ``None``."""
    runtimes = installed_runtimes()
    if "onnxruntime-gpu" not in runtimes or len(runtimes) > 1:
        return (
            f"onnxruntime-gpu alone must be installed, and {', '.join(runtimes) or 'none'} is; "
            'run: pip uninstall onnxruntime, then pip install "arlon-rt[gpu,export]"'
        )
    try:
        providers = available_providers()
    except ArlonError as error:
        return str(error)
    return None if "CUDAExecutionProvider" in providers else f"it has {', '.join(providers)} and no CUDA"
