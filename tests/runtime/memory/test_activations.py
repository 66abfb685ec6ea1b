"""Activations are estimated until TensorRT stated them, and what it stated is recorded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from full_size_weights import FULL_SIZE
from memory_plans import bundle_without_weights

from arlon_rt.bundle import Bundle, EngineProfile
from arlon_rt.memory import plan_for, remember
from arlon_rt.memory.activations import record_path, recorded
from demands import PUBLISHED, SMALL


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a record."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_activations_are_estimates_until_tensorrt_stated_them(folder: Path) -> None:
    bundle = Bundle.open(folder)
    plan = plan_for(bundle, SMALL, "fp16", None, {})
    assert {g.activations.source for g in plan.graphs} == {"estimated"}
    narrow, wide = (EngineProfile(name=n, ranges={"frame": (1, 5, m)}) for n, m in (("a", 5), ("b", 20)))
    assert recorded("f" * 64, (narrow, wide), {"frame": 5}) is None
    remember("f" * 64, [100, 400])
    assert recorded("f" * 64, (narrow, wide), {"frame": 20}) == 400
    assert recorded("f" * 64, (wide, narrow), {"frame": 20}) == 100
    remember("f" * 64, [300, 200])
    assert recorded("f" * 64, (), {}) == 400
    assert recorded("f" * 64, (narrow, wide), {"frame": 21}) == 400, "none fits: the most"


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 3}', b'{"a": []}', b'{"a": [-1]}', b"\xff", b'{"a": [1e9]}'])
def test_a_damaged_record_counts_as_none(content: bytes) -> None:
    record_path().parent.mkdir(parents=True)
    record_path().write_bytes(content)
    assert recorded("a", (), {}) is None
    remember("a", [5])
    assert recorded("a", (), {}) == 5


def test_a_record_that_cannot_be_written_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    record_path().parent.parent.mkdir(parents=True)
    record_path().parent.write_text("a file in its place")
    remember("a", [5])
    assert "memory plans stay estimates" in caplog.text


def test_estimates_bound_what_tensorrt_for_rtx_stated_for_the_published_widths(tmp_path: Path) -> None:
    """Total activation memory of fp16 engines for SM89, one pair of blocks, compiled by TensorRT for RTX 1.7.1.116."""
    stated = {
        "dit": 1_447_636_992, "semantic": 244_121_600, "caption": 16_486_400, "vae_decoder": 8_178_893_312,
        "vae_encoder": 4_737_466_368, "ar_step": 40_593_408, "ar_prefix": 13_107_200, "text_encoder": 85_248_000,
        "vq_decoder": 71_106_560,
    }
    batch_of_two = dataclasses.replace(PUBLISHED, ar_guided=True)
    plan = plan_for(bundle_without_weights(tmp_path, FULL_SIZE, "fp16"), batch_of_two, "fp16", None, {})
    for graph, bytes_stated in stated.items():
        estimated = plan.of(graph).activations.size
        rows = 2 if graph == "text_encoder" else 1   # its profile takes two prompts, a request encodes one at a time
        assert bytes_stated / rows <= estimated <= 1.1 * bytes_stated / rows + (8 << 20), graph
