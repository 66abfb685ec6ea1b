"""The one place that chooses a backend, and opens graphs in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack

from arlon_rt.backends.device import BACKENDS
from arlon_rt.backends.session import Session
from arlon_rt.bundle import FLAVOURS, Bundle
from arlon_rt.errors import BackendError
from arlon_rt.memory import Budget
from arlon_rt.units import mebibytes


def open_sessions(
    bundle: Bundle,
    graphs: Iterable[str],
    *,
    backend: str = "onnxruntime",
    device: str = "cpu",
    precision: str = "fp32",
    threads: int | None = None,
    trust_engines: bool = False,
    budget: Budget | None = None,
) -> dict[str, Session]:
    """The opened sessions of ``graphs``, by name. When one cannot be opened, the others are closed.

    Args:
        backend: one of `BACKENDS`.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        precision: a precision set of the bundle: ``"fp32"``, ``"fp16"``, …
        threads: CPU threads inside one operator; ``None`` lets the backend choose.
        trust_engines: whether to load TensorRT engines that this user did not build; an engine is code.
        budget: GPU memory that all sessions together may take; only TensorRT's sessions keep to one.

    Raises:
        BundleError: the bundle has no such graph or its file is damaged.
        BudgetError: the budget does not hold the graphs.
        BackendError: the backend cannot run it on this machine.
    """
    if threads is not None and threads < 1:
        raise BackendError(f"threads is {threads}; it must be 1 or more, or None to let the backend choose")
    names = list(graphs)
    opening: Iterator[Session]
    if backend == "onnxruntime":
        from arlon_rt.backends.ort.session import OrtSession

        if budget is not None:
            raise BackendError(
                f"vram_budget is {mebibytes(budget.size)}, but backend onnxruntime keeps to none; leave it out, or use "
                "backend tensorrt or tensorrt-rtx (`arlon-rt generate --vram-budget … --dry-run` shows their plan)"
            )
        opening = (
            OrtSession.open(bundle, graph, device=device, precision=precision, threads=threads) for graph in names
        )
    elif flavour := next((name for name in FLAVOURS if name == backend), None):
        from arlon_rt.backends.trt.open import open_engines

        if threads is not None:
            raise BackendError(f"threads is {threads}, but backend {backend} runs on a GPU; leave threads out")
        opening = open_engines(
            bundle, names, flavour=flavour, device=device, precision=precision, trust=trust_engines, budget=budget
        )
    else:
        raise BackendError(f"backend is {backend!r}; this version has {', '.join(map(repr, BACKENDS))}")
    with ExitStack() as on_error:
        opened: dict[str, Session] = {}
        for graph, session in zip(names, opening, strict=True):
            opened[graph] = session
            on_error.callback(session.close)
        on_error.pop_all()
    return opened


def open_session(
    bundle: Bundle, graph: str, *, backend: str = "onnxruntime", device: str = "cpu", precision: str = "fp32",
    threads: int | None = None,
) -> Session:
    """The opened session of one graph; see `open_sessions`."""
    return open_sessions(bundle, [graph], backend=backend, device=device, precision=precision, threads=threads)[graph]
