"""STDiT3 agrees with recordings of Open-Sora's own code, and injection leaves it alone while it is zero."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from arlon_export.modules.stdit3 import STDiT3
from arlon_rt.config import DiTConfig, InjectionConfig
from arlon_rt.networks import position_table, rotary_tables

REFERENCE = Path(__file__).resolve().parents[4] / "shared" / "reference"
CONFIG = DiTConfig(
    hidden_size=32, depth=3, num_heads=4, caption_channels=12, model_max_length=10, input_sq_size=64, rope_theta=100.0
)
INJECTION = InjectionConfig(layers=(0, 2))
XL = DiTConfig(hidden_size=1152, depth=28, num_heads=16, caption_channels=4096, model_max_length=300)


def seeded(config: DiTConfig = CONFIG, injection: InjectionConfig | None = None) -> STDiT3:
    """A module whose every weight is random, the zero-initialised ones included."""
    torch.manual_seed(0)
    module = STDiT3(config, injection).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.15)
    return module


def velocity_inputs(batch: int = 2, frames: int = 4, height: int = 5, width: int = 7) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "latents": torch.randn(batch, 4, frames, height, width, generator=generator),
        "timestep": torch.tensor([900.0, 250.0])[:batch],
        "text": torch.randn(batch, 6, 12, generator=generator),
        "text_mask": torch.arange(6)[None] < torch.tensor([4, 6])[:batch, None],
        "frame_mask": torch.ones(batch, frames, dtype=torch.bool),
        "fps": torch.full((batch,), 24.0),
        "height": torch.full((batch,), 40.0),
        "width": torch.full((batch,), 56.0),
        "use_null": torch.zeros(batch, dtype=torch.bool),
    }


def run_velocity(module: STDiT3, features: Tensor | None = None, **changed: Tensor) -> Tensor:
    with torch.no_grad():
        return module.velocity(**{**velocity_inputs(), **changed}, features=features)


def step_inputs(module: STDiT3, inputs: dict[str, Tensor], weights: tuple[float, ...]) -> dict[str, Tensor]:
    """The dit graph's inputs for row 0 of ``inputs``: its text, then (with two weights) the null caption."""
    _, _, frames, height, width = inputs["latents"].shape
    rows = len(weights)
    position = position_table((height + 1) // 2, (width + 1) // 2, 32, height=40, width=56, input_sq_size=64)
    cos, sin = rotary_tables(frames, 8, 100.0)
    text = inputs["text"][:1].expand(rows, -1, -1)
    with torch.no_grad():
        caption_kv = module.caption_kv(text, torch.arange(rows) > 0)
    return {
        "latents": inputs["latents"][:1], "timestep": inputs["timestep"][:1], "step_size": torch.tensor([0.25]),
        "guidance_weights": torch.tensor(weights), "frame_mask": inputs["frame_mask"][0],
        "noise": torch.zeros_like(inputs["latents"][:1]), "noise_mask": torch.zeros(frames, dtype=torch.bool),
        "position": torch.from_numpy(position),
        "rotary_cos": torch.from_numpy(cos), "rotary_sin": torch.from_numpy(sin),
        "fps": inputs["fps"][:1], "caption_kv": caption_kv, "text_mask": inputs["text_mask"][:1].expand(rows, -1),
    }


def run_step(module: STDiT3, inputs: dict[str, Tensor], **changed: Tensor) -> Tensor:
    with torch.no_grad():
        return module.step(**{**inputs, **changed})


def recorded_cases() -> list[tuple[str, int]]:
    files = sorted(REFERENCE.glob("stdit3_*_io.npz"))
    return [
        (path.name.removesuffix("_io.npz"), int(name[:-2]))
        for path in files for name in np.load(path).files if name.endswith(".x")
    ]


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the recordings of Open-Sora (../shared/reference) are not there")
@pytest.mark.parametrize(("name", "case"), recorded_cases())
def test_velocity_is_that_of_open_sora(name: str, case: int) -> None:
    module = STDiT3(DiTConfig(**json.loads((REFERENCE / f"{name}.json").read_text()))).eval()
    module.load_state_dict(load_file(REFERENCE / f"{name}.safetensors"))
    with np.load(REFERENCE / f"{name}_io.npz") as recorded:
        names = [key for key in recorded.files if key.startswith(f"{case}.")]
        arrays = {key.partition(".")[2]: torch.from_numpy(recorded[key]) for key in names}
    latents = arrays["x"]
    frame_mask = arrays.get("x_mask", torch.ones(latents.shape[0], latents.shape[2], dtype=torch.bool))
    with torch.no_grad():
        out = module.velocity(
            latents, arrays["timestep"], arrays["y"][:, 0], arrays["mask"].bool(), frame_mask, arrays["fps"],
            arrays["height"], arrays["width"], None, torch.zeros(len(latents), dtype=torch.bool),
        )
    active = frame_mask[:, None, :, None, None]  # kept frames are restored by the sampler, whatever is predicted there
    error = ((out - arrays["out"]) * active).norm() / (arrays["out"] * active).norm()
    assert error < 1e-5


def test_the_xl_2_configuration_has_the_published_number_of_parameters_and_keys() -> None:
    with torch.device("meta"):
        module = STDiT3(XL)
    assert sum(parameter.numel() for parameter in module.parameters()) == 1_207_643_972
    assert sum(buffer.numel() for buffer in module.buffers()) == 1_228_800
    assert len(module.state_dict()) == 973


def test_untrained_injection_leaves_the_velocity_bit_for_bit_the_same() -> None:
    plain = seeded()
    injected = STDiT3(CONFIG, INJECTION).eval()
    missing, unexpected = injected.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert all(key.startswith("injection.") for key in missing)
    with torch.no_grad():
        features = injected.semantic(torch.randn(2, 4, 4, 5, 7))
    assert torch.equal(run_velocity(injected, features), run_velocity(plain))


def test_trained_injection_steers_the_velocity_by_the_coarse_latents() -> None:
    module = seeded(injection=INJECTION)
    with torch.no_grad():
        features = module.semantic(torch.randn(2, 4, 4, 5, 7))
    assert features.shape == (2, 2, 4, 12, 96)
    assert not torch.equal(run_velocity(module, features), run_velocity(module))


def test_injection_follows_its_formula() -> None:
    module = seeded(injection=dataclasses.replace(INJECTION, layers=(1,)))
    assert module.injection is not None
    coarse = torch.randn(1, 4, 2, 4, 4)
    adapter, modulation = module.injection.adapters[0], module.injection.modulations[0]
    with torch.no_grad():
        first = torch.nn.functional.conv3d(
            coarse, module.injection.patch_proj.weight, module.injection.patch_proj.bias, stride=(1, 2, 2)
        ).permute(0, 2, 3, 4, 1).reshape(1, 2, 4, 32)
        hidden = torch.nn.functional.gelu(first @ adapter.fc1.weight.T + adapter.fc1.bias, approximate="tanh")
        second = first + hidden @ adapter.fc2.weight.T + adapter.fc2.bias
        torch.testing.assert_close(module.semantic(coarse)[0], second @ modulation.weight.T + modulation.bias)


def test_semantic_features_without_injection_are_refused() -> None:
    with pytest.raises(ValueError, match="InjectionConfig"):
        STDiT3(CONFIG).semantic(torch.zeros(1, 4, 1, 2, 2))


@pytest.mark.parametrize("layers", [(3,), (-1,), (1, 0), (1, 1)])
def test_injected_layers_that_do_not_exist_or_repeat_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"injection\.layers"):
        STDiT3(CONFIG, InjectionConfig(layers=layers))


