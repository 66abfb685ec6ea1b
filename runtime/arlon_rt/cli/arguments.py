"""The arguments that commands share, and what they mean to the library."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

from arlon_rt.backends import BACKENDS, usual_device
from arlon_rt.bundle import Bundle, demo_bundle_path
from arlon_rt.cli.resolutions import SIZES, size_of
from arlon_rt.errors import OptionsError
from arlon_rt.options import GenerateOptions
from arlon_rt.timeline import Timeline


def add_prompts(parser: argparse.ArgumentParser) -> None:
    """PROMPT, --prompts and --prompt: three ways to say what the video shows."""
    group = parser.add_argument_group("prompt (one of these)")
    group.add_argument(
        "text", nargs="?", metavar="PROMPT",
        help="what the video shows, from start to end; '|0| first |6| then' changes it at segment 6, as in Open-Sora",
    )
    group.add_argument(
        "--prompt", action="append", metavar="SECONDS:PROMPT", help="from this second on; repeat it, the first at 0"
    )
    group.add_argument(
        "--prompts", type=Path, metavar="FILE.json", help='the same in a file: [{"seconds": 0, "prompt": "…"}, …]'
    )


def read_prompts(args: argparse.Namespace) -> Timeline:
    """The timeline that the arguments of `add_prompts` say."""
    given = [value for value in (args.text, args.prompt, args.prompts) if value is not None]
    if not given:
        raise OptionsError('there is no prompt; say what to show, e.g. arlon-rt generate "a red circle moves right"')
    if len(given) > 1:
        raise OptionsError("the prompt is given more than once; give PROMPT, or --prompt, or --prompts")
    if args.prompts is not None:
        return Timeline.from_json(args.prompts)
    return Timeline.of(args.text) if args.text is not None else Timeline.parse(args.prompt)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The fields of `GenerateOptions`; what is left out takes the bundle's default."""
    group = parser.add_argument_group("options (left out: the bundle's default, see `arlon-rt inspect`)")
    length = group.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, metavar="S", help="length of the video in seconds")
    length.add_argument("--num-frames", type=int, metavar="N", help="length of the video in frames; 1 is an image")
    group.add_argument("--height", type=int, metavar="PIXELS", help="rounded down to whole latents, 8 pixels as a rule")
    group.add_argument("--width", type=int, metavar="PIXELS", help="likewise")
    group.add_argument(
        "--resolution", metavar="NAME", help=f"one of Open-Sora's sizes, in place of both: {', '.join(SIZES)}"
    )
    group.add_argument(
        "--aspect-ratio", metavar="W:H",
        help="its shape, width first: 16:9 landscape (the default), 9:16 portrait, 1:1 square (all that 512 has)",
    )
    group.add_argument(
        "--first-segment-frames", type=int, metavar="N",
        help="length of the first segment; shorter (17, 34, 51) shows the first frames sooner",
    )
    group.add_argument("--fps", type=float, metavar="F", help="frames a second; the model is told, too")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed makes the same video")
    group.add_argument(
        "--steps", "--num-inference-steps", type=int, dest="num_inference_steps", metavar="N",
        help="denoising steps; fewer is faster",
    )
    group.add_argument(
        "--guidance-scale", type=float, metavar="X", help="how closely frames follow the prompt; 1 is off"
    )
    group.add_argument(
        "--ar-guidance-scale", type=float, metavar="X", help="how closely the drafted tokens do; 1 is off"
    )
    group.add_argument("--temperature", type=float, metavar="X", help="variety of the drafted tokens; 0 is none")
    group.add_argument("--top-k", type=int, metavar="N", help="draw each token among the N likeliest; 0 is all")
    group.add_argument("--top-p", type=float, metavar="P", help="draw each token among the likeliest that make up P")
    group.add_argument("--negative-prompt", metavar="TEXT", help="what to steer away from")
    group.add_argument(
        "--aesthetic-score", type=float, metavar="X",
        help="0 to 10, told to the model after the prompt; for models trained with scores",
    )
    group.add_argument("--motion-score", type=float, metavar="X", help="likewise; higher asks for more motion")
    group.add_argument("--camera-motion", metavar="TEXT", help="likewise, e.g. 'pan right'")
    group.add_argument(
        "--guided-steps", type=int, metavar="N", help="guide the first N denoising steps alone: faster, approximate"
    )
    group.add_argument(
        "--reuse-latents", action="store_true", default=None,
        help="let segments go on from latents, not from frames encoded again: faster, approximate",
    )
    group.add_argument(
        "--reuse-velocity", type=float, metavar="X",
        help="take denoising steps with the last velocity while it is expected to change by less than this part, "
             "e.g. 0.1: faster, approximate",
    )
    group.add_argument(
        "--no-injection", dest="inject", action="store_false", default=None, help="denoise without drafted tokens"
    )


