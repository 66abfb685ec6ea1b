"""``arlon-rt bench``: where the time of a generation goes."""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from typing import TYPE_CHECKING, Any

from arlon_rt.cli.arguments import add_backend, add_options, add_prompts, machine, read_request
from arlon_rt.cli.display import WORDS, Clock, print_json
from arlon_rt.errors import OptionsError

if TYPE_CHECKING:
    from arlon_rt.options import GenerateOptions
    from arlon_rt.pipeline import Pipeline
    from arlon_rt.timeline import Timeline

PROMPT = "a red circle moves right on a black background"
"""Used where the arguments have no prompt; a model's speed does not depend on it."""


class Bench:
    """The command; see `arlon_rt.cli.main.Command`."""

    help = "Generate a video several times, without writing it, and print the seconds of each network."

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.usage = "%(prog)s [PROMPT] [--runs N] [options]"
        parser.add_argument(
            "--runs", type=int, default=3, metavar="N", help="timed runs, after one that is not (default: %(default)s)"
        )
        parser.add_argument("--json", action="store_true", help="print one JSON line (default: off)")
        add_prompts(parser)
        add_options(parser)
        add_backend(parser)

    def run(self, args: argparse.Namespace) -> int:
        from arlon_rt.pipeline import Pipeline

        if args.runs < 1:
            raise OptionsError(f"runs is {args.runs}; it must be 1 or more")
        if args.text is None and args.prompt is None and args.prompts is None:
            args.text = PROMPT
        timeline, bundle, options = read_request(args)
        began = time.perf_counter()
        where = machine(args)
        with Pipeline.open(bundle, **where, sized_for=options) as pipeline:
            load = time.perf_counter() - began
            runs = [time_networks(pipeline, timeline, options) for _ in range(args.runs + 1)][1:]
        resolved = options.resolved(bundle)
        result = {
            "bundle": bundle.hash, "backend": where["backend"], "device": where["device"],
            "machine": platform.processor() or platform.machine(),
            "num_frames": resolved.num_frames, "num_inference_steps": resolved.num_inference_steps,
            "video_seconds": resolved.num_frames / resolved.fps, "load_seconds": load, "runs": runs,
        }
        print_json("Bench", result) if args.json else print_table(result)
        return 0


def time_networks(pipeline: Pipeline, timeline: Timeline, options: GenerateOptions) -> dict[str, float]:
    """Seconds of each network in one generation, and ``total``."""
    clock = Clock()
    began = time.perf_counter()
    for _ in pipeline.stream(timeline, options, on_event=clock.note):
        pass
    return {**clock.seconds, "total": time.perf_counter() - began}


def print_table(result: dict[str, Any]) -> None:
    """Print the median and the range of each network's seconds."""
    runs, video = result["runs"], result["video_seconds"]
    print(f"{result['num_frames']} frames ({video:.2f} s), {result['num_inference_steps']} steps, {result['device']}, "
          f"{len(runs)} runs; loading took {result['load_seconds']:.2f} s")
    print(f"{'network':<22}{'median s':>10}{'min':>9}{'max':>9}{'share':>8}")
    total = statistics.median(run["total"] for run in runs)
    for network in runs[0]:
        seconds = [run.get(network, 0.0) for run in runs]
        middle = statistics.median(seconds)
        name = WORDS.get(network, network)
        print(f"{name:<22}{middle:>10.3f}{min(seconds):>9.3f}{max(seconds):>9.3f}{middle / total:>8.0%}")
    print(f"{video / total:.2f}× real time, {result['num_frames'] / total:.1f} frames/s")


bench = Bench()
