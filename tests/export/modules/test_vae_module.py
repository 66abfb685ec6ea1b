"""The video autoencoder against diffusers' AutoencoderKL and against recorded outputs of Open-Sora's own code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from arlon_export.modules.vae import VideoVAE, frames_to_pixels, pixels_to_frames
from arlon_export.modules.vae_spatial import FrameAutoencoder, Moments
from arlon_export.modules.vae_temporal import CausalConv3d
from arlon_rt.config import VAEConfig
from arlon_rt.networks import decoder_frame_index, encoder_frame_index

REFERENCE = Path(__file__).resolve().parents[4] / "shared" / "reference"
SAME = 1e-5
"""Relative error between two fp32 implementations: sums in another order, measured 3e-6 at most."""

TINY = VAEConfig(
    block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=8, scaling_factor=0.5, filters=8, num_res_blocks=1,
    channel_multipliers=(1, 1, 2), temporal_downsample=(True, True),
)


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def tiny() -> VideoVAE:
    torch.manual_seed(0)
    return VideoVAE(TINY).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def recorded() -> tuple[VideoVAE, dict[str, torch.Tensor]]:
    if not REFERENCE.is_dir():
        pytest.skip(f"recorded outputs are absent: {REFERENCE}")
    spatial = json.loads((REFERENCE / "vae_2d_config.json").read_text())
    temporal = json.loads((REFERENCE / "vae_temporal_config.json").read_text())
    config = VAEConfig(
        block_out_channels=tuple(spatial["block_out_channels"]),
        **{k: spatial[k] for k in ("layers_per_block", "norm_num_groups", "scaling_factor")},
        **{k: temporal[k] for k in ("filters", "num_res_blocks", "latent_embed_dim", "embed_dim")},
        channel_multipliers=tuple(temporal["channel_multipliers"]),
        temporal_downsample=tuple(temporal["temporal_downsample"]),
    )
    vae = VideoVAE(config).eval().requires_grad_(False)
    vae.load_state_dict(load_file(REFERENCE / "vae.safetensors"))
    with np.load(REFERENCE / "vae_io.npz") as cases:
        return vae, {name: torch.from_numpy(cases[name]) for name in cases}


@pytest.mark.parametrize(("widths", "layers"), [((8, 16), 1), ((8, 8, 24), 2)])
def test_the_frame_stage_equals_diffusers_autoencoder_of_the_same_weights(widths: tuple[int, ...], layers: int) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    theirs = AutoencoderKL(
        block_out_channels=widths, layers_per_block=layers, norm_num_groups=8, latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * len(widths), up_block_types=["UpDecoderBlock2D"] * len(widths),
    ).eval()
    config = VAEConfig(
        block_out_channels=widths, layers_per_block=layers, norm_num_groups=8, scaling_factor=1.0, filters=8,
        num_res_blocks=1, channel_multipliers=(1,), temporal_downsample=(),
    )
    ours = FrameAutoencoder(config).eval()
    ours.load_state_dict(theirs.state_dict())
    frames, latents = torch.randn(2, 3, 16, 24), torch.randn(2, 4, 3, 5)
    with torch.no_grad():
        posterior = theirs.encode(frames).latent_dist
        moments = ours.encode(frames)
        assert relative_error(moments.mean, posterior.mean) < SAME
        assert relative_error(moments.logvar, posterior.logvar) < SAME
        assert relative_error(ours.decode(latents), theirs.decode(latents).sample) < SAME


def test_recorded_videos_decode_to_their_recorded_pixels(recorded: tuple[VideoVAE, dict[str, torch.Tensor]]) -> None:
    vae, cases = recorded
    names = [name.split(".")[0] for name in cases if name.endswith(".num_frames")]
    assert names
    for name in names:
        pixels = vae.decode(cases[f"{name}.z"], int(cases[f"{name}.num_frames"]))
        assert relative_error(pixels, cases[f"{name}.out"]) < SAME, name


def test_recorded_pixels_encode_to_their_recorded_latents(recorded: tuple[VideoVAE, dict[str, torch.Tensor]]) -> None:
    vae, cases = recorded
    names = [name.split(".")[0] for name in cases if name.endswith(".x")]
    assert names
    for name in names:
        latents = vae.encode(cases[f"{name}.x"].float())
        assert relative_error(latents, cases[f"{name}.z"]) < SAME, name


@pytest.mark.parametrize(("num_frames", "latents"), [(1, 1), (4, 1), (5, 2), (17, 5), (22, 7), (34, 10)])
def test_any_number_of_frames_survives_the_round_trip_in_shape(tiny: VideoVAE, num_frames: int, latents: int) -> None:
    encoded = tiny.encode(torch.zeros(2, 3, num_frames, 8, 4))
    assert encoded.shape == (2, 4, latents, 4, 2)
    assert tiny.decode(encoded, num_frames).shape == (2, 3, num_frames, 8, 4)


def test_chunks_do_not_see_each_other(tiny: VideoVAE) -> None:
    latents = torch.randn(1, 4, 10, 4, 4)
    torch.testing.assert_close(tiny.decode(latents, 34)[:, :, 17:], tiny.decode(latents[:, :, 5:], 17))


def test_latents_of_another_length_are_refused(tiny: VideoVAE) -> None:
    with pytest.raises(ValueError, match="latents has 4 frames; num_frames 17 needs 5"):
        tiny.decode(torch.zeros(1, 4, 4, 2, 2), 17)


def test_a_causal_convolution_sees_no_later_frame() -> None:
    convolution = CausalConv3d(2, 3, 3)
    x = torch.randn(1, 2, 6, 4, 4)
    changed = x.clone()
    changed[:, :, 4:] += 1.0
    with torch.no_grad():
        assert torch.equal(convolution(x)[:, :, :4], convolution(changed)[:, :, :4])


def test_the_uint8_graph_forms_agree_with_the_float_ones(tiny: VideoVAE) -> None:
    latents = torch.randn(1, 4, 2, 4, 4)
    frames = pixels_to_frames(tiny.decode_pixels(latents, torch.from_numpy(decoder_frame_index(5, TINY))))
    assert frames.shape == (5, 8, 8, 3)
    assert frames.dtype == torch.uint8
    pixels = tiny.decode(latents, 5)[0].transpose(0, 1).clamp(-1, 1)
    assert float((frames_to_pixels(frames) - pixels).abs().max()) <= 0.5 / 127.5 + 1e-6
    again = tiny.encode(frames_to_pixels(frames).transpose(0, 1)[None])
    index = torch.from_numpy(encoder_frame_index(5, TINY))
    torch.testing.assert_close(tiny.encode_pixels(frames_to_pixels(frames), index), again)


def test_normalisation_is_open_soras(tiny: VideoVAE) -> None:
    latents = torch.randn(1, 4, 1, 2, 2)
    expected = (latents[:, 3] - 0.98) / 3.06
    torch.testing.assert_close(tiny.normalise(latents)[:, 3], expected)
    torch.testing.assert_close(tiny.denormalise(tiny.normalise(latents)), latents)


def test_the_divergence_of_a_standard_normal_posterior_is_zero() -> None:
    assert float(Moments(torch.zeros(2, 3), torch.zeros(2, 3)).kl()) == 0.0
    assert float(Moments(torch.ones(2, 3), torch.zeros(2, 3)).kl()) == pytest.approx(0.5)


def test_training_under_bfloat16_reaches_every_weight() -> None:
    torch.manual_seed(0)
    vae = VideoVAE(TINY)
    pixels = torch.rand(2, 3, 5, 8, 8) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        moments = vae.encode_moments(pixels, torch.from_numpy(encoder_frame_index(5, TINY)), sample=True)
        decoded = vae.decode_chunk(vae.normalise(moments.sample()), torch.from_numpy(decoder_frame_index(5, TINY)))
    ((decoded - pixels).float().square().mean() + moments.kl()).backward()
    assert [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
