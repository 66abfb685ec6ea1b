"""The model on one page: prompt -> text -> tokens -> coarse latents -> latents -> frames, segment by segment."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from arlon_rt import flow, noise
from arlon_rt.bundle import Bundle, demo_bundle_path
from arlon_rt.errors import OptionsError
from arlon_rt.events import ChunkReady, Event, Failed, Finished, Progress, Stage, Started
from arlon_rt.options import GenerateOptions, ResolvedOptions, Timeline
from arlon_rt.segments import Segment, plan
from arlon_rt.stages import Stages, open_stages

Prompts = str | Timeline | Iterable[tuple[float, str]]
OnEvent = Callable[[Event], None]
logger = logging.getLogger(__name__)

IMAGE_FPS = 120.0
"""What Open-Sora tells its transformer in place of frames a second when it makes an image (spec 5.3)."""
