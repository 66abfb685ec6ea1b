"""A bundle held to its checkpoint in torch float32, by the inputs of a real request."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from arlon_export.checkpoints.checkpoint import Checkpoint, read_checkpoint
from arlon_export.parity.checkpoint import KEPT_CALLS, SMALL_CALLS, Calls, OneNetwork, compare_checkpoint, judge, record
from arlon_rt.bundle import Bundle
from arlon_rt.cli import main
from arlon_rt.graphs import graph_specs
from arlon_rt.options import GenerateOptions
from tiny_checkpoint import tiny_model

GRAPHS = ("text_encoder", "vq_decoder", "semantic", "caption", "dit", "vae_decoder", "vae_encoder")
SHORT = GenerateOptions(num_frames=51)


@pytest.fixture
def checkpoint(tiny_export: Path) -> Checkpoint:
    return read_checkpoint(tiny_export / "checkpoint")


def test_every_graph_passes_in_every_precision(tiny_export: Path, checkpoint: Checkpoint) -> None:
    rows = list(compare_checkpoint(checkpoint, Bundle.open(tiny_export / "bundle"), options=SHORT))
    assert {r.graph for r in rows} == set(graph_specs(checkpoint.model))
    assert {(r.precision, r.by) for r in rows} == {
        ("fp32", "onnxruntime"), ("fp16", "onnxruntime"), ("fp16", "torch"), ("bf16", "torch"),
    }
    assert [r for r in rows if not r.passed] == []
    for graph in GRAPHS:
        worst = {r.precision: r.error for r in rows if r.graph == graph and r.by == "torch"}
        assert 0 < worst["fp16"] < worst["bf16"], "a narrower mantissa is further off"


def test_the_inputs_are_those_of_a_request(checkpoint: Checkpoint) -> None:
    calls = record(checkpoint, OneNetwork(checkpoint), "a red circle", SHORT)
    assert calls["text_encoder"].feeds[0]["attention_mask"].sum() > 1
    masks = [feed["frame_mask"].all() for feed in calls["dit"].feeds]
    assert masks == [True, True, False, False], "the second segment keeps frames"
    times = [float(feed["timestep"][0]) for feed in calls["dit"].feeds]
    assert times[0] == 1000 > times[1]
    slots = [int(feed["write_index"][0]) for feed in calls["ar_step"].feeds]
    assert len(set(slots)) > 10


def test_first_calls_of_a_small_graph_and_some_of_a_large_one_are_kept() -> None:
    spec = graph_specs(tiny_model())["vq_decoder"]
    small, large = Calls(spec), Calls(spec)
    for _ in range(70):
        small.take({"tokens": np.zeros(1, np.int64)}, {})
        large.take({"tokens": np.zeros(1 << 22, np.int64)}, {})
    assert len(small.feeds) == SMALL_CALLS + 1
    assert len(large.feeds) == len(KEPT_CALLS)


def test_one_changed_weight_fails_the_graphs_that_read_it(
    tiny_export: Path, checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = dict(checkpoint.weights["vq"])
    stored = weights["decoder.conv_out.bias"]
    weights["decoder.conv_out.bias"] = dataclasses.replace(stored, load=lambda: stored.load() + 1)
    other = dataclasses.replace(checkpoint, weights={**checkpoint.weights, "vq": weights})
    rows = compare_checkpoint(other, Bundle.open(tiny_export / "bundle"), options=SHORT)
    failed = {(r.graph, r.by) for r in rows if not r.passed}
    assert failed == {("vq_decoder", "onnxruntime")}, "its torch module in half precision has the new weight, too"


def test_a_value_that_is_not_finite_fails() -> None:
    calls, made = Calls(graph_specs(tiny_model())["vq_decoder"]), np.ones((1, 4, 2, 2, 2), np.float32)
    calls.take({"tokens": np.zeros((1, 1, 1, 1), np.int64)}, {"coarse": made})
    assert judge(calls, "fp32", "onnxruntime", lambda feed: {"coarse": made}).passed
    spoilt = np.where(np.arange(2) == 1, np.nan, made).astype(np.float32)
    row = judge(calls, "fp32", "onnxruntime", lambda feed: {"coarse": spoilt})
    assert (row.finite, row.passed, row.output) == (False, False, "coarse")


def test_the_command_prints_a_table_and_its_verdict(tiny_export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--checkpoint", str(tiny_export / "checkpoint"), "--num-frames", "17", "--prompt", "a red circle"]
    assert main(["parity", str(tiny_export / "bundle"), *arguments]) == 0
    out = capsys.readouterr().out
    assert "comparisons pass" in out
    for graph in ("text_encoder.fp32", "ar_step.fp16", "vae_decoder.bf16"):
        assert f" {graph} " in out


def test_a_bundle_of_another_model_is_refused(
    tiny_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = (tiny_export / "checkpoint" / "config.json").read_text()
    for path in (tiny_export / "checkpoint").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text(config.replace('"num_layers": 2', '"num_layers": 3'))
    assert main(["parity", str(tiny_export / "bundle"), "--checkpoint", str(tmp_path)]) == 2
    assert "ar.num_layers is 2 in the bundle and 3 in the checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-frames", "17"], "--num-frames needs a checkpoint: add --checkpoint PATH"),
        (["--checkpoint", "c", "--precision", "fp16"], "--precision and --keep are for recorded outputs"),
        (["--dit", "d"], "--vae, --text-encoder missing"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(
    tiny_export: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["parity", str(tiny_export / "bundle"), *arguments]) == 2
    assert message in capsys.readouterr().err
