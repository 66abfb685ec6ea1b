"""What a generation reports while it runs: small frozen values, passed to ``on_event``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from arlon_rt.graphs import Network


@dataclass(frozen=True, kw_only=True)
class Started:
    """The request was checked and work begins."""

    num_frames: int
    fps: float
    height: int
    """Height of the frames in pixels: the requested height, rounded down to whole latents."""
    width: int
    segments: int
    first_frame: int = 0
    """Number of the first frame that is generated: above 0 when a generation is resumed."""
    overlap: bool = False
    """Whether the lanes run at once: events of several segments are then interleaved."""


@dataclass(frozen=True, kw_only=True)
class FootageRead:
    """The command read a video or an image to generate from. Emitted before `Started`."""

    use: str
    """The argument: ``"extend"``, ``"image"``, ``"repaint"`` or ``"reference"``."""
    file: str
    num_frames: int
    changes: tuple[str, ...]
    """What was done to bring it to the model's size and rate."""


@dataclass(frozen=True, kw_only=True)
class PromptCut:
    """A prompt is longer than the model reads, so its end is left out. Emitted once, before the first segment."""

    prompt: str
    """The prompt with its scores, which stand at the end and are cut first."""
    max_tokens: int
    """The most tokens that the model reads, the closing one included."""
    lost_tokens: int
    lost_text: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A network finished ``done`` of ``total`` units of its work on a segment.

    Units are prompts (``"text"``), tokens (``"ar"``), grids decoded (``"vq"``), denoising steps (``"dit"``) and chunks
    of frames (``"vae"``).
    """

    network: Network
    segment: int
    done: int
    total: int
    draft: bool = False
    """Whether the chunks are the draft's, which a preview shows; the final ones come later."""


@dataclass(frozen=True, kw_only=True)
class ChunkReady:
    """Frames are about to be handed out."""

    segment: int
    index: int
    """Number of the first frame in the video."""
    num_frames: int
    draft: bool = False
    """Whether they are a draft; the final frames come later."""


@dataclass(frozen=True, kw_only=True)
class FramesWritten:
    """The command has written ``done`` of the video's ``total`` frames to its file."""

    segment: int
    """The segment of the frames written last."""
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Finished:
    """Every frame was handed out."""

    num_frames: int
    wall_seconds: float
    first_chunk_seconds: float
    """From the start to the first chunk of final frames."""
    real_time_factor: float
    """Seconds of video generated in a second; frames before a resumed generation do not count."""
    peak_memory_bytes: int | None
    """The most memory the process had resident at once; ``None`` where the system does not tell."""
    network_seconds: Mapping[Network, float]
    """How long each network worked, drafts included. With overlap the sum may exceed ``wall_seconds``."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The generation ends with an error, which is raised as well. Not emitted when the generation was cancelled."""

    error: str


Event = FootageRead | Started | PromptCut | Progress | ChunkReady | FramesWritten | Finished | Failed
OnEvent = Callable[[Event], object]
