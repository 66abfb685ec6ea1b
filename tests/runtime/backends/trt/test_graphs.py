"""What recurs on the GPU: runs as CUDA graphs, tokens in a loop that the host waits for once, streams in order."""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arlon_rt import GenerateOptions, Pipeline
from arlon_rt.backends.trt import Gpu
from arlon_rt.backends.trt.context import MOST_GRAPHS
from arlon_rt.backends.trt.session import TrtHandle, TrtSession
from arlon_rt.errors import BackendError
from arlon_rt.networks import AT_ONCE
from fake_gpu import FakeGpu, TensorRT
from tiny_bundle import TINY
from trt_sessions import opened, pipeline_of, step_feed

PROMPT = "a red circle moves right"
OPTIONS = GenerateOptions(num_frames=119, num_inference_steps=3, seed=4)


def tokens(value: int = 1) -> dict[str, np.ndarray]:
    """For ``vq_decoder``."""
    return {"tokens": np.full((1, 5, 2, 2), value, np.int64)}


def caches(feed: dict[str, np.ndarray]) -> list[str]:
    return [name for name in feed if name.startswith(("key", "value"))]


def test_the_second_run_alike_is_captured_and_those_after_it_launch_that(folder: Path, gpu: Gpu, fake: FakeGpu) -> None:
    session = opened(gpu, folder, "vq_decoder")
    made = [session.run(tokens(value))["coarse"] for value in (1, 2, 3, 1)]
    assert (fake.captured, fake.launched) == (1, 3)
    assert len(fake.ran) == 4
    assert np.array_equal(made[0], made[3]), "its own inputs, not those it was captured with"
    assert not np.array_equal(made[1], made[2])
    session.close()


def test_a_graph_is_launched_for_its_own_addresses_only(folder: Path, gpu: Gpu, fake: FakeGpu) -> None:
    session = opened(gpu, folder, "vq_decoder")
    first = session.upload("tokens", tokens(1)["tokens"])
    expected = session.run(tokens(2))["coarse"]
    for _ in range(3):
        session.run({"tokens": first})
    second = session.upload("tokens", tokens(2)["tokens"])
    assert np.array_equal(session.run({"tokens": second})["coarse"], expected)
    assert (fake.captured, fake.launched) == (1, 2)
    session.close()


def test_graphs_do_not_outlive_a_change_of_shapes(folder: Path, gpu: Gpu, fake: FakeGpu) -> None:
    session, longer = opened(gpu, folder, "vq_decoder"), {"tokens": np.ones((1, 6, 2, 2), np.int64)}
    session.run(longer)   # whose buffers serve the shorter ones
    for _ in range(2):
        session.run(tokens())
    assert fake.captured == 1
    session.run(longer)
    context = next(iter(session._contexts.values()))
    assert not context.graphs
    session.run(tokens())
    assert fake.launched == 1, "settled anew by a plain run first"
    session.close()


def test_memory_that_a_graph_wrote_to_may_be_gone(folder: Path, gpu: Gpu, fake: FakeGpu) -> None:
    session = opened(gpu, folder, "vq_decoder")
    expected = session.run(tokens())["coarse"]
    kept = []
    for _ in range(2 * MOST_GRAPHS):
        handles = [session.run(tokens(), hold=["coarse"])["coarse"] for _ in range(3)]
        kept.append(handles.pop())   # so that addresses change, and some come back
    assert all(np.array_equal(handle.numpy(), expected) for handle in kept)
    assert len(next(iter(session._contexts.values())).graphs) <= MOST_GRAPHS
    session.close()


def test_a_larger_graph_s_activations_move_and_old_graphs_are_not_launched(
    folder: Path, gpu: Gpu, fake: FakeGpu
) -> None:
    small, large = opened(gpu, folder, "vq_decoder"), opened(gpu, folder, "ar_step")
    expected = [small.run(tokens())["coarse"] for _ in range(3)]
    large.run(step_feed(codes=20))
    gc.collect()
    assert all(np.array_equal(small.run(tokens())["coarse"], expected[0]) for _ in range(3))
    large.close()
    small.close()


def test_what_cannot_be_captured_runs_as_it_is_and_says_so_once(
    folder: Path, gpu: Gpu, fake: FakeGpu, caplog: pytest.LogCaptureFixture
) -> None:
    fake.refuses_graphs = True
    session = opened(gpu, folder, "vq_decoder")
    with caplog.at_level(logging.WARNING):
        made = [session.run(tokens())["coarse"] for _ in range(4)]
    assert all(np.array_equal(one, made[0]) for one in made)
    assert len(caplog.records) == 1
    assert "vq_decoder runs without CUDA graphs, which is slower: a run cannot be captured" in caplog.text
    session.close()


def test_graphs_can_be_left_out(folder: Path, fake: FakeGpu) -> None:
    session = opened(Gpu(TensorRT(fake), fake.stream, graphs=False), folder, "vq_decoder")
    for _ in range(3):
        session.run(tokens())
    assert (fake.captured, fake.launched) == (0, 0)
    session.close()


def looped(session: TrtSession, feed: dict[str, Any], each: dict[str, np.ndarray]) -> dict[str, Any]:
    return session.loop(feed, each, {"tokens": "next_token"}, hold=[f"{name}_out" for name in caches(feed)])


