"""A whole video by each backend: real-time factor, first frames, memory, and its difference to the CPU's frames."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from arlon_rt.bundle import Bundle
from arlon_rt.errors import ArlonError
from arlon_rt.events import Finished
from arlon_rt.graphs import graph_specs
from arlon_rt.networks import Networks
from arlon_rt.options import GenerateOptions
from arlon_rt.pipeline import Pipeline
from gpu.backends import Backend, BuildTimeout, OnnxRuntime
from gpu.device import Device
from gpu.row import BACKEND_OF, Effort, error_text

PROMPT = "a red circle moves right on a black background"
SEED = 3
MEAN_LEVELS = 2.0
"""The largest mean difference, of 255 levels, to the frames of fp32 on the CPU. fp16 stays below one level; a wrong
cache or mask gives another video, which differs by tens of levels."""
VIDEOS = 3
"""Videos that are timed, after one that is compared."""
CPU_SECONDS = 90.0
"""Seconds for the frames of the CPU. Those of a full-size bundle would take hours."""
SAMPLE_SECONDS = 0.005

Frames = NDArray[np.uint8]


@dataclass(kw_only=True)
class VideoMeasurement:
    """The figures of the video by one backend. Times are medians."""

    status: str
    """``ok``, ``parity failed``, ``error`` or ``skipped``."""
    detail: str = ""
    mean_levels: float | None = None
    """Mean difference to the frames of the CPU in fp32, of 255 levels."""
    build_seconds: float | None = None
    """Time to build the engines, which happens once."""
    open_seconds: float | None = None
    """Time to open the pipeline and generate the first video, minus the time of a later video."""
    seconds: float | None = None
    min_seconds: float | None = None
    max_seconds: float | None = None
    first_frame_seconds: float | None = None
    """Time from the request to the first frames."""
    real_time_factor: float | None = None
    """Seconds of video generated in a second."""
    network_seconds: Mapping[str, float] = field(default_factory=dict)
    """Network -> its time in the median video. Networks run at the same time."""
    peak_memory_mb: float | None = None
    """The most device memory in use, in samples, minus what was in use before the pipeline opened.

    The CUDA context counts only if no earlier measurement created one.
    """


@dataclass(kw_only=True)
class VideoRow:
    """The figures of a bundle's video in one precision, by every backend."""

    name: str
    status: str = "ok"
    detail: str = ""
    num_frames: int = 0
    num_inference_steps: int = 0
    height: int = 0
    width: int = 0
    video_seconds: float = 0.0
    """Its length."""
    cpu_seconds: float | None = None
    """Time for its frames by ONNX Runtime on the CPU in fp32."""
    ways: dict[str, VideoMeasurement] = field(default_factory=dict)


def video_options(small: bool) -> GenerateOptions:
    """Options for two segments, or for one chunk if ``small``.

    Tokens are the likeliest ones: sampled tokens could differ where arithmetic differs a little.
    """
    return GenerateOptions(
        num_frames=17 if small else 119, num_inference_steps=2 if small else 10, seed=SEED, temperature=0.0
    )


def measure_video(
    row: VideoRow, bundle: Bundle, precision: str, ways: Sequence[str], backends: Mapping[str, Backend],
    device: Device, effort: Effort,
) -> None:
    """Measure ``row`` with each backend that runs on this machine. A failure of one is kept as its measurement."""
    options = video_options(effort.small)
    resolved = options.resolved(bundle)
    row.num_frames, row.num_inference_steps = resolved.num_frames, resolved.num_inference_steps
    row.height, row.width, row.video_seconds = resolved.height, resolved.width, resolved.num_frames / resolved.fps
    began = time.monotonic()
    expected = _on_cpu(bundle, options, effort.threads)
    row.cpu_seconds = time.monotonic() - began if isinstance(expected, np.ndarray) else None
    names = dict.fromkeys(BACKEND_OF[way] for way in ways if way in BACKEND_OF)
    for name, backend in ((n, backends[n]) for n in names if n in backends):
        device.release()
        row.ways[name] = _measure(backend, bundle, precision, options, expected, device, effort)
    device.release()


