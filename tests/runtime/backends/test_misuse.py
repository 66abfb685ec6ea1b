"""A session that is used wrongly says the same, whichever backend it is of."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arlon_rt.backends import Session, open_session
from arlon_rt.backends.trt import Gpu
from arlon_rt.bundle import Bundle
from arlon_rt.errors import BackendError
from fake_gpu import FakeGpu, TensorRT
from tiny_bundle import TINY
from trt_sessions import opened, step_feed

Feed = dict[str, Any]
Open = Callable[[str], Session]
"""Graph -> an fp16 session."""
BACKENDS = ("onnxruntime", "tensorrt")


@pytest.fixture
def openers(folder: Path) -> Iterator[dict[str, Open]]:
    """Each backend on its usual device, TensorRT on the stand-in."""
    fake, sessions = FakeGpu(), []

    def in_onnx_runtime(graph: str) -> Session:
        sessions.append(open_session(Bundle.open(folder), graph, precision="fp16", threads=1))
        return sessions[-1]

    def in_tensorrt(graph: str) -> Session:
        sessions.append(opened(Gpu(TensorRT(fake), fake.stream), folder, graph, "fp16"))
        return sessions[-1]

    yield {"onnxruntime": in_onnx_runtime, "tensorrt": in_tensorrt}
    for session in sessions:
        session.close()
    sessions.clear()
    gc.collect()


def feed_of(graph: str) -> Feed:
    if graph == "ar_step":
        return dict(step_feed("fp16"))
    return {"last_hidden_state": np.ones((1, 4, TINY.text.d_model), np.float32), "use_null": np.array([False])}


class Elsewhere:
    """A handle of no backend that exists."""

    shape, dtype, device = (1,), np.dtype(np.bool_), "cpu"

    def numpy(self) -> np.ndarray:
        return np.zeros(self.shape, self.dtype)


def closed(session: Session) -> Session:
    session.close()
    session.close()
    return session


def in_one_buffer(session: Session) -> Feed:
    """A feed in which one handle serves as two caches."""
    feed = feed_of("ar_step")
    handle = session.upload("key_0", feed["key_0"])
    return {**feed, "key_0": handle, "value_0": handle}


MISUSES: dict[str, tuple[str, Callable[[Session, Feed], object], str]] = {
    "closed": ("caption", lambda s, feed: closed(s).run(feed), "caption: the session is closed"),
    "closed, then an upload": (
        "caption", lambda s, feed: closed(s).upload("use_null", feed["use_null"]), "caption: the session is closed",
    ),
    "an input that does not exist": (
        "caption", lambda s, feed: s.upload("prompt", feed["use_null"]),
        "caption: cannot upload prompt; there is no such input",
    ),
    "an upload of another dtype": (
        "caption", lambda s, feed: s.upload("use_null", np.zeros(1, np.int64)),
        "caption: use_null is int64; bool is expected",
    ),
    "an upload of another shape": (
        "caption", lambda s, feed: s.upload("use_null", np.zeros((1, 1), bool)),
        "caption: use_null has shape (1, 1); its axes are (batch)",
    ),
    "an upload that overflows": (
        "caption", lambda s, feed: s.upload("last_hidden_state", 1e6 * feed["last_hidden_state"]),
        "caption: last_hidden_state has values too large for float16; use fp32",
    ),
    "a value that overflows": (
        "caption", lambda s, feed: s.run({**feed, "last_hidden_state": 1e6 * feed["last_hidden_state"]}),
        "caption: last_hidden_state has values too large for float16; use fp32",
    ),
    "an output that does not exist": (
        "caption", lambda s, feed: s.run(feed, hold=["frames"]),
        "caption: cannot hold frames; there is no such output",
    ),
    "an input that is missing": (
        "caption", lambda s, feed: s.run({"use_null": feed["use_null"]}),
        "caption: not fed: last_hidden_state; the inputs are last_hidden_state, use_null",
    ),
    "an input of another dtype": (
        "caption", lambda s, feed: s.run({**feed, "use_null": np.zeros(1, np.uint8)}),
        "caption: use_null is uint8; bool is expected",
    ),
    "a handle of another backend": (
        "caption", lambda s, feed: s.run({**feed, "use_null": Elsewhere()}),
        "caption: use_null is a Elsewhere of another backend",
    ),
    "a handle that is fed twice": (
        "ar_step", lambda s, feed: s.run(in_one_buffer(s)), "ar_step: the handle fed as value_0 is fed as another too",
    ),
}


@pytest.mark.parametrize("misuse", MISUSES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_misuse_has_the_same_message_in_every_backend(openers: dict[str, Open], backend: str, misuse: str) -> None:
    graph, use, message = MISUSES[misuse]
    with pytest.raises(BackendError) as caught:
        use(openers[backend](graph), feed_of(graph))
    assert str(caught.value) == message


@pytest.mark.parametrize(("backend", "other"), [BACKENDS, BACKENDS[::-1]])
def test_a_handle_of_one_backend_is_foreign_to_the_other(openers: dict[str, Open], backend: str, other: str) -> None:
    feed = feed_of("caption")
    handle = openers[other]("caption").upload("use_null", feed["use_null"])
    with pytest.raises(BackendError, match=f"use_null is a {type(handle).__name__} of another backend"):
        openers[backend]("caption").run({**feed, "use_null": handle})


def test_a_handle_on_another_gpu_is_named_and_the_same_gpu_has_two_names(folder: Path) -> None:
    fake, feed = FakeGpu(), feed_of("caption")
    first, same, other = (
        opened(Gpu(TensorRT(fake), fake.stream, device=device), folder, "caption", "fp16")
        for device in ("cuda", "cuda:0", "cuda:1")
    )
    handle = first.upload("use_null", feed["use_null"])
    same.run({**feed, "use_null": handle})
    with pytest.raises(BackendError, match="caption: use_null is on cuda, the session on cuda:1"):
        other.run({**feed, "use_null": handle})
    for session in (first, same, other):
        session.close()
