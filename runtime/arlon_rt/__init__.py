"""Text to long video with ARLON, without PyTorch.

    from arlon_rt import GenerateOptions, Pipeline

    with Pipeline.open() as pipeline:
        video = pipeline.generate("a red circle moves right on a black background", GenerateOptions(num_frames=68))

Public names load their module when they are first used, so that importing the package is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arlon_rt.bundle import Bundle as Bundle
    from arlon_rt.errors import ArlonError as ArlonError
    from arlon_rt.errors import BackendError as BackendError
    from arlon_rt.errors import BundleError as BundleError
    from arlon_rt.errors import BundleNotFoundError as BundleNotFoundError
    from arlon_rt.errors import Cancelled as Cancelled
    from arlon_rt.errors import MissingExtraError as MissingExtraError
    from arlon_rt.errors import OptionsError as OptionsError
    from arlon_rt.errors import OutputError as OutputError
    from arlon_rt.events import ChunkReady as ChunkReady
    from arlon_rt.events import Event as Event
    from arlon_rt.events import Failed as Failed
    from arlon_rt.events import Finished as Finished
    from arlon_rt.events import FootageRead as FootageRead
    from arlon_rt.events import Progress as Progress
    from arlon_rt.events import PromptCut as PromptCut
    from arlon_rt.events import Started as Started
    from arlon_rt.footage import read_clip as read_clip
    from arlon_rt.footage import read_image as read_image
    from arlon_rt.generation import Generation as Generation
    from arlon_rt.options import GenerateOptions as GenerateOptions
    from arlon_rt.pipeline import Pipeline as Pipeline
    from arlon_rt.pipeline import Video as Video
    from arlon_rt.request import Chunk as Chunk
    from arlon_rt.snapshot import Snapshot as Snapshot
    from arlon_rt.timeline import Timeline as Timeline
    from arlon_rt.video import VideoWriter as VideoWriter

_HOMES = {
    "bundle": ("Bundle",),
    "errors": (
        "ArlonError", "BackendError", "BundleError", "BundleNotFoundError", "Cancelled", "MissingExtraError",
        "OptionsError", "OutputError",
    ),
    "events": ("ChunkReady", "Event", "Failed", "Finished", "FootageRead", "Progress", "PromptCut", "Started"),
    "footage": ("read_clip", "read_image"),
    "options": ("GenerateOptions",),
    "generation": ("Generation",),
    "pipeline": ("Pipeline", "Video"),
    "request": ("Chunk",),
    "snapshot": ("Snapshot",),
    "timeline": ("Timeline",),
    "video": ("VideoWriter",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
