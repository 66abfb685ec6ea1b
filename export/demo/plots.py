"""Plots of the claims, `python -m demo.plots --steps steps.json --variants variants.json --to claims.png`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

INK = {"colour": "#d1495b", "shape": "#edae49", "direction": "#00798c", "colour+direction": "#30638e"}
NAMES = {
    "dit_short": "both", "dit_one_codec": "no coarser tokens", "dit_certain": "no uncertainty sampling",
    "dit_neither": "neither", "dit_one_layer": "1 pair", "dit_all_layers": "4 pairs",
}
AIDS = ("dit_short", "dit_one_codec", "dit_certain", "dit_neither")
LAYERS = {1: "dit_one_layer", 2: "dit_short", 4: "dit_all_layers"}


def draw_steps(attributes: Any, likeness: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Plot attributes and PSNR over denoising steps: solid with injection, dashed without."""
    for inject, style in ((True, "-"), (False, "--")):
        part = sorted((r for r in rows if r["inject"] is inject), key=lambda r: r["steps"])
        x = [r["steps"] for r in part]
        for name in ("colour", "shape", "direction"):
            label = name if inject else None
            attributes.plot(x, [100 * r[name] for r in part], style, marker="o", ms=3, color=INK[name], label=label)
        compared = [r for r in part if r["psnr"] is not None]
        likeness.plot([r["steps"] for r in compared], [r["psnr"] for r in compared], style, marker="o", ms=3,
                      color="#333333", label="with injection" if inject else "without")
    for axes in (attributes, likeness):
        axes.set_xscale("log")
        axes.set_xticks([1, 2, 3, 5, 10, 30], ["1", "2", "3", "5", "10", "30"], minor=False)
        axes.minorticks_off()
        axes.set_xlabel("denoising steps")
        axes.legend(fontsize=7)
    attributes.set(ylim=(0, 103), ylabel="shown right, %", title="solid: injection, dashed: none")
    likeness.set(ylabel="PSNR against 30 steps, dB", title="how soon the video is the final one")


def draw_variants(aids: Any, layers: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Plot the share with colour and direction right, over wrong tokens and over injected pairs of blocks."""
    shares = {(r["variant"], r["wrong"]): 100 * r["colour+direction"] for r in rows}
    wrong = sorted({r["wrong"] for r in rows})
    for name in AIDS:
        aids.plot([100 * w for w in wrong], [shares[name, w] for w in wrong], marker="o", ms=3, label=NAMES[name])
    for w in wrong:
        right = [shares[name, w] for name in LAYERS.values()]
        layers.plot(list(LAYERS), right, marker="o", ms=3, label=f"{w:.0%} wrong")
    aids.set(ylim=(0, 103), xlabel="wrong tokens, %", ylabel="colour and direction right, %",
             title="trained with coarser tokens, uncertainty")
    layers.set(ylim=(0, 103), xlabel="injected pairs of blocks", xticks=list(LAYERS), title="where features go in")
    for axes in (aids, layers):
        axes.legend(fontsize=7)


def main(argv: Sequence[str] | None = None) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    parser = argparse.ArgumentParser(prog="python -m demo.plots", description=__doc__)
    parser.add_argument("--steps", type=Path, required=True, help="the file that `demo.claims steps` wrote")
    parser.add_argument("--variants", type=Path, help="the file that `demo.claims variants` wrote")
    parser.add_argument("--to", type=Path, default=Path("claims.png"), help="the PNG to write")
    args = parser.parse_args(argv)
    rows = 2 if args.variants else 1
    figure, axes = plt.subplots(rows, 2, figsize=(9, 3.3 * rows), squeeze=False, layout="constrained")
    draw_steps(axes[0][0], axes[0][1], json.loads(args.steps.read_text(encoding="utf-8"))["rows"])
    if args.variants:
        draw_variants(axes[1][0], axes[1][1], json.loads(args.variants.read_text(encoding="utf-8"))["rows"])
    for plot in axes.flat:
        plot.spines[["top", "right"]].set_visible(False)
        plot.title.set_fontsize(9)
    figure.savefig(args.to, dpi=110)


if __name__ == "__main__":
    main()
