"""Figures 4 and 9: poisons beside the images that they were made from, and their target."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from poisonkit.figures.convex_polytope.success import METHODS
from poisonkit.plots import Slider, change_of, panels, show_images, slider
from poisonkit.store import Record


def poisons_figure(record: Record, number: int = 0) -> Figure:
    """Draw bases, poisons and their changes for one target, two rows for each objective."""
    trials = record.metrics["trials"]
    first = [k for k, trial in enumerate(trials) if trial["first"] == 0]
    names, label = trials[0]["class_names"], trials[0]["poison_label"]
    return draw_poisons(
        record.arrays[f"{first[0]}.targets"][number],
        record.arrays[f"{first[0]}.bases"],
        {METHODS[trials[k]["objective"]]: record.arrays[f"{k}.poisons"][number] for k in first},
        epsilon=record.config["procedure"]["epsilon"],
        target_class=record.config["target_class"],
        poison_class=names[label],
    )


def draw_poisons(
    target: Tensor,
    bases: Tensor,
    poisons: Mapping[str, Tensor],
    *,
    epsilon: float,
    target_class: str,
    poison_class: str,
) -> Figure:
    """Draw a target [C, H, W], bases and poisons [k, C, H, W], and the poisons' changes.

    Grey is no change; black and white are the bound.
    """
    shown = min(len(bases), 5)
    lines = 1 + 2 * len(poisons)
    figure, axes = panels(lines, 1 + shown, size=(9, 1.55 * lines))
    for part in axes.flat:
        part.set_axis_off()
    show_images(axes[0][0], target, f"target: {target_class}")
    for place in range(shown):
        show_images(axes[0][1 + place], bases[place], f"base: {poison_class}")
    for line, (name, images) in enumerate(poisons.items()):
        above, below = axes[1 + 2 * line], axes[2 + 2 * line]
        _write(above[0], name.replace(" ", "\n") + "\npoisons")
        _write(below[0], "their\nchange")
        for place in range(shown):
            show_images(above[1 + place], images[place], "")
            change = change_of(images[place], bases[place], epsilon)
            show_images(below[1 + place], change, "")
    return figure


def poisons_slider(record: Record) -> Slider:
    """Return :func:`poisons_figure` behind a slider over the targets."""
    count = len(record.arrays["0.targets"])
    frames = [(f"target {k + 1}", poisons_figure(record, k)) for k in range(count)]
    return slider(frames, label="target")


def _write(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize="small")