def _on_cpu(bundle: Bundle, options: GenerateOptions, threads: int | None) -> Frames | str:
    """The frames in fp32 on the CPU, or the reason why there are none. The times are measured without them, too."""
    end = time.monotonic() + CPU_SECONDS

    def in_time(event: object) -> None:
        if time.monotonic() > end:
            raise TimeoutError(f"the CPU had no frames after {CPU_SECONDS:g} s")

    try:
        with opened(OnnxRuntime("cpu", threads), bundle, "fp32") as pipeline:
            return pipeline.generate(PROMPT, options, on_event=in_time).frames
    except (ArlonError, TimeoutError) as error:
        return f"not compared with the CPU: {error_text(error)}"


def _measure(
    backend: Backend, bundle: Bundle, precision: str, options: GenerateOptions, expected: Frames | str,
    device: Device, effort: Effort,
) -> VideoMeasurement:
    if time.monotonic() > effort.deadline:
        return VideoMeasurement(status="skipped", detail="time limit")
    found = VideoMeasurement(status="ok")
    try:
        graphs = list(graph_specs(bundle.model))
        found.build_seconds = backend.build(bundle, graphs, precision, effort.deadline)
        with Peak(device) as peak:
            began = time.perf_counter()
            with opened(backend, bundle, precision) as pipeline:
                frames, _ = _make(pipeline, options)
                found.open_seconds = time.perf_counter() - began
                found.peak_memory_mb = peak.stop()
                _compare(found, frames, expected)
                if found.status == "ok":
                    _time(found, pipeline, options, effort)
    except BuildTimeout as error:
        return VideoMeasurement(status="skipped", detail=str(error))
    except Exception as error:  # one backend that fails must not lose the others
        return VideoMeasurement(status="error", detail=error_text(error), build_seconds=found.build_seconds)
    return found


def _compare(found: VideoMeasurement, frames: Frames, expected: Frames | str) -> None:
    if isinstance(expected, str):
        found.detail = expected
        return
    found.mean_levels = float(np.abs(frames.astype(np.int16) - expected).mean())
    if found.mean_levels > MEAN_LEVELS:
        found.status = "parity failed"
        found.detail = f"frames are {found.mean_levels:.2f} levels off the CPU's, {MEAN_LEVELS} are allowed"


def _time(found: VideoMeasurement, pipeline: Pipeline, options: GenerateOptions, effort: Effort) -> None:
    ends = [_make(pipeline, options)[1]]
    while len(ends) < VIDEOS and time.monotonic() < effort.deadline:
        ends.append(_make(pipeline, options)[1])
    ends.sort(key=lambda end: end.wall_seconds)
    middle = ends[(len(ends) - 1) // 2]
    found.seconds, found.real_time_factor = middle.wall_seconds, middle.real_time_factor
    found.min_seconds, found.max_seconds = ends[0].wall_seconds, ends[-1].wall_seconds
    found.first_frame_seconds = statistics.median(end.first_chunk_seconds for end in ends)
    found.network_seconds = {str(network): s for network, s in middle.network_seconds.items()}
    assert found.open_seconds is not None
    found.open_seconds = max(0.0, found.open_seconds - middle.wall_seconds)


def _make(pipeline: Pipeline, options: GenerateOptions) -> tuple[Frames, Finished]:
    events: list[object] = []
    frames = pipeline.generate(PROMPT, options, on_event=events.append, overlap=True).frames
    return frames, next(e for e in events if isinstance(e, Finished))


@contextmanager
def opened(backend: Backend, bundle: Bundle, precision: str) -> Iterator[Pipeline]:
    """A pipeline that runs the backend's sessions."""
    sessions = backend.open(bundle, list(graph_specs(bundle.model)), precision)
    with Pipeline(bundle, Networks.of(bundle, sessions, precision), backend=backend.name) as pipeline:
        yield pipeline


class Peak:
    """Samples the device memory in use, to find the most beyond what was in use before."""

    def __init__(self, device: Device) -> None:
        self._device, self._over = device, threading.Event()
        self._before = self._most = device.used_bytes()
        self._thread = threading.Thread(target=self._watch, name="memory of the device", daemon=True)

    def stop(self) -> float | None:
        """Stop sampling. Returns MB, or ``None`` if the device has no such figure."""
        self._look()
        self._over.set()
        self._thread.join()
        return None if self._before is None or self._most is None else (self._most - self._before) / 1e6

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            self._look()

    def _look(self) -> None:
        used = self._device.used_bytes()
        if used is not None and self._most is not None:
            self._most = max(self._most, used)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
