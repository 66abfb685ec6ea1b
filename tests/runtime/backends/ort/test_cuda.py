"""What ONNX Runtime is asked to do on CUDA, on a stand-in for it: these tests have no GPU."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import pytest

from arlon_rt import GenerateOptions, Pipeline
from arlon_rt.backends import open_session
from arlon_rt.backends.ort import available_providers
from arlon_rt.backends.ort.session import OrtHandle, OrtSession
from arlon_rt.bundle import Bundle
from arlon_rt.errors import BackendError
from ort_on_cuda import CUDA, OrtOnCuda
from tiny_bundle import TINY

PROMPT = "red circle moves right"
OPTIONS = GenerateOptions(num_frames=119, seed=3)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> OrtOnCuda:
    return installed(monkeypatch, OrtOnCuda())


def installed(monkeypatch: pytest.MonkeyPatch, module: OrtOnCuda) -> OrtOnCuda:
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    return module


def opened(folder: Path, graph: str, device: str = "cuda") -> OrtSession:
    session = open_session(Bundle.open(folder), graph, device=device, precision="fp32")
    assert isinstance(session, OrtSession)
    return session


def hidden() -> np.ndarray:
    return np.full((1, 2, TINY.text.d_model), 0.1, np.float32)


def test_a_video_is_the_one_of_the_cpu(pipeline: Pipeline, folder: Path, cuda: OrtOnCuda, overlap: bool) -> None:
    expected = pipeline.generate(PROMPT, OPTIONS).frames
    with Pipeline.open(folder, device="cuda", precision="fp32") as on_cuda:
        assert np.array_equal(on_cuda.generate(PROMPT, OPTIONS, overlap=overlap).frames, expected)
    assert len(cuda.opened) == len(pipeline.bundle.manifest.graphs)


def test_inputs_are_on_the_device_before_a_run_and_only_what_is_asked_for_comes_back(
    folder: Path, cuda: OrtOnCuda
) -> None:
    with Pipeline.open(folder, device="cuda", precision="fp32") as pipeline:
        pipeline.generate(PROMPT, OPTIONS)
    kinds = {call[0] for call in cuda.calls}
    assert kinds == {"bind_ortvalue_input", "bind_output", "bind_ortvalue_output"}
    places = {call[1:] for call in cuda.calls if call[0] == "bind_output"}
    assert ("latents_out", "cuda") in places
    assert {name for name, device in places if device == "cpu"} >= {"next_token", "frames"}
    assert not {name for name, _ in places if name.startswith(("key_", "value_"))}, "caches are bound in place"


def test_caches_stay_in_their_buffers_and_arrays_as_they_were(folder: Path, cuda: OrtOnCuda) -> None:
    assert TINY.ar
    session = opened(folder, "ar_prefix")
    names = [t.name for t in session.spec.outputs]
    shape = (1, TINY.ar.num_heads, TINY.ar.max_length, TINY.ar.head_dim)
    caches = {name.removesuffix("_out"): np.zeros(shape, np.float32) for name in names}
    first = session.run({"last_hidden_state": hidden(), **caches}, hold=names)
    held = {name.removesuffix("_out"): value for name, value in first.items()}
    addresses = [value.value.data_ptr() for value in held.values() if isinstance(value, OrtHandle)]
    assert len(addresses) == len(names)
    assert not any(cache.any() for cache in caches.values())
    second = session.run({"last_hidden_state": 2 * hidden(), **held}, hold=names)
    assert [second[name] for name in names] == [held[name.removesuffix("_out")] for name in names]
    assert [v.value.data_ptr() for v in second.values() if isinstance(v, OrtHandle)] == addresses


@pytest.mark.parametrize("plugin", [False, True], ids=["built in", "a plugin"])
def test_cuda_is_asked_for_exact_and_repeatable_work_and_never_falls_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, plugin: bool
) -> None:
    cuda = installed(monkeypatch, OrtOnCuda(plugin=plugin))
    opened(folder, "caption", "cuda:1")
    ((providers, options),) = cuda.opened
    ((name, asked),) = providers
    assert name == CUDA
    assert asked["device_id"] == 1
    assert asked["use_tf32"] == "0"
    assert asked["cudnn_conv_algo_search"] == "HEURISTIC"
    assert options["enable_fallback"] == 0
    assert options["sess_options"].use_deterministic_compute


def test_a_gpu_has_two_names_and_another_gpu_is_another_device(folder: Path, cuda: OrtOnCuda) -> None:
    use_null = np.zeros(1, bool)
    handle = opened(folder, "caption", "cuda").upload("last_hidden_state", hidden())
    opened(folder, "caption", "cuda:0").run({"last_hidden_state": handle, "use_null": use_null})
    with pytest.raises(BackendError, match="last_hidden_state is on cuda, the session on cuda:1"):
        opened(folder, "caption", "cuda:1").run({"last_hidden_state": handle, "use_null": use_null})


def test_what_onnxruntime_prints_while_it_loads_cuda_is_logged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    cuda = installed(monkeypatch, OrtOnCuda(says="Failed to load libcudnn.so.9"))
    with caplog.at_level(logging.WARNING, "arlon_rt.backends.ort.library"):
        for _ in range(2):
            opened(folder, "caption")
    assert cuda.loaded == 1
    assert capsys.readouterr().out == ""
    assert caplog.messages == ["CUDA: Failed to load libcudnn.so.9"]


def test_a_cuda_that_does_not_start_is_an_error_and_not_the_cpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, OrtOnCuda(starts=False))
    with pytest.raises(BackendError, match=r"CUDA did not start: there is no GPU, .*onnxruntime-gpu\[cuda,cudnn\]"):
        opened(folder, "caption")


def test_the_cpu_loads_nothing_of_cuda(folder: Path, cuda: OrtOnCuda) -> None:
    assert available_providers() == ["CPUExecutionProvider"]
    assert cuda.loaded == 0
