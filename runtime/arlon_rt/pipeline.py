"""The library's front door: a bundle, opened, and the videos that are asked of it.

A prompt's way to pixels continues in request.py, then in generation/: generation, drafting, denoising, decoding.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from arlon_rt.backends import usual_device
from arlon_rt.bundle import Bundle, demo_bundle_path
from arlon_rt.conditioning import FrameEncoder, checked_frames
from arlon_rt.errors import ArlonError, OptionsError
from arlon_rt.events import OnEvent
from arlon_rt.generation import Generation, Machine, Snapshot, Work, all_tokens
from arlon_rt.memory import Budget, Demand
from arlon_rt.networks import Networks, TokenGrid
from arlon_rt.options import GenerateOptions
from arlon_rt.request import Boundary, Prompts, Request, Requests
from arlon_rt.timeline import Timeline
from arlon_rt.units import parse_bytes

DEFAULT_OPTIONS = GenerateOptions()


@dataclass(frozen=True, eq=False)
class Video:
    """A whole video in memory."""

    frames: NDArray[np.uint8]
    """(frame, height, width, 3), RGB."""
    fps: float

    @property
    def seconds(self) -> float:
        return len(self.frames) / self.fps


class Pipeline:
    """Text to video with the graphs of one bundle.

    Thread-safety: a pipeline generates one video at a time. A generation started on a second thread waits for the
    first. On the thread whose first one is unfinished it raises, because waiting would never end. Two pipelines share
    nothing. Close a pipeline, or leave its ``with`` block, when no generation is running.
    """

    def __init__(
        self, bundle: Bundle, networks: Networks, *, backend: str = "", device: str = "", threads: int | None = None,
        budget: Budget | None = None,
    ) -> None:
        """From open networks and what they run on; `Pipeline.open` is the usual way."""
        self.bundle, self._networks, self._budget = bundle, networks, budget
        self._machine = Machine(backend=backend, device=device, precision=networks.precision, threads=threads)
        self._encoder = FrameEncoder(networks, bundle.model)
        self._requests = Requests(bundle, networks, self._encoder)
        self._turn, self._owner = threading.Lock(), 0

    @classmethod
    def open(
        cls, bundle: Bundle | str | os.PathLike[str] | None = None, *, backend: str = "onnxruntime",
        device: str | None = None, precision: str | None = None, threads: int | None = None,
        trust_engines: bool = False, vram_budget: int | str | None = None, sized_for: GenerateOptions = DEFAULT_OPTIONS,
    ) -> Self:
        """Open every graph of a bundle, by default the demo bundle.

        Args:
            bundle: a bundle or the path of one.
            backend: what runs the graphs: ``"onnxruntime"``, or ``"tensorrt"`` or ``"tensorrt-rtx"`` with engines that
                `arlon-rt build` made.
            device: where they run: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``; by default the CPU for ONNX Runtime.
            precision: ``"fp32"`` or ``"fp16"``; by default fp32 on a CPU and fp16, where there is one, elsewhere.
            threads: CPU threads; by default the backend's own choice.
            trust_engines: load engines that this user did not build; an engine is code.
            vram_budget: a limit on GPU memory, in bytes or as ``"16G"``. Networks that do not fit beside the others are
                loaded for a prompt and freed, or stream their weights. Only TensorRT's backends keep to a budget.
            sized_for: with ``vram_budget``, the largest request to come: its size, guidance, injection and, for videos
                of less than a full segment, length.

        Raises:
            BundleError: the bundle cannot be opened.
            BudgetError: ``vram_budget`` does not hold the model; the message says what would fit.
            BackendError: one of its graphs cannot be opened.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(demo_bundle_path() if bundle is None else bundle)
        device = device or usual_device(backend)
        budget = None if vram_budget is None else Budget(
            size=parse_bytes(vram_budget), demand=Demand.of(sized_for, opened)
        )
        networks = Networks.open(
            opened, backend=backend, device=device, precision=precision, threads=threads, trust_engines=trust_engines,
            budget=budget,
        )
        return cls(opened, networks, backend=backend, device=device, threads=threads, budget=budget)

    def stream(
        self, prompt: Prompts, options: GenerateOptions = DEFAULT_OPTIONS, *,
        tokens: NDArray[np.integer] | None = None, after: NDArray[np.uint8] | None = None,
        references: Sequence[NDArray[np.uint8]] = (), mask_strategy: str = "",
        on_event: OnEvent | None = None, overlap: bool = False, preview: bool = False,
    ) -> Generation:
        """Generate a video and hand out its frames as they are ready, in memory that does not grow with its length.

        The request is checked at once; work begins with the first chunk asked for. Closing the iterator early ends
        the generation; its other methods steer it.

        Args:
            prompt: one prompt, Open-Sora's ``|0| text |6| text``, (seconds, prompt) pairs or a `Timeline`.
            options: everything else about the video.
            tokens: (code_frame, row, column), as the method `tokens` returns them; injected in place of those that the
                token model would write.
            after: existing frames (frame, height, width, 3) of the video's size and rate. A single frame is an image
                that the video begins with. 17 or more are a clip that the video continues: the model sees up to 68 of
                its last frames, and ``num_frames``, the prompts and the numbers of frames count from the first new one.
            references: images (1, height, width, 3) and clips (frame, height, width, 3) of the video's size, to take
                frames from.
            mask_strategy: where each reference is placed, as Open-Sora writes it:
                ``segment,reference,start,at,length,edit_ratio`` with ``;`` between entries. The fields are those of
                `arlon_rt.conditioning.Placement`.
            on_event: called with each event, one at a time; what it raises ends the generation. With ``overlap`` it
                is called on the threads of the lanes, else on the one that iterates.
            overlap: draft the next segment and decode the last one while one is denoised, on three threads. The
                frames are the same.
            preview: hand out each segment twice: first its tokens decoded without denoising, in chunks whose
                `Chunk.draft` is true, then its final frames.

        Raises:
            OptionsError: a prompt, an option or the tokens cannot be used.
        """
        request = self._requests.new(prompt, options, tokens, after, references, mask_strategy)
        return self._generation(request, on_event, overlap=overlap, preview=preview)

    def resume(
        self, snapshot: Snapshot | str | os.PathLike[str], *, on_event: OnEvent | None = None, overlap: bool = False,
        preview: bool = False,
    ) -> Generation:
        """Go on from a snapshot; the frames are those that the generation would have made without a break.

        ``snapshot`` is one or the path of its file; the other arguments are those of `stream`.

        Raises:
            OptionsError: it cannot be read, it belongs to another bundle, backend, device, precision or number of
                threads, or its video is complete.
        """
        taken = snapshot if isinstance(snapshot, Snapshot) else Snapshot.load(snapshot)
        if taken.bundle != self.bundle.hash:
            raise OptionsError(
                f"the snapshot is of bundle {taken.bundle:.12}, this one is {self.bundle.hash:.12}; open the pipeline "
                "with the bundle it was made with"
            )
        for name, value in dataclasses.asdict(taken.machine).items():
            if value != (have := getattr(self._machine, name)):
                raise OptionsError(
                    f"the snapshot was made with {name} {value!r:.40}, this pipeline has {have!r}, and would make "
                    f"another video; open the pipeline with {name}={value!r:.40}"
                )
        request = self._requests.checked(
            taken.prompts, taken.options, taken.tokens, taken.conditions, taken.lead, taken.boundary
        )
        return self._generation(request, on_event, overlap=overlap, preview=preview)

    def generate(
        self, prompt: Prompts, options: GenerateOptions = DEFAULT_OPTIONS, *,
        tokens: NDArray[np.integer] | None = None, on_event: OnEvent | None = None, overlap: bool = False,
    ) -> Video:
        """Generate a video and return all of it; arguments and errors are those of `stream`."""
        chunks = self.stream(prompt, options, tokens=tokens, on_event=on_event, overlap=overlap)
        frames = [chunk.frames for chunk in chunks]
        return Video(np.concatenate(frames), options.resolved(self.bundle).fps)

    def tokens(self, prompt: Prompts, options: GenerateOptions = DEFAULT_OPTIONS) -> NDArray[np.int64]:
        """The tokens (code_frame, row, column) that `stream` would inject; the diffusion transformer does not run.

        Raises:
            OptionsError: a prompt or an option cannot be used, or the request injects no tokens.
        """
        request = self._requests.checked(prompt, options)
        if request.tokens is None:
            raise OptionsError("this request injects no tokens: the bundle has no token model, or inject is False")
        work = Work(self._networks, self.bundle.model, request, lambda event: None)
        with self._one_at_a_time():
            return all_tokens(work.job)

    def tokens_of(self, frames: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The tokens (code_frame, row, column) of a clip (frame, height, width, 3), to be painted under another prompt.

        With these tokens `stream` keeps the clip's motion and takes the look from the prompt.

        Raises:
            OptionsError: the bundle has no tokens, or the frames are no clip.
        """
        with self._one_at_a_time():
            latents = self._networks.vae_encoder.encode_clip(checked_frames(frames))
            return self._encoder.tokens(latents).squeeze(axis=0)

    @property
    def precision(self) -> str:
        """The precision set that runs, e.g. ``"fp32"``."""
        return self._networks.precision

    def close(self) -> None:
        """Close every graph."""
        self._networks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _generation(
        self, request: Request, on_event: OnEvent | None = None, *, overlap: bool = False, preview: bool = False
    ) -> Generation:
        """A run of a request that this pipeline checked."""
        if preview and request.tokens is None:
            raise OptionsError("preview is True, but a draft is made of tokens and this request injects none")
        if self._budget:
            self._budget.check(Demand.of_segments(request.options, self.bundle.model, request.segments))
        work = Work(
            self._networks, self.bundle.model, request, on_event or (lambda event: None), overlap=overlap,
            preview=preview, all_texts_first=self._budget is not None,
        )
        tokens = request.tokens.codes if isinstance(request.tokens, TokenGrid) else None
        options = GenerateOptions(**dataclasses.asdict(request.options))

        def snapshot(boundary: Boundary, prompts: Timeline) -> Snapshot:
            return Snapshot(
                bundle=self.bundle.hash, machine=self._machine, options=options, prompts=prompts, boundary=boundary,
                tokens=tokens, conditions=request.conditions, lead=request.lead,
            )

        return Generation(work, self._one_at_a_time(), snapshot)

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        if self._owner == threading.get_ident():
            raise ArlonError("this pipeline is making a video on this thread; finish or close it, or open a second one")
        with self._turn:
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = 0
