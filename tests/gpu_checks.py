"""What must hold of a backend on a GPU, one function each: tests/gpu calls them on a GPU, tests/runtime/test_gpu_checks
on the stand-in and on the CPU, so that they are known to pass and to fail.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu.parity import graph_sizes, largest_error, make_feed
from gpu.video import MEAN_LEVELS

from arlon_rt import GenerateOptions, Pipeline
from arlon_rt.backends import Session, open_session
from arlon_rt.bundle import Bundle, Identity
from arlon_rt.errors import BackendError, EngineError
from arlon_rt.graphs import GraphSpec
from engine_builds import copy_of_demo
from fake_engines import identity_here, put_engines
from on_gpu import UnderTest

PROMPT = "a red circle moves right on a black background"
OPTIONS = GenerateOptions(num_frames=119, num_inference_steps=5, seed=3, temperature=0.0)
"""Two segments, and the likeliest tokens: a draw may differ where arithmetic does in its last digits."""
TOLERANCE = {"fp32": 1e-3, "fp16": 1e-2}
"""Largest relative rms against fp32 on the CPU: TF32 keeps 10 bits of a product, fp16 10 bits of everything. fp16 on a
CPU is 1.3e-3 off at worst (vae_decoder)."""
SAME_TOKENS = 0.95
"""Part of greedy draws that must agree: of two codes that are all but equally likely, rounding may choose either."""
STEPS = 48

Feed = dict[str, Any]


def check_parity(backend: UnderTest, graph: str, *, small: bool) -> None:
    """A graph gives what ONNX Runtime gives on the CPU in fp32, at small sizes or those it is optimised for."""
    model, spec = backend.bundle.model, backend.bundle.spec(graph)
    sizes = graph_sizes(model, spec, small=small)
    feed = make_feed(model, spec, sizes, backend.precision)
    expected = on_cpu(backend, graph, feed)
    session = backend.sessions(graph)[graph]
    try:
        found = session.run(feed)
    finally:
        session.close()
    error = largest_error(spec, feed, found, expected)
    assert error < TOLERANCE[backend.precision], f"{graph} is {error:.1e} off"


def on_cpu(backend: UnderTest, graph: str, feed: Feed) -> Feed:
    """The outputs of ONNX Runtime on the CPU in fp32."""
    session = open_session(backend.bundle, graph)
    try:
        wide = {n: v.astype(np.float32) if v.dtype == np.float16 else v for n, v in feed.items()}
        return dict(session.run(wide))
    finally:
        session.close()


def check_greedy_tokens(backend: UnderTest) -> None:
    """Fed the tokens of the CPU, step by step with the caches held, it draws the CPU's next one and ends with its
    caches."""
    expected, found = (_Decoding(opened) for opened in (UnderTest(
        "onnxruntime", "cpu", backend.bundle, backend.used_bytes, 0, "fp32"
    ), backend))
    try:
        agreed, token = 0, 0
        for step in range(STEPS):
            drawn, also = expected.step(step, token), found.step(step, token)
            agreed, token = agreed + (drawn == also), drawn
        assert agreed >= SAME_TOKENS * STEPS, f"{STEPS - agreed} of {STEPS} tokens differ"
        for name, wanted in expected.caches().items():
            _check_close(f"{name} after {STEPS} steps", found.caches()[name], wanted, TOLERANCE[backend.precision])
    finally:
        expected.close()
        found.close()


class _Decoding:
    """A token model that decodes after random text, greedily."""

    def __init__(self, backend: UnderTest) -> None:
        model = backend.bundle.model
        assert model.ar
        self._grid, self._codes, self._text = model.ar.grid, model.ar.num_codes, 12
        self._sessions = backend.sessions("ar_prefix", "ar_step")
        prefix, self._step = self._sessions.values()
        hidden = np.random.default_rng(5).standard_normal((1, self._text, model.ar.text_dim)).astype(np.float32)
        self._held = _held_caches(prefix, {"last_hidden_state": hidden, **_empty_caches(prefix)})

    def step(self, number: int, token: int) -> int:
        place = np.array([np.unravel_index(number, self._grid)], np.int64)
        feed = _step_feed(self._step.spec, token % self._codes, place, self._text + number)
        outputs = self._step.run({**feed, **self._held}, hold=[f"{name}_out" for name in self._held])
        return int(outputs["next_token"].item())  # type: ignore[union-attr]

    def caches(self) -> Feed:
        """As far as they are written."""
        return {name: held.numpy()[:, :, : self._text + STEPS] for name, held in self._held.items()}

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()


def check_caches_are_updated_in_place(backend: UnderTest) -> None:
    """A held cache that is fed comes back itself, at its address; an array that is fed stays as it was; both ways give
    the same caches."""
    session = backend.sessions("ar_step")["ar_step"]
    try:
        rng = np.random.default_rng(1)
        arrays = {
            name: rng.standard_normal(cache.shape).astype(cache.dtype) for name, cache in _empty_caches(session).items()
        }
        before = {name: array.copy() for name, array in arrays.items()}
        place, begin = np.zeros((1, 3), np.int64), 20
        feeds = [_step_feed(session.spec, token, place, begin + token) for token in range(3)]
        held = _held_caches(session, {**feeds[0], **arrays})
        assert all(np.array_equal(arrays[name], before[name]) for name in arrays), "an array was written to"
        addresses = {name: address(handle) for name, handle in held.items()}
        for feed in feeds[1:]:
            again = _held_caches(session, {**feed, **held})
            assert all(again[name] is handle for name, handle in held.items()), "a cache was copied"
        assert {name: address(handle) for name, handle in held.items()} == addresses
        for feed in feeds:
            outputs = session.run({**feed, **arrays})
            arrays = {name: outputs[f"{name}_out"] for name in arrays}
        for name, array in arrays.items():
            assert np.array_equal(held[name].numpy(), array), f"{name} differs where it was held"
            assert not np.array_equal(array, before[name]), f"{name} was not written"
    finally:
        session.close()


def check_runs_are_captured(backend: UnderTest, graph: str) -> None:
    """Runs that are alike become one CUDA graph, which gives what the plain run gave."""
    model, spec = backend.bundle.model, backend.bundle.spec(graph)
    feed = make_feed(model, spec, graph_sizes(model, spec, small=True), backend.precision)
    session: Any = backend.sessions(graph)[graph]
    try:
        plain, *later = (session.run(feed) for _ in range(4))
        contexts = list(session._contexts.values())
        assert not any(context.refused for context in contexts), contexts[0].refused
        assert sum(len(context.graphs) for context in contexts) == 1, "the runs were not alike"
        for outputs in later:
            assert all(np.array_equal(outputs[name], plain[name]) for name in plain)
    finally:
        session.close()


def check_loop(backend: UnderTest) -> None:
    """Tokens that are written in a loop on the device, and the caches after it, are those of single steps."""
    session: Any = backend.sessions("ar_step")["ar_step"]
    try:
        empty = _empty_caches(session)
        spots = [np.array([[0, n // 4, n % 4]], np.int64) for n in range(STEPS // 4)]
        feeds = [_step_feed(session.spec, 1, spot, 20 + n) for n, spot in enumerate(spots)]
        one, tokens = {**feeds[0], **empty}, []
        for feed in feeds:
            outputs = session.run({**one, "grid": feed["grid"], "write_index": feed["write_index"]})
            tokens.append(outputs["next_token"])
            one |= {"tokens": outputs["next_token"], **{name: outputs[f"{name}_out"] for name in empty}}
        each = {name: np.stack([feed[name] for feed in feeds]) for name in ("grid", "write_index")}
        first = {name: value for name, value in {**feeds[0], **empty}.items() if name not in each}
        looped = session.loop(first, each, {"tokens": "next_token"}, hold=[f"{name}_out" for name in empty])
        assert np.array_equal(looped["next_token"], tokens)
        assert all(np.array_equal(looped[f"{name}_out"].numpy(), one[name]) for name in empty)
    finally:
        session.close()


def address(handle: Any) -> int:
    """Where the tensor of a handle lies."""
    return int(handle.memory.address if hasattr(handle, "memory") else handle.value.data_ptr())


def check_memory_comes_back(backend: UnderTest) -> None:
    """A pipeline that was opened, made a video and was closed leaves nothing, the third time as the first."""
    def use() -> int:
        with backend.pipeline() as pipeline:
            pipeline.generate(PROMPT, OPTIONS)
            return backend.used_bytes()

    started = backend.used_bytes()
    open_bytes = use()   # loads what is loaded once a process, and fills pools that keep what they have
    gc.collect()
    before = backend.used_bytes()
    for _ in range(2):
        use()
        gc.collect()
    left = backend.used_bytes() - before
    assert open_bytes > started, "the memory of a pipeline does not show"
    assert left <= backend.slack_bytes, f"{left / 1e6:.1f} MB are left of two pipelines"


def check_video_is_the_one_of_the_cpu(backend: UnderTest, *, overlap: bool) -> None:
    """Frames are those of fp32 on the CPU, but for rounding."""
    with Pipeline.open(backend.bundle, precision="fp32") as pipeline:
        expected = pipeline.generate(PROMPT, OPTIONS).frames
    with backend.pipeline() as pipeline:
        frames = pipeline.generate(PROMPT, OPTIONS, overlap=overlap).frames
    assert frames.shape == expected.shape
    assert np.abs(frames.astype(int) - expected).mean() < MEAN_LEVELS


def check_second_video_is_the_first(backend: UnderTest) -> None:
    """To the last bit."""
    with backend.pipeline() as pipeline:
        first, second = (pipeline.generate(PROMPT, OPTIONS).frames for _ in range(2))
    assert np.array_equal(first, second)


def check_snapshot_goes_on(backend: UnderTest) -> None:
    """To the last bit."""
    with backend.pipeline() as pipeline:
        whole = pipeline.generate(PROMPT, OPTIONS).frames
        generation = pipeline.stream(PROMPT, OPTIONS)
        made = []
        for chunk in generation:
            made.append(chunk.frames)
            if chunk.ends_segment:
                break
        snapshot = generation.snapshot()
        generation.close()
        rest = [chunk.frames for chunk in pipeline.resume(snapshot)]
    assert rest
    assert np.array_equal(np.concatenate([*made, *rest]), whole)


def check_engine_that_is_not_there(name: Any, folder: Path) -> None:
    """Its error has the command that builds it for this GPU."""
    copy = copy_of_demo(folder)
    here = identity_here(name)
    command = f"arlon-rt build {copy} --backend {name} --precision fp16 --gpu {here.compute_capability}"
    with pytest.raises(EngineError, match=rf"has no engine of text_encoder; build it: `{command}"):
        Pipeline.open(copy, backend=name)


def check_engines_of_another_gpu(name: Any, folder: Path) -> None:
    """Nothing of them is loaded; the error says which GPU they are for, and which this is."""
    here, copy = identity_here(name), copy_of_demo(folder)
    other = Identity(**{**vars(here), "compute_capability": "sm50"})
    put_engines(Bundle.open(copy), other, lambda graph: b"never read")
    with pytest.raises(EngineError, match=f"the GPU is {here.compute_capability} and it was built for sm50"):
        Pipeline.open(copy, backend=name)


def check_engine_that_is_damaged(name: Any, folder: Path) -> None:
    """TensorRT refuses it, and what TensorRT says is told."""
    here, copy = identity_here(name), copy_of_demo(folder)
    put_engines(Bundle.open(copy), here, lambda graph: b"no engine " * 1000)
    with pytest.raises(BackendError, match=r"text_encoder: the engine does not load: (?!it gives no reason)"):
        Pipeline.open(copy, backend=name)


def _check_close(what: str, found: Any, wanted: Any, tolerance: float) -> None:
    error = np.linalg.norm((found.astype(np.float32) - wanted).ravel()) / np.linalg.norm(wanted.ravel())
    assert error < tolerance, f"{what}: {error:.1e} off"


def _empty_caches(session: Session) -> Feed:
    aliased = {t.alias for t in session.spec.outputs if t.alias}
    return {
        t.name: np.zeros([1 if a == "batch" else int(a) for a in t.axes], session.float_dtype)
        for t in session.spec.inputs if t.name in aliased
    }


def _held_caches(session: Session, feed: Feed) -> Feed:
    names = [t.name for t in session.spec.outputs if t.alias]
    outputs = session.run(feed, hold=names)
    return {name.removesuffix("_out"): outputs[name] for name in names}


def _step_feed(spec: GraphSpec, token: int, place: Any, begin: int) -> Feed:
    """One greedy step without guidance, caches left out."""
    assert spec.name == "ar_step"
    one = np.ones(1, np.float32)
    return {
        "tokens": np.full((1, 1), token, np.int64), "grid": place, "write_index": np.full(1, begin, np.int64),
        "guidance_weights": one, "temperature": one, "top_k": np.ones(1, np.int64), "top_p": one, "uniform": one / 2,
    }