def test_rows_of_a_batch_do_not_see_each_other() -> None:
    module, inputs = seeded(), velocity_inputs()
    inputs["frame_mask"] = torch.tensor([[False, True, True, True], [True, False, True, False]])
    together = run_velocity(module, **inputs)
    for row in range(2):
        alone = run_velocity(module, **{name: value[row : row + 1] for name, value in inputs.items()})
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)


def test_masked_text_tokens_are_not_read() -> None:
    module, inputs = seeded(), velocity_inputs()
    other = torch.where(inputs["text_mask"][..., None], inputs["text"], 9.0)
    torch.testing.assert_close(run_velocity(module, text=other), run_velocity(module), rtol=0, atol=1e-6)


def test_null_rows_do_not_read_their_text() -> None:
    module, inputs = seeded(), velocity_inputs()
    null = torch.ones(2, dtype=torch.bool)
    other = inputs["text"] + 1
    assert torch.equal(run_velocity(module, use_null=null), run_velocity(module, use_null=null, text=other))


def test_rows_of_different_sizes_in_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="share one size"):
        run_velocity(seeded(), height=torch.tensor([40.0, 48.0]))


def test_a_step_is_the_velocity_times_the_step_size() -> None:
    module, inputs = seeded(), velocity_inputs()
    out = run_step(module, step_inputs(module, inputs, (1.0,)))
    expected = inputs["latents"][:1] + 0.25 * run_velocity(module)[:1, :4]
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


