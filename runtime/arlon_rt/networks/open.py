"""The networks of one bundle, opened: the one place that knows which of them it has and in which precision."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from arlon_rt.backends import Session, open_sessions
from arlon_rt.bundle import Bundle
from arlon_rt.graphs import graph_specs, latent_length
from arlon_rt.memory import Budget
from arlon_rt.networks.ar import TokenModel
from arlon_rt.networks.dit import Denoiser
from arlon_rt.networks.text import TextEncoder, Tokenizer
from arlon_rt.networks.vae import VAEDecoder, VAEEncoder
from arlon_rt.networks.vq import VQDecoder, VQEncoder


@dataclass(frozen=True, kw_only=True)
class Networks:
    """Every network; `token_model`, `vq_decoder` and `vq_encoder` are ``None`` where the bundle has none."""

    text_encoder: TextEncoder
    token_model: TokenModel | None
    vq_decoder: VQDecoder | None
    vq_encoder: VQEncoder | None
    denoiser: Denoiser
    vae_encoder: VAEEncoder
    vae_decoder: VAEDecoder
    sessions: Mapping[str, Session]
    precision: str

    @classmethod
    def open(
        cls, bundle: Bundle, *, backend: str, device: str, precision: str | None, threads: int | None,
        trust_engines: bool = False, budget: Budget | None = None,
    ) -> Self:
        """Open every graph of a bundle; when one fails, those opened before it are closed."""
        precision = precision or usual_precision(bundle, device)
        sessions = open_sessions(
            bundle, graph_specs(bundle.model), backend=backend, device=device, precision=precision, threads=threads,
            trust_engines=trust_engines, budget=budget,
        )
        with ExitStack() as on_error:
            for session in sessions.values():
                on_error.callback(session.close)
            networks = cls.of(bundle, sessions, precision)
            on_error.pop_all()
        return networks

    @classmethod
    def of(cls, bundle: Bundle, sessions: Mapping[str, Session], precision: str) -> Self:
        """From open sessions, one for each graph."""
        model = bundle.model
        return cls(
            text_encoder=TextEncoder(
                sessions["text_encoder"], Tokenizer(bundle.tokenizer_path, model.text.vocab_size), model.text
            ),
            token_model=TokenModel(sessions["ar_prefix"], sessions["ar_step"], model.ar) if model.ar else None,
            vq_decoder=VQDecoder(sessions["vq_decoder"], model.vq) if model.vq else None,
            vq_encoder=VQEncoder(sessions["vq_encoder"], model.vq, latent_length(model, model.video.segment_frames))
            if model.vq and model.vq.has_encoder else None,
            denoiser=Denoiser(
                sessions["caption"], sessions.get("semantic"), sessions["dit"], model,
                published_tables=model.dit.precision_tables == "bf16" and precision != "fp32",
            ),
            vae_encoder=VAEEncoder(sessions["vae_encoder"], model.vae),
            vae_decoder=VAEDecoder(sessions["vae_decoder"], model.vae),
            sessions=sessions, precision=precision,
        )

    def close(self) -> None:
        """Close every graph."""
        for session in self.sessions.values():
            session.close()


def usual_precision(bundle: Bundle, device: str) -> str:
    """fp32 on a CPU and fp16 elsewhere, or else the bundle's first precision."""
    usual = "fp32" if device == "cpu" else "fp16"
    return usual if usual in bundle.precisions else next(iter(bundle.precisions), usual)
