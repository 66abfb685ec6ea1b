"""The arguments that several commands have, and the values they stand for in the library."""

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
from arlon_rt.options import BUNDLES, OPTIONS, GenerateOptions
from arlon_rt.timeline import Timeline


def add_prompts(parser: argparse.ArgumentParser) -> None:
    """PROMPT, --prompt and --prompts: three ways to say what the video shows."""
    group = parser.add_argument_group("prompt (one of these)")
    group.add_argument(
        "text", nargs="?", metavar="PROMPT",
        help="what the video shows, from start to end; '|0| first |6| then' changes it at segment 6, as in Open-Sora",
    )
    group.add_argument(
        "--prompt", action="append", metavar="SECONDS:PROMPT",
        help="what it shows from this second on; repeat it, the first at 0 (default: none)",
    )
    group.add_argument(
        "--prompts", type=Path, metavar="FILE.json",
        help='the same in a file: [{"seconds": 0, "prompt": "…"}, …] (default: none)',
    )


def read_request(args: argparse.Namespace) -> tuple[Timeline, Bundle, GenerateOptions]:
    """The prompts in the arguments of `add_prompts`, the bundle, and the options in those of `add_options`."""
    timeline, bundle = _prompts(args), open_bundle(args)
    return timeline, bundle, read_options(args, bundle)


def _prompts(args: argparse.Namespace) -> Timeline:
    prompts = [value for value in (args.text, args.prompt, args.prompts) if value is not None]
    if not prompts:
        raise OptionsError('there is no prompt; say what to show, e.g. arlon-rt generate "a red circle moves right"')
    if len(prompts) > 1:
        raise OptionsError("the prompt is given more than once; give PROMPT, or --prompt, or --prompts")
    if args.prompts is not None:
        return Timeline.from_json(args.prompts)
    return Timeline.of(args.text) if args.text is not None else Timeline.parse(args.prompt)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The fields of `GenerateOptions`, and other ways to name a length and a size."""
    group = parser.add_argument_group("options (`arlon-rt options --bundle DIR` shows a bundle's own defaults)")
    length = group.add_mutually_exclusive_group()
    length.add_argument(
        "--seconds", type=float, metavar="S", help="length of the video in seconds (default: as --num-frames)"
    )
    group.add_argument(
        "--resolution", metavar="NAME",
        help=f"a size of Open-Sora's, for --height and --width: {', '.join(SIZES)} (default: as --height and --width)",
    )
    group.add_argument(
        "--aspect-ratio", metavar="W:H",
        help="shape of --resolution, width first: 9:16 is portrait, 1:1 square (default: 16:9, of 512 1:1)",
    )
    for name in OPTIONS:
        add_option(length if name == "num_frames" else group, name)
    for name in GenerateOptions.REMOVED:
        group.add_argument(f"--{name.replace('_', '-')}", dest=name, help=argparse.SUPPRESS)


def add_option(group: argparse._ActionsContainer, name: str, default: str | None = None) -> None:
    """The flags of one field of `GenerateOptions`; ``default`` replaces the words for its default."""
    option = OPTIONS[name]
    if default is None:
        words = option.default_in_words()
        default = words if words.startswith(BUNDLES) else f"{BUNDLES}, else {words}"
    off = "turn off: " if option.flags[0].startswith("--no-") else ""
    text = f"{off}{option.help[0].lower()}{option.help[1:].removesuffix('.')} (default: {default})".replace("%", "%%")
    if option.kind is bool:
        group.add_argument(*option.flags, dest=name, action="store_const", const=not off, help=text)
    else:
        group.add_argument(*option.flags, dest=name, type=option.kind, metavar=option.metavar, help=text)


def read_options(args: argparse.Namespace, bundle: Bundle) -> GenerateOptions:
    """The options in the arguments of `add_options`, checked against ``bundle``."""
    asked = {name: getattr(args, name) for name in (*OPTIONS, *GenerateOptions.REMOVED)}
    asked["height"], asked["width"] = _size(args)
    options = GenerateOptions(**asked)
    fps = options.resolved(bundle).fps
    if args.seconds is not None:
        if not (math.isfinite(args.seconds) and args.seconds > 0):
            raise OptionsError(f"seconds is {args.seconds:g}; it must be a number above 0")
        options = dataclasses.replace(options, num_frames=max(1, round(args.seconds * fps)))
        options.resolved(bundle)
    return options


def _size(args: argparse.Namespace) -> tuple[int | None, int | None]:
    """(height, width) of --height and --width, or of --resolution."""
    if args.resolution is None:
        if args.aspect_ratio is not None:
            raise OptionsError(f"aspect_ratio is {args.aspect_ratio!r:.80}; --aspect-ratio needs --resolution")
        return args.height, args.width
    if args.height is not None or args.width is not None:
        raise OptionsError("the size is given twice; give --resolution, or --height and --width")
    return size_of(args.resolution, args.aspect_ratio)


def add_backend(parser: argparse.ArgumentParser) -> None:
    """The bundle, and the backend, device and memory it runs with."""
    group = parser.add_argument_group("model and machine")
    group.add_argument("--bundle", type=Path, metavar="DIR", help="the model to use (default: the demo model)")
    group.add_argument(
        "--backend", choices=BACKENDS, default="onnxruntime",
        help="what runs it; the TensorRT backends run engines of `arlon-rt build` (default: %(default)s)",
    )
    group.add_argument("--device", metavar="D", help="cpu, cuda, or cuda:1, … (default: cpu of onnxruntime, else cuda)")
    group.add_argument(
        "--precision", choices=("fp32", "fp16", "bf16"), help="number format (default: fp32 on a CPU, fp16 on a GPU)"
    )
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one a core)")
    group.add_argument(
        "--vram-budget", metavar="SIZE",
        help="GPU memory to keep to, e.g. 16G or 800M: graphs that do not fit beside the others are loaded for a "
             "prompt and freed, or stream their weights; TensorRT only (default: no limit)",
    )
    group.add_argument(
        "--trust-engines", action="store_true",
        help="load TensorRT engines that you did not build: they are code (default: off)",
    )


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `Pipeline.open` in those of `add_backend`, but for the bundle."""
    return {
        "backend": args.backend, "device": args.device or usual_device(args.backend), "precision": args.precision,
        "threads": args.threads, "trust_engines": args.trust_engines, "vram_budget": args.vram_budget,
    }


def open_bundle(args: argparse.Namespace) -> Bundle:
    """The bundle of --bundle, or the demo model."""
    return Bundle.open(demo_bundle_path() if args.bundle is None else args.bundle)


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """BUNDLE, the demo model by default."""
    parser.add_argument("bundle", nargs="?", type=Path, metavar="BUNDLE", help="its folder (default: the demo model)")
