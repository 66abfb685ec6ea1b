"""One resumable training run: a folder, a recipe, a model, a loss; what every run shares."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from demo.muon import optimizers

RECIPES = Path(__file__).parent / "recipes"
Losses = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast: the ``[training]`` table of a recipe."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 100
    phases: tuple[int, ...] = ()
    """Steps at which a further phase begins: the learning rate warms up and falls anew in each."""
    weight_decay: float = 0.01
    ema: float = 0.999
    gradient_clip: float = 1.0
    seed: int = 1


@dataclass(frozen=True)
class Recipe:
    """The recipe file of a training run: its schedule and its other tables as they stand."""

    name: str
    schedule: Schedule
    tables: dict[str, dict[str, Any]]

    @classmethod
    def load(cls, name: str) -> Recipe:
        """The recipe of this name; one that names a ``base`` holds only how it differs from that."""
        tables = tomllib.loads((RECIPES / f"{name}.toml").read_text())
        if base := tables.pop("base", None):
            usual = tomllib.loads((RECIPES / f"{base}.toml").read_text())
            tables = {key: {**table, **tables.get(key, {})} for key, table in usual.items()}
        training = tables.pop("training")
        known = {f.name for f in fields(Schedule)}
        chosen = {k: v for k, v in training.items() if k in known}
        schedule: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in chosen.items()}
        rest = {k: v for k, v in training.items() if k not in known}
        return cls(name, Schedule(**schedule), {**tables, "training": rest})


def rng(seed: int, *keys: int) -> np.random.Generator:
    """The random stream of one step: resuming draws what the uninterrupted run would have drawn."""
    return np.random.default_rng([seed, *keys])


def keep_short_conv3d_in_float32(model: nn.Module) -> None:
    """Let each Conv3d of ``model`` compute in float32 under autocast, where its kernel is longer than its input.

    In bfloat16, oneDNN leaves whole planes of such a kernel's gradient unwritten, without an error: torch 2.13 on CPUs
    with AVX-512 and without AMX. Of 1,700 shapes tried, all gradients of such kernels are wrong but those of a single
    frame and a kernel of 3, and no others. The demo model's own windows are long enough; a shorter one costs little.
    """
    def guarded(layer: nn.Conv3d, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            if x.shape[2] >= layer.kernel_size[0]:
                return forward(x)
            with torch.autocast(x.device.type, enabled=False):
                return forward(x.float())

        return run

    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            module.forward = guarded(module, module.forward)  # type: ignore[assignment, method-assign]


def learning_rate(s: Schedule, step: int) -> float:
    """Linear warm-up, then a cosine to a fiftieth; each phase has its own."""
    first = max(p for p in (0, *s.phases) if p <= step)
    end = min(p for p in (*s.phases, s.steps) if p > step)
    warm = min(1.0, (step - first + 1) / s.warmup_steps)
    return s.learning_rate * warm * (0.51 + 0.49 * math.cos(math.pi * (step - first) / (end - first)))


class Averaged:
    """Exponential moving average of a model's floating-point state, warmed up so that early steps count less."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 10))
        for key, value in model.state_dict().items():
            if value.dtype.is_floating_point:
                self.state[key].lerp_(value, 1 - decay)
            else:
                self.state[key].copy_(value)


def arguments(description: str) -> argparse.ArgumentParser:
    """Options that every training command takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path("checkpoints"), help="folder of all checkpoints")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--steps", type=int, help="stop early at this step (the schedule stays the recipe's)")
    return parser


def checkpoint_path(out: Path, network: str) -> Path:
    return out / f"{network}.pt"


def load_averaged(out: Path, network: str, model: nn.Module, device: str) -> nn.Module:
    """Load the averaged weights of a finished (or unfinished) run into ``model``, frozen."""
    path = checkpoint_path(out, network)
    if not path.is_file():
        raise SystemExit(f"{path} does not exist; run `python -m demo.train_{network}` first")
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["ema"])
    return model.to(device).eval().requires_grad_(False)


def train(
    model: nn.Module,
    recipe: Recipe,
    args: argparse.Namespace,
    losses: Callable[[int], Losses],
    evaluate: Callable[[nn.Module], dict[str, float]],
    network: str | None = None,
) -> None:
    """Run ``losses(step)`` (its ``"loss"`` is minimised) from the last checkpoint to the end of the recipe.

    ``evaluate`` gets the averaged model every few minutes; its figures go to ``<network>.jsonl`` with the losses.
    """
    s, network = recipe.schedule, network or recipe.name
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    path = checkpoint_path(args.out, network)
    model.to(args.device)
    steppers = optimizers(model, s.learning_rate, s.weight_decay)
    averaged, start, seconds = Averaged(model, s.ema), 0, 0.0
    if path.is_file():
        saved = torch.load(path, map_location=args.device, weights_only=True)
        model.load_state_dict(saved["model"])
        if "optimizers" in saved:  # `demo.restore` has none: a bundle keeps weights alone
            for stepper, state in zip(steppers, saved["optimizers"], strict=True):
                stepper.load_state_dict(state)
        averaged.state, start, seconds = saved["ema"], saved["step"], saved["seconds"]
    end = min(s.steps, args.steps or s.steps)
    mean: dict[str, float] = {}
    saved_at = began = time.monotonic()

    def save(step: int) -> None:
        elapsed = seconds + time.monotonic() - began
        state = {
            "model": model.state_dict(), "ema": averaged.state,
            "optimizers": [stepper.state_dict() for stepper in steppers], "step": step, "seconds": elapsed,
        }
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
        live = {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(averaged.state)
        model.eval()
        with torch.no_grad():
            figures = evaluate(model)
        model.train()
        model.load_state_dict(live)
        line = {"step": step, "seconds": round(elapsed), **{k: round(v, 5) for k, v in {**mean, **figures}.items()}}
        with (args.out / f"{network}.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    keep_short_conv3d_in_float32(model)
    model.train()
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(network, total=end, completed=start, loss="")
        for step in range(start, end):
            torch.manual_seed(s.seed * 1_000_003 + step)
            rate = learning_rate(s, step)
            for group in (g for stepper in steppers for g in stepper.param_groups):
                group["lr"] = rate
            with torch.autocast(torch.device(args.device).type, torch.bfloat16):
                parts = losses(step)
            if not torch.isfinite(parts["loss"]):
                raise SystemExit(f"{network}: the loss is {parts['loss'].item()} at step {step}")
            model.zero_grad(set_to_none=True)
            torch.autograd.backward(parts["loss"])
            norm = nn.utils.clip_grad_norm_(model.parameters(), s.gradient_clip)
            if not torch.isfinite(norm):
                raise SystemExit(f"{network}: the gradient's norm is {norm.item()} at step {step}")
            for stepper in steppers:
                stepper.step()
            averaged.update(model, step)
            for key, value in parts.items():
                mean[key] = value.item() if key not in mean else mean[key] + 0.02 * (value.item() - mean[key])
            progress.update(task, completed=step + 1, loss=f"{mean['loss']:.4f}")
            if time.monotonic() - saved_at > 150:
                save(step + 1)
                saved_at = time.monotonic()
    if start < end:
        save(end)
