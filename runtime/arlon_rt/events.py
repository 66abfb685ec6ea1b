"""What a generation reports while it runs: small frozen values handed to ``on_event``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Stage = Literal["text", "ar", "vq", "draft", "dit", "vae", "video"]


@dataclass(frozen=True, kw_only=True)
class Started:
    """The request was checked and work begins."""

    num_frames: int
    fps: float
    height: int
    """Height of the frames that will come, in pixels (what was asked for, rounded down to whole latents)."""
    width: int
    segments: int
    first_frame: int = 0
    """Number of the first frame that will be made; more than 0 where a generation is resumed."""
    overlap: bool = False
    """Whether stages work at once: events of several segments come in turns."""


@dataclass(frozen=True, kw_only=True)
class FootageRead:
    """The command read a file that frames come from, before `Started`."""

    use: str
    """The argument: ``"extend"``, ``"image"``, ``"repaint"`` or ``"reference"``."""
    file: str
    num_frames: int
    changes: tuple[str, ...]
    """What was done to bring it to the model's size and rate."""


@dataclass(frozen=True, kw_only=True)
class PromptCut:
    """A prompt is longer than the model reads, and its end is left out; reported once, before the first segment."""

    prompt: str
    """With what is appended to it, and so with what is lost."""
    max_tokens: int
    """The most tokens the model reads, the closing one included."""
    lost_tokens: int
    lost_text: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """``done`` of ``total`` units of one segment's stage: prompts, tokens, decodes, steps, chunks, frames written."""

    stage: Stage
    segment: int
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class ChunkReady:
    """A chunk of frames is about to be handed out."""

    segment: int
    index: int
    """Number of the chunk's first frame in the video."""
    num_frames: int
    draft: bool = False
    """Whether they are a draft, of which the final frames come later."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """Every frame was handed out."""

    num_frames: int
    wall_seconds: float
    first_chunk_seconds: float
    """From the start to the first chunk."""
    real_time_factor: float
    """Seconds of video made in a second; those made before a resumed generation do not count."""
    peak_memory_bytes: int | None
    """The most the process had resident at once; ``None`` where the system does not tell."""
    stage_seconds: Mapping[Stage, float]
    """Time each stage worked; with overlap their sum may exceed ``wall_seconds``."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The generation ended with an error, which is raised as well; `Cancelled` is none."""

    error: str


Event = FootageRead | Started | PromptCut | Progress | ChunkReady | Finished | Failed
OnEvent = Callable[[Event], object]
