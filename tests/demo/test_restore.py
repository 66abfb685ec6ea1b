"""The shipped bundle's weights as checkpoints: what training goes on from is what ships."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from arlon_export.modules.ar import TokenModel
from arlon_export.modules.stdit3 import STDiT3
from arlon_export.modules.vae import VideoVAE
from arlon_rt.backends import open_session
from arlon_rt.bundle import Bundle, demo_bundle_path
from demo.config import ar_config, dit_config, injection_config, vae_config
from demo.latents import encode_clip
from demo.restore import NETWORK_OF, main
from demo.scene import sample_scene
from demo.train_text import load_text_encoder
from demo.training import load_averaged
from demo.world import render

BUNDLE = Bundle.open(demo_bundle_path())


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("restored") / "checkpoints"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["restore", "--out", str(folder)])
        main()
    return folder


def test_the_autoencoder_makes_the_latents_of_the_bundle_before_they_are_normalised(out: Path):
    vae = load_averaged(out, "autoencoder", VideoVAE(vae_config()), "cpu")
    frames = render(sample_scene(np.random.default_rng(4)), 136)
    latents = encode_clip(vae, frames, "cpu")[None, :, :5].astype(np.float32)
    c = BUNDLE.model.vae
    shift, scale = (np.array(v, np.float32).reshape(1, -1, 1, 1, 1) for v in (c.shift, c.scale))
    session = open_session(BUNDLE, "vae_encoder", threads=1)
    index = np.array([0] * 3 + list(range(1, 18)))
    expected = session.run({"frames": frames[:17], "frame_index": index})["latents"]
    session.close()
    assert np.abs((latents - shift) / scale - expected).mean() < 0.03


def test_the_text_encoder_and_the_transformer_are_those_of_the_bundle(out: Path):
    tokenizer, encoder = load_text_encoder(out, "cpu")
    dit = load_averaged(out, "dit", STDiT3(dit_config(), injection_config()), "cpu")
    ids = torch.tensor([tokenizer.encode("a red circle moves right", 32)])
    with torch.no_grad():
        hidden = encoder(ids, torch.ones_like(ids, dtype=torch.bool))
        kv = dit.caption_kv(hidden, torch.tensor([False]))
    sessions = {name: open_session(BUNDLE, name, threads=1) for name in ("text_encoder", "caption")}
    feed = {"input_ids": ids.numpy(), "attention_mask": np.ones(ids.shape, bool)}
    stored = sessions["text_encoder"].run(feed)["last_hidden_state"]
    np.testing.assert_allclose(hidden.numpy(), stored, atol=1e-4)
    caption = sessions["caption"].run({"last_hidden_state": stored, "use_null": np.array([False])})["caption_kv"]
    np.testing.assert_allclose(kv.numpy(), caption, atol=1e-4)
    for session in sessions.values():
        session.close()


def test_training_goes_on_at_the_step_that_the_card_tells(out: Path):
    load_averaged(out, "ar", TokenModel(ar_config()), "cpu")
    for stage in NETWORK_OF:
        saved = torch.load(out / f"{stage}.pt", weights_only=True)
        assert saved["step"] == BUNDLE.manifest.provenance["stages"][stage]["step"]
        assert "optimizers" not in saved


def test_checkpoints_that_are_there_are_not_overwritten(out: Path, monkeypatch: pytest.MonkeyPatch):
    before = (out / "ar.pt").read_bytes()
    monkeypatch.setattr(sys, "argv", ["restore", "--out", str(out)])
    with pytest.raises(SystemExit, match="move it away"):
        main()
    assert (out / "ar.pt").read_bytes() == before
