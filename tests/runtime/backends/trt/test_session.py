"""The TensorRT backend on a stand-in for a GPU: the same results, and memory that is shared and freed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arlon_rt import GenerateOptions, Pipeline
from arlon_rt.backends import open_session
from arlon_rt.backends.trt import Gpu
from arlon_rt.backends.trt.session import TrtHandle
from arlon_rt.bundle import Bundle
from arlon_rt.errors import BackendError, BundleError
from arlon_rt.graphs import LANE_OF
from fake_gpu import FakeGpu
from tiny_bundle import TINY
from trt_sessions import opened, pipeline_of, step_feed

PROMPT = "a red circle moves right"
OPTIONS = GenerateOptions(num_frames=119, num_inference_steps=3, seed=4)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("overlap", [False, True], ids=["in sequence", "overlapped"])
def test_a_whole_video_is_the_one_of_onnx_runtime(folder: Path, gpu: Gpu, precision: str, overlap: bool) -> None:
    with Pipeline.open(folder, precision=precision, threads=1) as usual:
        expected = usual.generate(PROMPT, OPTIONS).frames
    with pipeline_of(gpu, folder, precision) as pipeline:
        assert np.array_equal(pipeline.generate(PROMPT, OPTIONS, overlap=overlap).frames, expected)


def test_lanes_have_streams_of_their_own_and_share_what_they_can(folder: Path, gpu: Gpu, fake: FakeGpu) -> None:
    with pipeline_of(gpu, folder, "fp32") as pipeline:
        pipeline.generate(PROMPT, OPTIONS)
        streams: dict[str, set[int]] = {}
        for graph, stream, _ in fake.ran:
            streams.setdefault(LANE_OF[Bundle.open(folder).spec(graph).network], set()).add(stream)
        assert [len(found) for found in streams.values()] == [1, 1, 1]
        assert len(set.union(*streams.values())) == 3
        lanes = {id(session._lane) for session in pipeline._networks.sessions.values()}
        assert len(lanes) == 3


def test_activations_of_graphs_that_never_run_together_are_one_arena(folder: Path, gpu: Gpu, fake: FakeGpu) -> None:
    large, small = opened(gpu, folder, "ar_step"), opened(gpu, folder, "vq_decoder")
    large.run(step_feed(codes=20))
    arena = large._lane.activations(0)
    assert arena.size == next(iter(large._contexts.values()))._size
    tokens = np.zeros((1, 5, 2, 2), np.int64)
    small.run({"tokens": tokens})
    assert small._lane.activations(0) is arena, "the smaller graph uses the larger one's"
    large.close()
    small.close()


def test_caches_are_written_where_they_are_and_an_array_stays_as_it_was(folder: Path, gpu: Gpu, fake: FakeGpu) -> None:
    session, feed = opened(gpu, folder, "ar_step"), step_feed()
    names = [name for name in feed if name.startswith(("key", "value"))]
    before = {name: feed[name].copy() for name in names}
    held = session.run(feed, hold=[f"{name}_out" for name in names])
    assert all(np.array_equal(feed[name], before[name]) for name in names)
    caches = {name: held[f"{name}_out"] for name in names}
    addresses = {name: handle.memory.address for name, handle in caches.items()}
    live = fake.live
    for _ in range(5):
        outputs = session.run({**feed, **caches}, hold=[f"{name}_out" for name in names])
        assert all(outputs[f"{name}_out"] is caches[name] for name in names)
    assert {name: handle.memory.address for name, handle in caches.items()} == addresses
    assert fake.live == live, "a step allocates nothing that stays"
    usual = open_session(Bundle.open(folder), "ar_step", threads=1)
    for _ in range(6):
        feed |= {name.removesuffix("_out"): value for name, value in usual.run(feed).items() if name != "next_token"}
    usual.close()
    assert all(np.array_equal(caches[name].numpy(), feed[name]) for name in names)
    session.close()


def test_held_outputs_have_memory_of_their_own(folder: Path, gpu: Gpu, fake: FakeGpu) -> None:
    session = opened(gpu, folder, "vq_decoder")
    first, second = (
        session.run({"tokens": np.full((1, 5, 2, 2), i, np.int64)}, hold=["coarse"])["coarse"] for i in (1, 2)
    )
    assert first.memory.address != second.memory.address
    expected = session.run({"tokens": np.full((1, 5, 2, 2), 1, np.int64)})["coarse"]
    assert np.array_equal(first.numpy(), expected)
    session.close()
    assert np.array_equal(first.numpy(), expected), "handles outlive their session"


def test_nothing_waits_for_the_device_but_a_copy_to_the_host(folder: Path, gpu: Gpu, fake: FakeGpu) -> None:
    session = opened(gpu, folder, "vq_decoder")
    session.run({"tokens": np.zeros((1, 5, 2, 2), np.int64)})
    handle = session.run({"tokens": np.ones((1, 5, 2, 2), np.int64)}, hold=["coarse"])["coarse"]
    assert session._lane.stream.work, "the run is under way"
    handle.numpy()
    assert not session._lane.stream.work
    session.close()


def test_what_was_uploaded_may_change_at_once(folder: Path, gpu: Gpu) -> None:
    session, tokens = opened(gpu, folder, "vq_decoder"), np.ones((1, 5, 2, 2), np.int64)
    expected = session.run({"tokens": tokens})["coarse"]
    handle = session.upload("tokens", tokens)
    tokens[:] = 3
    assert np.array_equal(session.run({"tokens": handle})["coarse"], expected)
    running = session.run({"tokens": np.ones_like(tokens)}, hold=["coarse"])["coarse"]
    session.run({"tokens": tokens}, hold=["coarse"])
    assert np.array_equal(running.numpy(), expected), "the next run's input does not overtake this one's"
    session.close()


def test_what_another_lane_wrote_is_waited_for(folder: Path, gpu: Gpu) -> None:
    caption, step = opened(gpu, folder, "caption"), opened(gpu, folder, "ar_prefix")
    hidden = np.ones((1, 6, TINY.text.d_model), np.float32)
    elsewhere = caption.upload("last_hidden_state", hidden)
    caches = {n: v for n, v in step_feed().items() if n.startswith(("key", "value"))}
    expected = step.run({"last_hidden_state": hidden, **caches})
    found = step.run({"last_hidden_state": elsewhere, **caches})
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    caption.close()
    step.close()


PREFILL, DECODE = {"length": [1, 8, 20]}, {"length": [1, 1, 1]}


def test_the_narrowest_profile_that_fits_is_taken(folder: Path, gpu: Gpu, fake: FakeGpu) -> None:
    session = opened(gpu, folder, "ar_step", profiles=[PREFILL, DECODE])
    for codes, profile in ((1, 1), (7, 0), (1, 1), (20, 0)):
        session.run(step_feed(codes=codes))
        assert fake.ran[-1][2] == profile
    with pytest.raises(BackendError, match=r"no profile of the engine takes tokens \(1, 21\).*build --profile"):
        session.run(step_feed(codes=21))
    session.close()


def test_errors_name_the_graph_and_what_tensorrt_says(folder: Path, gpu: Gpu) -> None:
    with pytest.raises(BackendError, match=r"vq_decoder: the engine does not load: magic tag does not match"):
        gpu.session(b"garbage", Bundle.open(folder).spec("vq_decoder"), "fp32")
    session = opened(gpu, folder, "vq_decoder", failing=True)
    feed = {"tokens": np.zeros((1, 5, 2, 2), np.int64)}
    with pytest.raises(BackendError, match="vq_decoder: the engine did not run: an illegal memory access"):
        session.run(feed)
    session.close()


@pytest.mark.parametrize(("graph", "changed", "said"), [
    ("vq_decoder", {"lost": "coarse"}, "the engine of vq_decoder does not fit .*: outputs are none; the contract has"),
    ("caption", {"wide": "last_hidden_state"}, "engine of caption does not fit .*: input last_hidden_state is float32"),
    ("ar_step", {"copied": "key_0_out"}, "key_0_out of the engine of ar_step does not share the memory of key_0"),
])
def test_an_engine_that_is_not_the_contract_s_is_refused(
    folder: Path, gpu: Gpu, graph: str, changed: dict[str, str], said: str
) -> None:
    with pytest.raises(BundleError, match=said):
        opened(gpu, folder, graph, "fp16", **changed)


def test_a_handle_is_a_copy_on_the_host_when_asked(folder: Path, gpu: Gpu) -> None:
    session = opened(gpu, folder, "vq_decoder")
    array = np.arange(20, dtype=np.int64).reshape(1, 5, 2, 2) % TINY.vq.num_codes
    handle = session.upload("tokens", array)
    assert isinstance(handle, TrtHandle)
    assert (handle.shape, handle.dtype) == (array.shape, array.dtype)
    assert np.array_equal(handle.numpy(), array)
    session.close()
