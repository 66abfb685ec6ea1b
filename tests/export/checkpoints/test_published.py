"""Published checkpoints: configuration from config.json, shapes and arlon.json; every fault named with its way out."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from arlon_export.checkpoints.checkpoint import Checkpoint, build_module, expected_shapes
from arlon_export.checkpoints.published import read_published
from arlon_export.checkpoints.published_config import dit_config, ratio, text_config, vae_config
from arlon_export.checkpoints.state_dict import StateDict, StoredTensor
from arlon_rt.bundle import Bundle
from arlon_rt.cli import main
from arlon_rt.config import (
    DiTConfig,
    InjectionConfig,
    VAEConfig,
    VideoConfig,
)
from arlon_rt.errors import BundleError, BundleNotFoundError
from published_files import AR, BASELINE, DIT_CONFIG, GUIDED, T5_CONFIG, VQ, Published, State, command


def error_of(read: Callable[[], Checkpoint]) -> str:
    with pytest.raises(BundleError) as caught:
        read()
    return str(caught.value)


def assert_weights(checkpoint: Checkpoint, states: dict[str, State]) -> None:
    for network in checkpoint.weights:
        expected = states[network] | (states["injection"] if checkpoint.model.injection and network == "dit" else {})
        loaded = checkpoint.module(network).state_dict()
        assert loaded.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=0)


def test_the_baseline_is_read_off_shapes_alone(published: Published) -> None:
    checkpoint = published.read()
    assert checkpoint.model == BASELINE
    assert set(checkpoint.weights) == {"text", "dit", "vae"}
    assert checkpoint.defaults == {"num_inference_steps": 30, "guidance_scale": 7.0}
    assert checkpoint.tokenizer == published.folder / "text" / "spiece.model"
    assert_weights(checkpoint, published.states)


def test_add_ons_are_read_off_shapes_and_the_specs_assumptions(published: Published) -> None:
    checkpoint = published.read_guided()
    assert checkpoint.model == GUIDED
    assert checkpoint.defaults == {"num_inference_steps": 10, "guidance_scale": 7.0}
    assert_weights(checkpoint, published.states)


def test_published_config_files_say_the_same(published: Published) -> None:
    published.config("dit", DIT_CONFIG)
    published.config("text", T5_CONFIG)
    published.config("vae", {"model_type": "VideoAutoencoder", "micro_frame_size": None, "scale": [9, 9, 9, 9]})
    assert published.read().model == BASELINE


def test_the_full_size_has_the_published_numbers_of_parameters_and_is_read_off_its_shapes(tmp_path: Path) -> None:
    model = dataclasses.replace(
        BASELINE,
        text=dataclasses.replace(
            BASELINE.text, vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
            max_length=300,
        ),
        dit=DiTConfig(hidden_size=1152, depth=28, num_heads=16, caption_channels=4096, model_max_length=300),
        vae=VAEConfig(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32, scaling_factor=0.18215,
            filters=128, num_res_blocks=4, channel_multipliers=(1, 2, 2, 4), temporal_downsample=(False, True, True),
        ),
    )
    buffers = ("y_embedder.y_embedding", "scale", "shift")
    shapes = {network: expected_shapes(model, network) for network in ("dit", "vae", "text")}
    count = {n: sum(math.prod(s) for key, s in own.items() if key not in buffers) for n, own in shapes.items()}
    assert len(shapes["dit"]) == 973
    assert count == {"dit": 1_207_643_972, "vae": 393_341_007, "text": 4_762_310_656}

    def stored(network: str) -> StateDict:
        own = {n: s for n, s in shapes[network].items() if n not in buffers[1:]}
        return {n: StoredTensor(n, s, torch.bfloat16, lambda: pytest.fail("a tensor was read")) for n, s in own.items()}

    path = tmp_path / "weights.safetensors"
    path.touch()
    assert dit_config(path, stored("dit"))[0] == model.dit
    assert vae_config(path, stored("vae"))[0] == model.vae
    assert text_config(path, stored("text"), max_length=300)[0] == model.text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_read_and_loaded_in_fp32(published: Published, dtype: torch.dtype) -> None:
    published.save("dit", lambda state: state.update({n: t.to(dtype) for n, t in state.items()}))
    checkpoint = published.read()
    assert {t.dtype for t in checkpoint.weights["dit"].values()} == {dtype}
    weight = published.states["dit"]["t_block.1.weight"]
    loaded = checkpoint.module("dit").get_parameter("t_block.1.weight")
    torch.testing.assert_close(loaded.detach(), weight.to(dtype).float(), rtol=0, atol=0)


def test_exact_tables_a_video_and_a_transformer_without_sigma_can_be_had(published: Published) -> None:
    def halve(state: State) -> None:
        state.update({n: state[n][:16] for n in ("final_layer.linear.weight", "final_layer.linear.bias")})

    published.save("dit", halve)
    published.config("dit", {**DIT_CONFIG, "pred_sigma": False})
    video = VideoConfig(height=256, width=256)
    model = published.read(exact=True, video=video).model
    assert (model.dit.precision_tables, model.dit.out_channels, model.video) == ("exact", 4, video)


def test_scale_and_shift_come_from_the_file_then_its_config_then_the_spec(published: Published) -> None:
    published.save("vae", lambda state: state.update(scale=torch.full((1, 4, 1, 1, 1), 2.0)))
    assert published.read().model.vae.scale == (2.0,) * 4
    published.save("vae", lambda state: (state.pop("scale"), state.pop("shift")))
    published.config("vae", {"scale": [3, 3, 3, 3]})
    checkpoint = published.read()
    assert (checkpoint.model.vae.scale, checkpoint.model.vae.shift) == ((3.0,) * 4, (-0.10, 0.34, 0.27, 0.98))
    assert checkpoint.module("vae").get_buffer("scale").flatten().tolist() == [3.0] * 4


def test_a_whole_t5_loses_its_decoder_by_name_and_may_hold_the_embedding_under_its_alias(published: Published) -> None:
    def whole(state: State) -> None:
        state["encoder.embed_tokens.weight"] = state.pop("shared.weight")
        state.update({"lm_head.weight": torch.zeros(2), "decoder.block.0.weight": torch.zeros(2)})

    published.save("text", whole)
    checkpoint = published.read()
    assert checkpoint.provenance["left_out"] == {"text_encoder": ["decoder.* (1 tensors)", "lm_head.weight"]}
    assert_weights(checkpoint, published.states)
    published.save("text", lambda s: s.update({"encoder.embed_tokens.weight": s["shared.weight"].clone()}))
    assert published.read().provenance["left_out"] == {"text_encoder": ["encoder.embed_tokens.weight"]}
    published.save("text", lambda state: state.update(cross=torch.zeros(3)))
    assert "1 unknown:\n  cross (3,)" in error_of(published.read)


def test_provenance_names_files_without_their_folders(published: Published) -> None:
    sources = published.read_guided().provenance["sources"]
    size = (published.folder / "vae" / "model.safetensors").stat().st_size
    assert sources["vae"] == {"model.safetensors": size}
    assert set(sources) == {"dit", "vae", "text_encoder", "ar", "vq", "injection"}
    assert str(published.folder) not in json.dumps(sources)


def test_adapters_may_carry_the_prefix_or_not(published: Published) -> None:
    prefixed = set(published.read_guided().weights["dit"])
    published.save("injection", lambda s: [s.__setitem__(n.removeprefix("injection."), s.pop(n)) for n in list(s)])
    assert set(published.read_guided().weights["dit"]) == prefixed


def test_a_key_in_both_transformer_and_adapters_is_refused(published: Published) -> None:
    published.save("injection", lambda state: state.update({"rope.freqs": torch.zeros(4)}))
    message = error_of(published.read_guided)
    assert re.search(r"injection\.safetensors has 1 keys a second time: rope\.freqs \(also in .*dit\)", message)


def test_arlon_json_states_what_shapes_cannot_say(published: Published) -> None:
    published.assume(
        ar={"num_heads": 8, "max_length": 99, "max_top_k": 4, "rope_theta": 500, "position_of": "self"},
        vq={"stride": [2, 4, 4], "norm_groups": 16}, injection={"layers": [1]},
        defaults={"top_k": 3, "num_inference_steps": 5},
    )
    checkpoint = published.read_guided()
    assert checkpoint.model.ar == dataclasses.replace(
        AR, num_heads=8, max_length=99, max_top_k=4, rope_theta=500.0, position_of="self"
    )
    assert checkpoint.model.vq == dataclasses.replace(VQ, stride=(2, 4, 4), norm_groups=16)
    assert checkpoint.model.injection == InjectionConfig(layers=(1,), adapter_ratio=1.5)
    assert checkpoint.defaults == {"num_inference_steps": 5, "guidance_scale": 7.0, "top_k": 3}


@pytest.mark.parametrize(("sections", "message"), [
    ({"ar": {"heads": 4}}, r"arlon\.json\.ar\.heads is not a field this version knows \(num_heads, max_length"),
    ({"t5": {}}, r"arlon\.json\.t5 is not a field this version knows \(ar, vq, injection, defaults\)"),
    ({"vq": {"stride": 4}}, r"arlon\.json\.vq\.stride is 4; a list is expected"),
    ({"vq": {"stride": [16, 8, 8]}}, r"from the configuration of vq: vq\.channels has 3 stages; stride 16 needs 4"),
    ({"vq": {"norm_groups": 5}}, "from the configuration of vq: num_channels"),
    ({"ar": {"num_heads": 5}}, r"ar\.hidden_size 32 is no multiple of num_heads 5(.|\n)*'ar' of arlon\.json"),
    ({"injection": {"layers": [0, 1]}}, r"layers names 2 block pairs, but .*injection\.safetensors has 1 adapters"),
    ({"injection": {"layers": [1, 0]}}, r"injection\.layers is \[1, 0\]; they must rise"),
    ({"injection": {"layers": [7]}}, r"injection\.layers names 7; dit\.depth 2 ends at 1"),
    ({"defaults": {"top_p": 2.0}}, r"arlon\.json: defaults: top_p is 2"),
])
def test_a_wrong_field_of_arlon_json_is_named(published: Published, sections: Any, message: str) -> None:
    published.assume(**sections)
    assert re.search(message, error_of(published.read_guided))


def test_sections_may_stand_in_several_folders_but_once(published: Published) -> None:
    published.assume(ar={"num_heads": 8})
    paths = published.paths()
    elsewhere = paths["vq"].rename(published.folder / "vq.safetensors")
    (published.folder / "arlon.json").write_text('{"vq": {"stride": [2, 2, 2]}}')

    def read() -> Checkpoint:
        return published.read(ar=paths["ar"], vq=elsewhere, injection=paths["injection"])

    model = read().model
    assert model.ar
    assert model.vq
    assert (model.ar.num_heads, model.vq.stride) == (8, (2, 2, 2))
    (published.folder / "arlon.json").write_text('{"ar": {}}')
    assert "ar is stated in another arlon.json, too; keep one" in error_of(read)


def test_a_part_of_the_add_ons_is_refused(published: Published) -> None:
    assert "no weights are named for ar and injection" in error_of(lambda: published.read(vq=published.paths()["vq"]))


def test_faults_of_all_networks_are_in_one_error(published: Published) -> None:
    """A renamed key, a transposed tensor, an extra one and one of integers, in two files."""
    def spoil(state: State) -> None:
        state["spatial_blocks.1.attn.qkv_.weight"] = state.pop("spatial_blocks.1.attn.qkv.weight")
        state["temporal_blocks.0.mlp.fc1.weight"] = state["temporal_blocks.0.mlp.fc1.weight"].T
        state["surplus"] = torch.zeros(9)

    published.save("dit", spoil)
    published.save("text", lambda s: s.update({"shared.weight": s["shared.weight"].int()}))
    message = error_of(published.read)
    for expected in (
        f"{published.folder / 'dit'} does not fit the configuration",
        "spatial_blocks.1.attn.qkv.weight (48, 16), perhaps renamed: spatial_blocks.1.attn.qkv_.weight is unknown",
        "2 unknown:", "  surplus (9,)",
        "temporal_blocks.0.mlp.fc1.weight is (16, 64), expected (64, 16), transposed",
        "sizes were read from x_embedder.proj.bias (16,), x_embedder.proj.weight (16, 4, 1, 2, 2)",
        f"{published.folder / 'text'} does not fit the configuration", "shared.weight is int32",
    ):
        assert expected in message


@pytest.mark.parametrize("stated", [False, True], ids=["from shapes", "from config.json"])
def test_a_renamed_key_that_sizes_are_read_off_is_named(published: Published, stated: bool) -> None:
    published.save("dit", lambda s: s.update({"x_embedder.bias": s.pop("x_embedder.proj.bias")}))
    if stated:
        published.config("dit", DIT_CONFIG)
        expected = "x_embedder.proj.bias (16,), perhaps renamed: x_embedder.bias is unknown"
    else:
        expected = "has no x_embedder.proj.bias; sizes are read from its shape; caption_channels, depth, hidden_size"
    assert expected in error_of(published.read)


def test_a_transposed_tensor_that_sizes_are_read_off_is_named(published: Published) -> None:
    published.save("dit", lambda s: s.update({"x_embedder.proj.weight": s["x_embedder.proj.weight"].transpose(0, 1)}))
    message = error_of(published.read)
    assert "dit.in_channels is 16, vae.latent_embed_dim 4" in message
    assert "x_embedder.proj.weight (4, 16, 1, 2, 2)" in message
    published.config("dit", DIT_CONFIG)
    message = error_of(published.read)
    assert "x_embedder.proj.weight is (4, 16, 1, 2, 2), expected (16, 4, 1, 2, 2), transposed" in message


def test_a_config_that_the_tensors_contradict_is_named_field_by_field(published: Published) -> None:
    published.config("dit", {**DIT_CONFIG, "hidden_size": 24, "depth": 3})
    message = error_of(published.read)
    assert "config.json states hidden_size 24 (the tensors: 16), depth 3 (the tensors: 2)" in message
    assert "more" in message


@pytest.mark.parametrize(("change", "message"), [
    ({"qk_norm": False}, r"config\.json: qk_norm is False; only True is supported"),
    ({"num_experts": 8}, r"config\.json\.num_experts is not a field"),
    ({"depth": "two"}, r"config\.json\.depth is 'two'"), ({"in_channels": None}, r"config\.json\.in_channels is None"),
    ({"patch_size": [2, 2, 2]}, r"patch_size is \(2, 2, 2\); it must start with 1"),
])
def test_a_field_of_the_transformers_config_that_cannot_be_used_is_named(
    published: Published, change: dict[str, Any], message: str
) -> None:
    published.config("dit", {**DIT_CONFIG, **change})
    assert re.search(message, error_of(published.read))


def test_a_t5_of_another_width_is_told_with_both_files(published: Published) -> None:
    model = dataclasses.replace(BASELINE, text=dataclasses.replace(BASELINE.text, d_model=8))
    published.states = {**published.states, "text": build_module(model, "text").state_dict()}
    published.save("text")
    message = error_of(published.read)
    assert re.search(r"text: d_model is 8, but caption_channels of .*dit is 16; take the T5", message)


def test_a_t5_without_gates_is_refused(published: Published) -> None:
    key = "encoder.block.0.layer.1.DenseReluDense.wi"
    published.config("text", {**T5_CONFIG, "feed_forward_proj": "relu"})
    assert "no T5 v1.1 with gated GELU (feed_forward_proj is 'relu' in config.json)" in error_of(published.read)
    published.config("text", T5_CONFIG)
    published.save("text", lambda state: state.update({f"{key}.weight": state.pop(f"{key}_0.weight")}))
    assert f"no T5 v1.1 with gated GELU (it has {key}.weight)" in error_of(published.read)


def test_networks_that_were_mixed_up_name_what_is_missing(published: Published) -> None:
    paths = published.paths()
    message = error_of(lambda: read_published(dit=paths["vae"], vae=paths["dit"], text_encoder=paths["text"]))
    assert re.search(r"vae has no x_embedder\.proj\.bias.*can be stated in .*vae/config\.json instead", message)


@pytest.mark.parametrize("place", ["text/spiece.model", "text/tokenizer/spiece.model", "tokenizer/spiece.model"])
def test_the_tokenizer_is_found_where_repositories_keep_it(published: Published, place: str) -> None:
    original = published.folder / "text" / "spiece.model"
    target = published.folder / place
    target.parent.mkdir(exist_ok=True)
    original.rename(target)
    tokenizer = published.read().tokenizer
    assert tokenizer
    assert tokenizer.samefile(target)


def test_a_missing_tokenizer_names_the_places_looked_at(published: Published) -> None:
    (published.folder / "text" / "spiece.model").unlink()
    looked_at = r"neither .*text/spiece\.model, nor .*text/tokenizer/spiece\.model, nor .*\d/tokenizer/spiece\.model;"
    with pytest.raises(BundleNotFoundError, match=looked_at):
        published.read()


def test_a_single_file_does_not_take_the_config_of_its_neighbours(published: Published) -> None:
    published.config("dit", {"d_model": 1})
    folder = published.folder / "dit"
    lone = (folder / "model.safetensors").rename(folder / "STDiT3.safetensors")
    paths = published.paths()
    assert read_published(dit=lone, vae=paths["vae"], text_encoder=paths["text"]).model == BASELINE


@pytest.mark.parametrize(("part", "whole"), [(1, 3), (15, 11), (51, 21), (4608, 1152), (7, 16)])
def test_a_ratio_gives_the_width_back(part: int, whole: int) -> None:
    assert int(whole * ratio(part, whole)) == part
    assert ratio(part, whole) == pytest.approx(part / whole)


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_exports_published_weights_as_a_baseline_bundle(published: Published) -> None:
    assert main(command(published, "--precision", "fp32", "--only", "caption")) == 0
    bundle = Bundle.open(published.folder / "my.bundle")
    assert bundle.is_baseline
    assert bundle.model.dit.precision_tables == "bf16"
    assert set(bundle.manifest.graphs) == {"caption"}


def test_the_command_refuses_spoilt_weights_and_leaves_no_bundle(
    published: Published, capsys: pytest.CaptureFixture[str]
) -> None:
    published.save("dit", lambda state: state.pop("final_layer.linear.bias"))
    assert main(command(published)) == 2
    assert "final_layer.linear.bias" in capsys.readouterr().err
    assert not (published.folder / "my.bundle").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dit", "a"], "--vae, --text-encoder missing"),
        (["folder", "--vae", "b", "--exact"], "--vae, --exact names weights too"),
    ],
)
def test_what_to_export_is_said_once_and_wholly(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *arguments, "-o", "never"]) == 2
    assert message in capsys.readouterr().err
