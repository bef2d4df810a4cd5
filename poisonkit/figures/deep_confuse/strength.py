"""Figures 4 and 5: accuracy against the bound of the noise and the share of noisy images."""

from collections.abc import Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import ColorType
from torch import Tensor

from poisonkit.claims.deep_confuse_reported import FIGURE_4, FIGURE_5
from poisonkit.figures.common import percent
from poisonkit.figures.deep_confuse.pictures import image_rows
from poisonkit.figures.deep_confuse.shared import (
    guessing_line,
    legend_over,
    on_paper_data,
    paper_marks,
    two_parts,
)
from poisonkit.plots import COLOURS, Slider, change_of, panels, show_images, slider
from poisonkit.store import Json, Record

#: Images that each column of Figure 4's strip shows.
_STRIP = 2


def epsilon_figure(record: Record) -> Figure:
    """Draw Figure 4: the accuracy against epsilon, and images perturbed with each.

    Large dots are means with their standard deviation, small ones single runs, open
    diamonds the paper's values.
    """
    pictures = _pictures(record)
    figure, upper, lower = two_parts((8.5, 5.6), (1.9, 1))
    axes = upper.subplots()
    rows = record.metrics["rows"]
    _curve(axes, rows, record.metrics["trials"], "epsilon", COLOURS["poisoned"], "ours")
    _one_run(axes)
    guessing_line(axes, record)
    if on_paper_data(record) == "mnist":
        paper_marks(axes, [*FIGURE_4], [*FIGURE_4.values()], label="paper")
    axes.set(xlabel="epsilon, on the [0, 1] scale of pixels", ylim=(-4, 104))
    axes.set_ylabel("accuracy on clean test images (%)")
    legend_over(axes)
    grid = lower.subplots(_STRIP, len(pictures), squeeze=False)
    for column, (epsilon, images) in zip(grid.T, pictures.items(), strict=True):
        for axis, image in zip(column, images, strict=False):
            show_images(axis, image, "")
        column[0].set_title(f"{epsilon:g}", fontsize="small")
    lower.suptitle("training images by epsilon", fontsize="small")
    return figure


def epsilon_slider(record: Record) -> Slider:
    """Return the perturbed training images, one a class, with a slider over epsilon.

    Below them is their change, scaled to the largest epsilon: grey is none.
    """
    pictures = _pictures(record)
    limit = max(pictures)
    means = {row["epsilon"]: row for row in record.metrics["rows"]}
    clean = pictures.get(0.0)
    frames = []
    for epsilon, images in pictures.items():
        lines = {"image": images}
        if clean is not None and limit > 0:
            lines["change"] = change_of(images, clean, limit)
        figure = image_rows(lines)
        row_of = means[epsilon]
        found = percent(row_of["mean"], row_of["deviation"], digits=1)
        figure.suptitle(f"accuracy after training on such images: {found}", fontsize="small")
        frames.append((f"{epsilon:g}", figure))
    return slider(frames, label="epsilon")


def _pictures(record: Record) -> dict[float, Tensor]:
    """Return the images of each epsilon, as far as the record has them, at most ten."""
    found = {}
    for number, trial in enumerate(record.metrics["trials"]):
        if f"{number}.images" in record.arrays:
            found[trial["epsilon"]] = record.arrays[f"{number}.images"][:10]
    return dict(sorted(found.items()))


def share_figure(record: Record) -> Figure:
    """Draw Figure 5: the accuracy against the share of perturbed images, a curve an epsilon.

    Marks as in Figure 4. Random labels are what the paper compares with; left out says
    what the other images are worth alone.
    """
    figure, [[axes]] = panels(1, 1, size=(8.5, 4.2))
    epsilons = record.config["epsilons"]
    paper = FIGURE_5 if on_paper_data(record) == "mnist" else {}
    kinds = [("noise", epsilon) for epsilon in epsilons]
    kinds += [("left out", None), ("random labels", None)]
    colours = sns.blend_palette([COLOURS["poisoned"], "black"], len(epsilons) + 1)[:-1]
    colours += [COLOURS["after"], COLOURS["reference"]]
    for (kind, epsilon), colour in zip(kinds, colours, strict=True):
        name = f"noise, epsilon {epsilon:g}" if kind == "noise" else kind
        rows, own = (
            [e for e in found if (e["kind"], e["epsilon"]) == (kind, epsilon)]
            for found in (record.metrics["rows"], record.metrics["trials"])
        )
        if not rows:
            # Nothing is left where all images are left out.
            continue
        _curve(axes, rows, own, "share", colour, name, scale=100)
        if points := paper.get(kind if epsilon is None else epsilon):
            x = [100 * share for share in points]
            style = {"ls": ":", "lw": 1, "color": colour}
            paper_marks(axes, x, [*points.values()], label=f"paper, {name}", **style)
    _one_run(axes)
    guessing_line(axes, record)
    axes.set(xlabel="training images that are perturbed, left out, or labelled at random (%)")
    axes.set(ylabel="accuracy on clean test images (%)", ylim=(-4, 104))
    legend_over(axes)
    return figure


def _curve(
    axes: Axes,
    rows: Sequence[Json],
    trials: Sequence[Json],
    name: str,
    colour: ColorType,
    label: str,
    *,
    scale: float = 1,
) -> None:
    rows = sorted(rows, key=lambda row: row[name])
    x = [scale * row[name] for row in rows]
    means = 100 * np.array([row["mean"] for row in rows])
    spread = 100 * np.array([row["deviation"] or 0 for row in rows])
    axes.errorbar(x, means, spread, fmt="o-", color=colour, ms=6, capsize=3, label=label)
    single = [(scale * trial[name], 100 * trial["accuracy"]) for trial in trials]
    axes.plot(*zip(*single, strict=True), ".", color="black", ms=3, alpha=0.6, zorder=3)


def _one_run(axes: Axes) -> None:
    axes.plot([], [], ".", color="black", ms=4, label="one run")
