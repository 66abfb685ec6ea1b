"""A session checks its feed, keeps held outputs on the device, and updates caches in place."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from arlon_rt.backends import Session, open_session
from arlon_rt.backends.ort import available_providers
from arlon_rt.backends.ort.session import OrtHandle, OrtSession
from arlon_rt.bundle import Bundle, write_manifest
from arlon_rt.errors import ArlonError, BackendError, BundleError, MissingExtraError
from tiny_bundle import TINY, write_tiny_bundle

PRECISIONS = ("fp32", "fp16")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(write_tiny_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture
def own_bundle(bundle: Bundle, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(bundle.path, tmp_path / "bundle"))


def resigned(bundle: Bundle) -> Bundle:
    """The bundle with the hashes of its files as they are now."""
    m = bundle.manifest
    write_manifest(bundle.path, model=m.model, defaults=m.defaults, graphs=m.graphs)
    return Bundle.open(bundle.path)


def opened(bundle: Bundle, graph: str, precision: str = "fp32") -> OrtSession:
    session = open_session(bundle, graph, precision=precision, threads=1)
    assert isinstance(session, OrtSession)
    return session


def empty_caches(session: Session, batch: int = 2) -> dict[str, np.ndarray[Any, Any]]:
    assert TINY.ar
    shape = (batch, TINY.ar.num_heads, TINY.ar.max_length, TINY.ar.head_dim)
    return {t.alias: np.zeros(shape, session.float_dtype) for t in session.spec.outputs if t.alias}


def step_feed(**changed: Any) -> dict[str, Any]:
    feed = {
        "tokens": np.array([[3]]), "grid": np.zeros((1, 3), np.int64), "write_index": np.array([5, 2]),
        "guidance_weights": np.array([2, -1], np.float32), "temperature": np.ones(1, np.float32),
        "top_k": np.array([4]), "top_p": np.ones(1, np.float32), "uniform": np.full(1, 0.5, np.float32),
    }
    return {**feed, **changed}


def prefilled(bundle: Bundle, precision: str) -> dict[str, OrtHandle]:
    session = opened(bundle, "ar_prefix", precision)
    names = [t.name for t in session.spec.outputs]
    hidden = np.ones((2, 5, TINY.text.d_model), session.float_dtype)
    result = session.run({"last_hidden_state": hidden, **empty_caches(session)}, hold=names)
    session.close()
    return {name.removesuffix("_out"): handle for name, handle in result.items() if isinstance(handle, OrtHandle)}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_held_cache_is_updated_in_its_own_buffer(bundle: Bundle, precision: str) -> None:
    caches = prefilled(bundle, precision)
    pointers = {name: handle.value.data_ptr() for name, handle in caches.items()}
    session = opened(bundle, "ar_step", precision)
    result = session.run({**step_feed(), **caches}, hold=[t.name for t in session.spec.outputs])
    for name, handle in caches.items():
        assert result[f"{name}_out"] is handle
        assert handle.value.data_ptr() == pointers[name]
    expected = np.zeros((2, TINY.ar.max_length))
    expected[0, :6], expected[1, :5] = [1, 1, 1, 1, 1, 3], [1, 1, 3, 1, 1]
    for row, content in enumerate(expected):
        np.testing.assert_array_equal(caches["key_0"].numpy()[row, 0, :, 0], content)


def test_an_array_fed_as_a_cache_is_copied_in_and_stays_as_it_was(bundle: Bundle) -> None:
    session = opened(bundle, "ar_step")
    caches = empty_caches(session)
    first = session.run({**step_feed(), **caches})
    assert not any(cache.any() for cache in caches.values())
    assert all(isinstance(value, np.ndarray) for value in first.values())
    assert first["key_0_out"][1, 0, 2, 0] == 3  # type: ignore[index]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_held_output_feeds_the_next_graph_without_a_copy_to_the_host(bundle: Bundle, precision: str) -> None:
    text, caption = opened(bundle, "text_encoder", precision), opened(bundle, "caption", precision)
    feed = {"input_ids": np.array([[4, 1]]), "attention_mask": np.ones((1, 2), bool)}
    held = text.run(feed, hold=["last_hidden_state"])["last_hidden_state"]
    array = text.run(feed)["last_hidden_state"]
    assert isinstance(held, OrtHandle)
    assert isinstance(array, np.ndarray)
    assert held.shape == array.shape == (1, 2, TINY.text.d_model)
    assert held.dtype == array.dtype == text.float_dtype
    use_null = np.zeros(1, bool)
    results = [caption.run({"last_hidden_state": v, "use_null": use_null})["caption_kv"] for v in (held, array)]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_uploaded_input_serves_run_after_run_as_the_array_does(bundle: Bundle, precision: str) -> None:
    caption, use_null = opened(bundle, "caption", precision), np.zeros(1, bool)
    hidden = np.full((1, 2, TINY.text.d_model), 0.1, np.float32)
    held = caption.upload("last_hidden_state", hidden)
    assert held.dtype == caption.float_dtype
    expected = caption.run({"last_hidden_state": hidden, "use_null": use_null})["caption_kv"]
    for _ in range(2):
        np.testing.assert_array_equal(
            caption.run({"last_hidden_state": held, "use_null": use_null})["caption_kv"], expected
        )


def test_float32_arrays_are_taken_by_a_half_precision_graph(bundle: Bundle) -> None:
    caption = opened(bundle, "caption", "fp16")
    hidden = np.full((1, 2, TINY.text.d_model), 0.1, np.float32)
    result = caption.run({"last_hidden_state": hidden, "use_null": np.zeros(1, bool)})["caption_kv"]
    assert result.dtype == np.float16


@pytest.mark.parametrize(("changed", "message"), [
    ({"tokens": None}, "ar_step: not fed: tokens; the inputs are tokens, grid"),
    ({"prompt": np.zeros(1)}, "fed, but no input: prompt"),
    ({"tokens": np.zeros((1, 1), np.int32)}, "tokens is int32; int64 is expected"),
    ({"top_p": np.ones(1)}, "top_p is float64; float32 is expected"),
    ({"tokens": [[1]]}, "tokens is a list; an array or a handle"),
    ({"tokens": np.zeros((1,), np.int64)}, r"tokens has shape \(1,\); its axes are \(1, length\)"),
    ({"tokens": np.zeros((2, 1), np.int64)}, "axis 0 must be 1"),
    ({"tokens": np.zeros((1, 0), np.int64)}, r"axis 1 \(length\) must be 1\.\.24"),
    ({"tokens": np.zeros((1, 2), np.int64)}, r"grid has shape \(1, 3\); axis 0 \(length\) is 2 in the inputs before"),
    ({"write_index": np.zeros(3, np.int64)}, r"axis 0 \(batch\) must be 1\.\.2"),
])
def test_a_feed_that_does_not_fit_the_contract_is_named(
    bundle: Bundle, changed: Mapping[str, Any], message: str
) -> None:
    session = opened(bundle, "ar_step")
    feed = {n: v for n, v in {**step_feed(**changed), **empty_caches(session)}.items() if v is not None}
    with pytest.raises(BackendError, match=message):
        session.run(feed)


def test_a_failure_inside_the_graph_names_the_graph_in_one_line(bundle: Bundle) -> None:
    session = opened(bundle, "vae_decoder")
    feed = {"latents": np.zeros((1, 4, 5, 4, 4), np.float32), "frame_index": np.full(1, 99)}
    with pytest.raises(BackendError, match=r"\Avae_decoder: .*indices.*\Z") as caught:
        session.run(feed)
    assert "\n" not in str(caught.value)


def test_a_closed_session_says_so_and_its_handles_stay_valid(bundle: Bundle) -> None:
    session = opened(bundle, "text_encoder")
    feed = {"input_ids": np.array([[4]]), "attention_mask": np.ones((1, 1), bool)}
    held = session.run(feed, hold=["last_hidden_state"])["last_hidden_state"]
    session.close()
    session.close()
    assert isinstance(held, OrtHandle)
    assert held.numpy().shape == (1, 1, TINY.text.d_model)
    with pytest.raises(BackendError, match="text_encoder: the session is closed"):
        session.run(feed)


def test_one_session_serves_several_threads(bundle: Bundle) -> None:
    session = opened(bundle, "text_encoder")

    def encode(token: int) -> Any:
        feed = {"input_ids": np.full((1, 3), token), "attention_mask": np.ones((1, 3), bool)}
        return session.run(feed)["last_hidden_state"]

    alone = [encode(t) for t in range(40)]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(alone, pool.map(encode, range(40)), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_truncated_graph_is_a_bundle_error_that_names_the_file(own_bundle: Bundle) -> None:
    path = own_bundle.path / "onnx" / "dit.fp32.onnx"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BundleError, match=r"dit\.fp32\.onnx has 200 bytes.*run `arlon-rt verify"):
        open_session(own_bundle, "dit")
    with pytest.raises(BundleError, match=r"dit\.fp32\.onnx is damaged .*run `arlon-rt verify"):
        open_session(resigned(own_bundle), "dit")


def test_a_graph_that_does_not_fit_its_contract_is_not_opened(own_bundle: Bundle) -> None:
    shutil.copy(own_bundle.path / "onnx" / "caption.fp32.onnx", own_bundle.path / "onnx" / "dit.fp32.onnx")
    with pytest.raises(BundleError, match="does not fit its contract: inputs are last_hidden_state, use_null"):
        open_session(resigned(own_bundle), "dit")


@pytest.mark.parametrize("location", ["../outside.data", "missing.data", "../../../../etc/passwd"])
def test_weights_outside_the_folder_are_refused(own_bundle: Bundle, location: str) -> None:
    path = own_bundle.path / "onnx" / "dit.fp32.onnx"
    (own_bundle.path.parent / "outside.data").write_bytes(bytes(512))
    (own_bundle.path / "outside.data").write_bytes(bytes(512))
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    onnx.save(model, path)
    with pytest.raises(ArlonError):
        open_session(resigned(own_bundle), "dit")


@pytest.mark.parametrize(("arguments", "message"), [
    ({"backend": "openvino"}, "backend is 'openvino'; this version has 'onnxruntime'"),
    ({"device": "tpu"}, "device is 'tpu'; it must be 'cpu', 'cuda'"),
    ({"device": "cuda:x"}, "device is 'cuda:x'"),
    ({"threads": 0}, "threads is 0; it must be 1 or more"),
    ({"precision": "bf16"}, "precision is 'bf16', which ONNX Runtime does not run here; use --precision fp32 or fp16"),
])
def test_what_cannot_be_opened_is_said(bundle: Bundle, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        open_session(bundle, "dit", **arguments)


@pytest.mark.skipif("CUDAExecutionProvider" in available_providers(), reason="this ONNX Runtime has CUDA")
def test_cuda_without_its_provider_is_an_error_and_not_the_cpu(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match=r"this ONNX Runtime has .*CPUExecutionProvider.*arlon-rt\[gpu\]"):
        open_session(bundle, "dit", device="cuda")


def test_a_missing_onnxruntime_names_the_pip_command(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r'pip install "arlon-rt\[cpu\]"'):
        open_session(bundle, "dit")