def read_options(args: argparse.Namespace, bundle: Bundle) -> GenerateOptions:
    """The options that the arguments of `add_options` say, checked against ``bundle``."""
    names = [field.name for field in dataclasses.fields(GenerateOptions)]
    asked = {name: getattr(args, name) for name in names}
    asked["height"], asked["width"] = _size(args)
    options = GenerateOptions(**asked)
    resolved = options.resolved(bundle)
    if args.seconds is None:
        return options
    if not (math.isfinite(args.seconds) and args.seconds > 0):
        raise OptionsError(f"seconds is {args.seconds:g}; it must be a number above 0")
    options = dataclasses.replace(options, num_frames=max(1, round(args.seconds * resolved.fps)))
    options.resolved(bundle)
    return options


def _size(args: argparse.Namespace) -> tuple[int | None, int | None]:
    """(height, width) as --height and --width say, or --resolution."""
    if args.resolution is None:
        if args.aspect_ratio is not None:
            raise OptionsError(f"aspect_ratio is {args.aspect_ratio!r:.80} of no resolution; add --resolution")
        return args.height, args.width
    if args.height is not None or args.width is not None:
        raise OptionsError("the size is given twice; give --resolution, or --height and --width")
    return size_of(args.resolution, args.aspect_ratio)


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Which bundle runs, and where."""
    group = parser.add_argument_group("model and machine")
    group.add_argument("--bundle", type=Path, metavar="DIR", help="the model to use (default: the demo model)")
    group.add_argument(
        "--backend", choices=BACKENDS, default="onnxruntime",
        help="what runs it (default: onnxruntime); the others take engines that `arlon-rt build` made",
    )
    group.add_argument("--device", metavar="D", help="cpu (the default of onnxruntime), cuda, or cuda:1, …")
    group.add_argument("--precision", choices=("fp32", "fp16", "bf16"), help="default: fp32 on a CPU, fp16 on a GPU")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one a core)")
    group.add_argument(
        "--vram-budget", metavar="SIZE",
        help="GPU memory to keep to, e.g. 16G or 800M: what does not fit beside the rest is loaded for a prompt and "
             "freed, or streams its weights (TensorRT only)",
    )
    group.add_argument(
        "--trust-engines", action="store_true", help="load TensorRT engines that you did not build: they are code"
    )


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """What the arguments of `add_backend` say to `Pipeline.open`, the bundle aside."""
    return {
        "backend": args.backend, "device": args.device or usual_device(args.backend), "precision": args.precision,
        "threads": args.threads, "trust_engines": args.trust_engines, "vram_budget": args.vram_budget,
    }


def open_bundle(args: argparse.Namespace) -> Bundle:
    """The bundle that --bundle names, or the demo model's."""
    return Bundle.open(demo_bundle_path() if args.bundle is None else args.bundle)


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """BUNDLE, the demo model's when left out."""
    parser.add_argument("bundle", nargs="?", type=Path, metavar="BUNDLE", help="its folder (default: the demo model's)")


def has_footage(args: argparse.Namespace) -> bool:
    """Whether the arguments of `add_footage` name any."""
    return any(getattr(args, name) for name in ("extend", "image", "repaint", "reference"))