def test_guidance_sums_the_weighted_velocities_of_text_and_null_caption() -> None:
    module, inputs = seeded(), velocity_inputs()
    out = run_step(module, step_inputs(module, inputs, (7.0, -6.0)))
    with_text = run_velocity(module)[:1, :4]
    without = run_velocity(module, use_null=torch.ones(2, dtype=torch.bool))[:1, :4]
    torch.testing.assert_close(out, inputs["latents"][:1] + 0.25 * (7 * with_text - 6 * without), rtol=0, atol=1e-4)


def test_one_row_of_features_serves_both_guidance_rows() -> None:
    module, inputs = seeded(injection=INJECTION), velocity_inputs()
    with torch.no_grad():
        features = module.semantic(torch.randn(1, 4, 4, 5, 7))
    guided = run_step(module, step_inputs(module, inputs, (1.0, 0.0)), features=features)
    alone = run_step(module, step_inputs(module, inputs, (1.0,)), features=features)
    torch.testing.assert_close(guided, alone, rtol=0, atol=1e-5)


def test_kept_frames_pass_through_bit_for_bit_and_are_seen_as_clean() -> None:
    module, inputs = seeded(), velocity_inputs()
    inputs["frame_mask"] = torch.tensor([[False, False, True, True]] * 2)
    graph_inputs = step_inputs(module, inputs, (7.0, -6.0))
    out = run_step(module, graph_inputs)
    assert torch.equal(out[:, :, :2], inputs["latents"][:1, :, :2])
    all_new = run_step(module, graph_inputs, frame_mask=torch.ones(4, dtype=torch.bool))
    assert not torch.allclose(out[:, :, 2:], all_new[:, :, 2:], atol=1e-4)


def test_an_all_true_mask_is_no_mask_bit_for_bit() -> None:
    """Of the two times a row has, 0 for kept frames and its own, the first is not read at all."""
    module = seeded()
    expected = run_velocity(module)
    usual = module.t_embedder.forward

    def kept_frames_are_poison(values: Tensor) -> Tensor:
        return usual(values).masked_fill((values == 0)[:, None], float("nan"))

    module.t_embedder.forward = kept_frames_are_poison
    assert torch.equal(run_velocity(module), expected)
    some_kept = torch.tensor([[False, True, True, True]] * 2)
    assert run_velocity(module, frame_mask=some_kept).isnan().any()


def test_newly_active_frames_are_noised_to_the_timestep_first() -> None:
    module, inputs = seeded(), velocity_inputs()
    graph_inputs = step_inputs(module, inputs, (1.0,))
    noise, noise_mask = torch.randn(1, 4, 4, 5, 7), torch.tensor([False, True, False, True])
    level = 0.9 * noise_mask[None, None, :, None, None]
    noised_outside = run_step(module, graph_inputs, latents=(1 - level) * graph_inputs["latents"] + level * noise)
    inside = run_step(module, graph_inputs, noise=noise, noise_mask=noise_mask)
    torch.testing.assert_close(inside, noised_outside, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_survives_a_residual_stream_beyond_float16(dtype: torch.dtype) -> None:
    """Every block adds values of up to 8e4 to the stream, a token's own among them; float16 ends at 65504."""
    module = seeded()
    with torch.no_grad():
        for block in [*module.spatial_blocks, *module.temporal_blocks]:
            block.cross_attn.proj.bias.mul_(1e5)
            block.mlp.fc2.weight.mul_(1e4)
            block.cross_attn.q_linear.weight.mul_(1e-5)  # queries read the stream as it is
    exact = run_velocity(module)
    half = {name: value.to(dtype) if value.is_floating_point() and name in ("latents", "text") else value
            for name, value in velocity_inputs().items()}
    rounded = run_velocity(module.to(dtype), **half)
    assert (rounded - exact).norm() / exact.norm() < (0.01 if dtype == torch.float16 else 0.1)


def test_training_works_under_bfloat16_autocast_and_reaches_every_weight() -> None:
    module = seeded(injection=INJECTION).train()
    inputs = velocity_inputs()
    inputs["frame_mask"][0, 0] = False
    inputs["use_null"][0] = True
    with torch.autocast("cpu", torch.bfloat16):
        out = module.velocity(**inputs, features=module.semantic(torch.randn(2, 4, 4, 5, 7)))
    assert out.dtype == torch.float32
    out.square().mean().backward()
    assert [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None] == []
