"""A request is a value: it may be run often, at once, after a failure and in another process, to the same frames."""

from __future__ import annotations

import dataclasses
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arlon_rt import Cancelled, GenerateOptions, OptionsError, Pipeline
from arlon_rt.networks import Sampling
from arlon_rt.request import Request
from tiny_bundle import TINY, write_tiny_bundle

STORY = [(0.0, "a red circle moves right"), (68 / 24, "yellow triangle")]
OPTIONS = GenerateOptions(num_frames=119, seed=3, ar_guidance_scale=2.0, negative_prompt="green square")
RNG = np.random.default_rng(0)
CLIP = RNG.integers(0, 255, (34, 32, 32, 3), dtype=np.uint8)
TOKENS = RNG.integers(0, 16, (9, 2, 2))

KINDS: dict[str, Callable[[Pipeline], Request]] = {
    "written tokens": lambda p: checked(p),
    "no tokens": lambda p: checked(p, dataclasses.replace(OPTIONS, inject=False)),
    "the caller's tokens": lambda p: checked(p, tokens=TOKENS),
    "a reference": lambda p: checked(p, references=[CLIP], mask_strategy="1,0,0,10,5,0.4;0,0,0,5,5"),
    "after a clip": lambda p: checked(p, after=CLIP),
    "after an image": lambda p: checked(p, after=CLIP[:1]),
}


def checked(
    pipeline: Pipeline, options: GenerateOptions = OPTIONS, *, tokens: Any = None, after: Any = None,
    references: Any = (), mask_strategy: str = "",
) -> Request:
    return pipeline._requests.new(STORY, options, tokens, after, references, mask_strategy)


def run(pipeline: Pipeline, request: Request, **more: Any) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in pipeline._generation(request, **more)])


@pytest.fixture(scope="module")
def other(folder: Path) -> Iterator[Pipeline]:
    """A second pipeline of the bundle."""
    with Pipeline.open(folder, threads=1) as opened:
        yield opened


@pytest.fixture(params=KINDS)
def request_(request: pytest.FixtureRequest, pipeline: Pipeline) -> Request:
    return KINDS[request.param](pipeline)


def test_a_request_runs_twice_and_after_a_cancelled_run_to_the_same_frames(
    pipeline: Pipeline, request_: Request, overlap: bool
) -> None:
    first = run(pipeline, request_)
    cancelled = pipeline._generation(request_, overlap=overlap)
    next(cancelled)
    cancelled.cancel()
    with pytest.raises(Cancelled):
        list(cancelled)
    assert np.array_equal(run(pipeline, request_, overlap=overlap), first)


def test_a_request_runs_on_two_pipelines_at_once_to_the_same_frames(
    pipeline: Pipeline, other: Pipeline, request_: Request
) -> None:
    expected, found, both = run(pipeline, request_), {}, threading.Barrier(2)

    def work(mine: Pipeline) -> None:
        both.wait()
        found[mine] = run(mine, request_, on_event=lambda event: both.wait(30))

    threads = [threading.Thread(target=work, args=(mine,)) for mine in (pipeline, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(np.array_equal(found[mine], expected) for mine in (pipeline, other)), "event by event, in step"


def test_a_pickled_request_runs_to_the_same_frames(pipeline: Pipeline, other: Pipeline, request_: Request) -> None:
    copy = pickle.loads(pickle.dumps(request_))
    assert np.array_equal(run(other, copy), run(pipeline, request_))


@pytest.mark.parametrize("kind", ["written tokens", "no tokens"])
def test_requests_without_arrays_are_equal_when_they_ask_for_the_same(
    pipeline: Pipeline, other: Pipeline, kind: str
) -> None:
    request = KINDS[kind](pipeline)
    for same in (KINDS[kind](other), pickle.loads(pickle.dumps(request))):
        assert same == request
        assert hash(same) == hash(request)
    assert checked(pipeline, dataclasses.replace(OPTIONS, seed=4)) != request
    run(pipeline, request)
    assert request == KINDS[kind](pipeline), "a run leaves no trace"


def test_a_request_cannot_be_changed(pipeline: Pipeline) -> None:
    request = checked(pipeline)
    assert isinstance(request.tokens, Sampling), "how tokens are sampled, and no token yet"
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.lead = 17  # type: ignore[misc]


def test_a_size_that_the_token_model_was_not_trained_for_is_refused_when_the_request_is_checked(tmp_path: Path) -> None:
    model = dataclasses.replace(TINY, video=dataclasses.replace(TINY.video, max_height=64))
    with Pipeline.open(write_tiny_bundle(tmp_path, model=model, precisions=["fp32"]), threads=1) as pipeline:
        with pytest.raises(OptionsError, match="knows at most 2 x 2"):
            checked(pipeline, GenerateOptions(num_frames=119, height=64))
        assert checked(pipeline, GenerateOptions(num_frames=119, height=64, inject=False)).tokens is None
