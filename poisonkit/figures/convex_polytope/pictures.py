"""Figures 4 and 9: poisons beside the images that they were made from, and their target."""

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from poisonkit.figures.convex_polytope.success import METHODS
from poisonkit.plots import Slider, panels, show_images, slider
from poisonkit.store import Record


def poisons_figure(record: Record, number: int = 0) -> Figure:
    """Draw bases, poisons and their changes for one target, a row for each objective.

    Grey is no change; black and white are the bound.
    """
    trials = record.metrics["trials"]
    first = [k for k, trial in enumerate(trials) if trial["first"] == 0]
    bases = record.arrays[f"{first[0]}.bases"]
    limit = float(np.floor(255 * record.config["procedure"]["epsilon"] + 1e-9))
    shown = min(len(bases), 5)
    figure, axes = panels(1 + 2 * len(first), 1 + shown, size=(9, 1.55 * (1 + 2 * len(first))))
    for part in axes.flat:
        part.set_axis_off()
    target = record.arrays[f"{first[0]}.targets"][number]
    names, label = trials[first[0]]["class_names"], trials[first[0]]["poison_label"]
    show_images(axes[0][0], target, f"target:\n{record.config['target_class']}")
    for place in range(shown):
        show_images(axes[0][1 + place], bases[place], f"{names[label]} {place + 1}")
    for line, trial in enumerate(first):
        poisons = record.arrays[f"{trial}.poisons"][number]
        above, below = axes[1 + 2 * line], axes[2 + 2 * line]
        _words(above[0], METHODS[trials[trial]["objective"]].replace(" ", "\n") + "\npoisons")
        _words(below[0], "change")
        for place in range(shown):
            show_images(above[1 + place], poisons[place], "")
            show_images(below[1 + place], _change(poisons[place], bases[place], limit), "")
    return figure


def poisons_slider(record: Record) -> Slider:
    """Return :func:`poisons_figure` behind a slider over the targets."""
    count = len(record.arrays["0.targets"])
    frames = [(f"target {k + 1}", poisons_figure(record, k)) for k in range(count)]
    return slider(frames, label="target")


def _words(axes: object, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize="small")  # type: ignore[attr-defined]


def _change(image: Tensor, base: Tensor, limit: float) -> Tensor:
    return ((image.float() - base.float()) / limit * 127.5 + 127.5).clamp(0, 255).to(image.dtype)
