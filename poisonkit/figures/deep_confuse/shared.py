"""What the figures of this chapter share: spread, the paper's marks, rows of dots, images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from poisonkit.claims.deep_confuse import CHANCE
from poisonkit.figures.common import with_deviation
from poisonkit.plots import COLOURS, legend_below, panels
from poisonkit.statistics import mean_and_deviation
from poisonkit.store import Record

#: Names of the paper's data sets.
PAPER_DATA = {"mnist": "MNIST", "cifar10": "CIFAR-10", "imagenet2": "two classes of ImageNet"}
#: Whose network a page shows, by the names that its parameter has.
NETWORKS = {"default": "The default network", "code": "The code's network"}
_CHANCE = {"digits": 10.0, **CHANCE}
_PAPER: dict[str, Any] = {
    "ls": "",
    "marker": "D",
    "color": COLOURS["paper"],
    "mfc": "white",
    "ms": 5,
    "zorder": 4,
}


def on_paper_data(record: Record) -> str | None:
    """Return the name of the paper's data set that a record is on, or None."""
    dataset = str(record.config["dataset"])
    return dataset if dataset in PAPER_DATA else None


def chance(record: Record) -> float | None:
    """Return the accuracy of guessing, in percent, or None for a user's own images."""
    return _CHANCE.get(str(record.config["dataset"]))


def guessing_line(axes: Axes, record: Record, *, missed: bool = False) -> None:
    """Draw a dashed line at the accuracy of guessing, or at what guessing misses."""
    level = chance(record)
    if level is not None:
        level = 100 - level if missed else level
        axes.axhline(level, color=COLOURS["reference"], ls="--", zorder=0, label="guessing")


def reported(found: tuple[float, float | None] | None) -> str:
    """Return a mean and deviation of the paper's, in percent already, or a dash."""
    return "-" if found is None else f"{with_deviation(*found)} %"


def paper_marks(
    axes: Axes, x: Sequence[float], y: Sequence[float], *, label: str = "", **style: Any
) -> None:
    """Draw values of the paper as open black diamonds."""
    axes.plot(x, y, label=label, **{**_PAPER, **style})


def two_parts(
    size: tuple[float, float], heights: tuple[float, float]
) -> tuple[Figure, SubFigure, SubFigure]:
    """Return a figure of two parts above each other, which pyplot forgets at once."""
    figure = plt.figure(figsize=size)
    plt.close(figure)
    [upper], [lower] = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)
    return figure, upper, lower


@dataclass(frozen=True, kw_only=True)
class Series:
    """The accuracies of one kind, one list of runs (shares) for each row of a figure.

    Attributes
    ----------
    colour : a key of :data:`poisonkit.plots.COLOURS`.
    runs : None where a row has no such value.
    paper : the paper's values in percent, as far as it has them.
    filled : whether the mean is a full circle.
    """

    label: str
    colour: str
    runs: Sequence[Sequence[float] | None]
    paper: Sequence[float | None] = ()
    filled: bool = True


def accuracy_rows(
    names: Sequence[str], series: Sequence[Series], *, guessing: float | None, xlabel: str
) -> Figure:
    """Draw accuracies as dots, one row a name.

    Large dots are means with their standard deviation, small ones single runs, open
    diamonds the paper's values, and the dashed line is guessing.
    """
    height = 0.06 + 0.18 * len(series)
    figure, [[axes]] = panels(1, 1, size=(8.5, 1.4 + height * len(names)))
    offsets = 0.11 * (len(series) - 1) * np.linspace(-1, 1, len(series))
    for offset, one in zip(offsets, series, strict=True):
        for place, runs in enumerate(one.runs):
            if runs:
                _dot(axes, place + offset, runs, one)
        for place, value in enumerate(one.paper):
            if value is not None:
                colour = COLOURS[one.colour]
                paper_marks(axes, [value], [place + offset], color=colour, ms=6)
        style = {"mfc": COLOURS[one.colour] if one.filled else "white"}
        axes.plot([], [], "o", color=COLOURS[one.colour], label=one.label, **style)
    axes.plot([], [], ".", color="black", ms=4, label="one run")
    if any(value is not None for one in series for value in one.paper):
        paper_marks(axes, [], [], label="paper", ms=6)
    if guessing is not None:
        axes.axvline(guessing, color=COLOURS["reference"], ls="--", zorder=0, label="guessing")
    axes.set_yticks(range(len(names)), names)
    axes.set(ylim=(len(names) - 0.5, -0.5), xlim=(-3, 103), xlabel=xlabel)
    axes.grid(axis="x", alpha=0.3)
    legend_below(figure, axes)
    return figure


def legend_over(axes: Axes) -> None:
    """Put the legend on a white ground in the lower left corner, our curves first."""
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(
        range(len(labels)), key=lambda k: (labels[k] == "guessing", "paper" in labels[k])
    )
    axes.legend(
        [handles[k] for k in order],
        [labels[k] for k in order],
        loc="lower left",
        fontsize="small",
        frameon=True,
        facecolor="white",
        edgecolor="none",
        framealpha=1,
    )


def _dot(axes: Axes, y: float, runs: Sequence[float], one: Series) -> None:
    mean, deviation = mean_and_deviation([100 * value for value in runs])
    shade = COLOURS[one.colour]
    if deviation is not None:
        axes.plot((mean - deviation, mean + deviation), (y, y), color=shade, linewidth=1.5)
    axes.plot(mean, y, "o", color=shade, mfc=shade if one.filled else "white", ms=7, alpha=0.9)
    axes.plot([100 * v for v in runs], [y] * len(runs), ".", color="black", ms=3, alpha=0.6)