def steps(count: int, batch: int) -> dict[str, np.ndarray]:
    """What differs from token to token."""
    return {
        "grid": np.array([[[n // 4, n % 4 // 2, n % 2]] for n in range(count)], np.int64),
        "write_index": 3 + np.arange(count)[:, None] + np.arange(batch),
        "uniform": np.random.default_rng(3).random((count, 1), np.float32),
    }


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_loop_makes_the_tokens_and_caches_of_single_steps(
    folder: Path, gpu: Gpu, fake: FakeGpu, batch: int, precision: str
) -> None:
    session, count = opened(gpu, folder, "ar_step", precision), 9
    feed, each = step_feed(precision, batch), steps(count, batch)
    one, expected = dict(feed), []
    for n in range(count):
        made = session.run({**one, **{name: values[n] for name, values in each.items()}})
        expected.append(made.pop("next_token"))
        one |= {"tokens": expected[-1], **{name.removesuffix("_out"): value for name, value in made.items()}}
    fake.downloads = fake.captured = fake.launched = 0
    outputs = looped(session, {name: feed[name] for name in feed if name not in each}, each)
    assert fake.downloads == 1, "the host waits once"
    assert (fake.captured, fake.launched) == (1, count - 1), "all tokens but the first are one graph"
    assert np.array_equal(outputs["next_token"], expected)
    assert len(set(np.ravel(expected))) > 1
    for name in caches(feed):
        assert np.array_equal(outputs[f"{name}_out"].numpy(), one[name])
    again = looped(session, {name: feed[name] for name in feed if name not in each} | {
        name: outputs[f"{name}_out"] for name in caches(feed)
    }, each)
    assert all(again[f"{name}_out"] is outputs[f"{name}_out"] for name in caches(feed))
    session.close()


def test_a_loop_leaves_what_it_is_fed_as_it_was(folder: Path, gpu: Gpu) -> None:
    session, each = opened(gpu, folder, "ar_step"), steps(4, 1)
    feed = {name: value for name, value in step_feed().items() if name not in each}
    before = {name: value.copy() for name, value in feed.items()}
    looped(session, feed, each)
    assert all(np.array_equal(feed[name], before[name]) for name in feed)
    with pytest.raises(BackendError, match="tokens would be overwritten; an array is expected"):
        looped(session, feed | {"tokens": session.upload("tokens", feed["tokens"])}, each)
    session.close()
    with pytest.raises(BackendError, match="the session is closed"):
        looped(session, feed, each)


def test_tokens_are_written_many_at_once_and_told_one_by_one(folder: Path, gpu: Gpu, fake: FakeGpu) -> None:
    with Pipeline.open(folder, precision="fp32", threads=1) as usual:
        expected = usual.tokens(PROMPT, OPTIONS)
    told = []
    with pipeline_of(gpu, folder, "fp32") as pipeline:
        assert np.array_equal(pipeline.tokens(PROMPT, OPTIONS), expected)
        before = fake.downloads
        pipeline.tokens(PROMPT, OPTIONS)
        waits = fake.downloads - before
        pipeline.generate(PROMPT, OPTIONS, on_event=lambda event: told.append(event))
    steps_run = sum(graph == "ar_step" for graph, _, _ in fake.ran) / 3
    assert waits < steps_run / 2
    done = [event.done for event in told if getattr(event, "network", "") == "ar"]
    assert done[:8] == list(range(1, 9)), "progress is of single tokens"
    assert AT_ONCE > 1


def test_a_lane_reads_what_another_lane_s_stream_has_still_to_write(folder: Path, gpu: Gpu, fake: FakeGpu) -> None:
    caption, prefix = opened(gpu, folder, "caption"), opened(gpu, folder, "ar_prefix")
    hidden = np.ones((1, 6, TINY.text.d_model), np.float32)
    empty = {n: v for n, v in step_feed().items() if n.startswith(("key", "value"))}
    expected = prefix.run({"last_hidden_state": hidden, **empty})
    elsewhere = caption.upload("last_hidden_state", hidden)
    assert isinstance(elsewhere, TrtHandle)
    before = fake.downloads
    running = prefix.run({"last_hidden_state": elsewhere, **empty}, hold=list(expected))
    assert fake.downloads == before
    assert caption._lane.stream.work, "nobody has waited for it"
    del elsewhere   # freed behind the run that reads it
    other = caption.upload("last_hidden_state", np.zeros_like(hidden))
    caption._lane.stream.wait()
    assert all(np.array_equal(running[name].numpy(), expected[name]) for name in expected)
    del other, running
    caption.close()
    prefix.close()


def test_bf16_is_fed_as_float32_and_comes_back_as_bfloat16(folder: Path, gpu: Gpu) -> None:
    session = opened(gpu, folder, "caption", "bf16")
    assert session.float_dtype.name == "bfloat16"
    hidden = np.linspace(-1, 1, 4 * TINY.text.d_model, dtype=np.float32).reshape(1, 4, -1)
    feed = {"last_hidden_state": hidden, "use_null": np.array([False])}
    made = session.run(feed)["caption_kv"]
    wide = opened(gpu, folder, "caption")
    exact = wide.run(feed)["caption_kv"]
    wide.close()
    assert made.dtype == session.float_dtype
    error = np.abs(made.astype(np.float32) - exact).max()
    assert 0 < error < 2**-6 * np.abs(exact).max()
    handle = session.upload("last_hidden_state", hidden)
    assert np.array_equal(session.run({**feed, "last_hidden_state": handle})["caption_kv"], made)
    with pytest.raises(BackendError, match="last_hidden_state is float16; bfloat16 is expected"):
        session.run({**feed, "last_hidden_state": hidden.astype(np.float16)})
    session.close()


def test_a_bf16_video_is_made(folder: Path, gpu: Gpu) -> None:
    with Pipeline.open(folder, precision="fp32", threads=1) as usual:
        expected = usual.generate(PROMPT, OPTIONS).frames
    with pipeline_of(gpu, folder, "bf16") as pipeline:
        frames = pipeline.generate(PROMPT, OPTIONS).frames
    assert np.abs(frames.astype(int) - expected).mean() < 2
