"""Text to long video with ARLON, without PyTorch.

    from arlon_rt import GenerateOptions, Pipeline

    with Pipeline.open() as pipeline:
        video = pipeline.generate("a red circle moves right on a black background", GenerateOptions(num_frames=68))

A public name loads its module at its first use, so that importing the package is cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from arlon_rt.lazy import lazily

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
    from arlon_rt.events import FramesWritten as FramesWritten
    from arlon_rt.events import Progress as Progress
    from arlon_rt.events import PromptCut as PromptCut
    from arlon_rt.events import Started as Started
    from arlon_rt.generation import Chunk as Chunk
    from arlon_rt.generation import Generation as Generation
    from arlon_rt.generation import Snapshot as Snapshot
    from arlon_rt.options import GenerateOptions as GenerateOptions
    from arlon_rt.pipeline import Pipeline as Pipeline
    from arlon_rt.pipeline import Video as Video
    from arlon_rt.timeline import Timeline as Timeline
    from arlon_rt.video import VideoWriter as VideoWriter
    from arlon_rt.video import read_clip as read_clip
    from arlon_rt.video import read_image as read_image
else:
    __all__, __getattr__, __dir__ = lazily(__name__, {
        "arlon_rt.bundle": ("Bundle",),
        "arlon_rt.errors": (
            "ArlonError", "BackendError", "BundleError", "BundleNotFoundError", "Cancelled", "MissingExtraError",
            "OptionsError", "OutputError",
        ),
        "arlon_rt.events": (
            "ChunkReady", "Event", "Failed", "Finished", "FootageRead", "FramesWritten", "Progress",
            "PromptCut", "Started",
        ),
        "arlon_rt.generation": ("Chunk", "Generation", "Snapshot"),
        "arlon_rt.options": ("GenerateOptions",),
        "arlon_rt.pipeline": ("Pipeline", "Video"),
        "arlon_rt.timeline": ("Timeline",),
        "arlon_rt.video": ("VideoWriter", "read_clip", "read_image"),
    })
