"""A bundle of a few kilobytes with the true contract: every graph of graphs.py as a handful of plain ONNX operators.

The networks mean nothing, but names, dtypes, axes, in-place caches, masks and the flow's update are the real ones, and
every output depends on its inputs, so that a pipeline can be tested end to end in milliseconds.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import sentencepiece

from arlon_rt.bundle import GraphEntry, write_manifest
from arlon_rt.config import (
    ARConfig,
    DiTConfig,
    InjectionConfig,
    ModelConfig,
    TextConfig,
    VAEConfig,
    VideoConfig,
    VQConfig,
)
from arlon_rt.graphs import graph_specs, signature
from tiny_graphs import graph_model

TINY = ModelConfig(
    text=TextConfig(vocab_size=64, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, max_length=60),
    ar=ARConfig(
        num_codes=16, hidden_size=16, num_layers=2, num_heads=2, ffn_size=16, text_dim=16, grid=(6, 2, 2),
        max_length=90, max_top_k=8,
    ),
    vq=VQConfig(num_codes=16, code_dim=4, stride=(4, 2, 2), channels=(8, 8), norm_groups=4, has_encoder=True),
    dit=DiTConfig(hidden_size=16, depth=2, num_heads=2, caption_channels=16, model_max_length=60),
    injection=InjectionConfig(layers=(0,)),
    vae=VAEConfig(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, scaling_factor=0.18215,
        filters=8, num_res_blocks=1, channel_multipliers=(1, 1, 2), temporal_downsample=(False, True, True),
    ),
    video=VideoConfig(height=32, width=32),
)
DEFAULTS = {"num_frames": 17, "num_inference_steps": 2, "guidance_scale": 3.0, "top_k": 4}
WORDS = "red green blue yellow circle square triangle moves stays still left right up down on a black gray background"


def write_tiny_bundle(folder: Path, *, model: ModelConfig = TINY, precisions: Sequence[str] = ("fp32", "fp16")) -> Path:
    """Write a bundle of ``model`` into ``folder`` (made if need be) and return the folder."""
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(tokenizer())
    graphs: dict[str, dict[str, GraphEntry]] = {}
    for name, spec in graph_specs(model).items():
        bias = np.linspace(-0.1, 0.1, 256, dtype=np.float16)
        (folder / "onnx" / f"{spec.network}.data").write_bytes(bias.tobytes())
        for precision in precisions:
            file = f"onnx/{name}.{precision}.onnx"
            onnx.save(graph_model(spec, model, precision), folder / file)
            graphs.setdefault(name, {})[precision] = GraphEntry(
                file=file, data=(f"onnx/{spec.network}.data",), flops=1, bytes=512,
                inputs=signature(spec.inputs, precision), outputs=signature(spec.outputs, precision),
            )
    write_manifest(folder, model=model, defaults=DEFAULTS, graphs=graphs, provenance={"trained_on": "nothing"})
    return folder


def baseline_model() -> ModelConfig:
    """The tiny model without token model, VQ-VAE and injection."""
    return ModelConfig(text=TINY.text, dit=TINY.dit, vae=TINY.vae, video=TINY.video)


def tokenizer() -> bytes:
    """A sentencepiece model of letters and syllables with T5's special ids: pad 0, ``</s>`` 1, unknown 2."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([WORDS] * 4), model_writer=model, vocab_size=48, model_type="unigram",
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, num_threads=1,
    )
    return model.getvalue()
