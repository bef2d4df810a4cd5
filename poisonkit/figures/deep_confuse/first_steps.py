"""Figure 8 step by step, and against itself: clean images over perturbed ones."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from poisonkit.claims.deep_confuse_reported import FIGURE_8
from poisonkit.figures.common import percent, plain
from poisonkit.figures.deep_confuse.shared import guessing_line, on_paper_data, paper_marks
from poisonkit.plots import COLOURS, class_colours, legend_below, panels
from poisonkit.store import Record

#: Iterations of the paper whose points are named.
_NAMED = {1, 5, 20}
#: Below it the scale of accuracies is linear, so that 0 is on it.
_LINEAR_BELOW = 0.1


def steps_figure(record: Record) -> Figure:
    """Draw both accuracies step by step, and that on clean images over that on perturbed ones.

    On the left lines are means over the runs, bands go from the lowest run to the highest,
    and dotted lines are the ends of epochs. On the right every line is a run; the plane
    needs no horizontal unit, so the paper's curves stand in it as they are.
    """
    figure, [[left, right]] = panels(1, 2, size=(9.5, 4.6))
    ways = record.config["ways"]
    colours = dict(zip(ways, class_colours(len(ways)), strict=True))
    for way, steps, curves in _curves(record):
        for kind, style in (("clean", "-"), ("perturbed", "--")):
            values = 100 * curves[kind]
            left.plot(steps, values.mean(0), style, color=colours[way])
            left.fill_between(
                steps, values.min(0), values.max(0), color=colours[way], alpha=0.2, lw=0
            )
        for clean, perturbed in zip(curves["clean"], curves["perturbed"], strict=True):
            right.plot(100 * perturbed, 100 * clean, color=colours[way], lw=1, alpha=0.8)
            right.plot(100 * perturbed[-1], 100 * clean[-1], "s", color=colours[way], ms=5)
        right.plot([], [], color=colours[way], label=way)
    _mark_epochs(left, record)
    _paper_points(right, on_paper_data(record))
    guessing_line(right, record)
    right.plot([], [], "s", color="#666666", ms=5, label="end of our training")
    for kind, style in (("clean test", "-"), ("perturbed training", "--")):
        right.plot([], [], style, color="#666666", label=f"left: {kind} images")
    left.set(xscale="log", xlabel="training step", ylabel="accuracy (%)", ylim=(-4, 104))
    right.set(
        xlabel="accuracy on perturbed training images (%)",
        ylabel="accuracy on clean test images (%)",
        xlim=(-4, 104),
    )
    right.set_yscale("symlog", linthresh=_LINEAR_BELOW)
    right.set_ylim(0, 130)
    right.set_yticks([0, 0.1, 1, 10, 100], ["0", "0.1", "1", "10", "100"])
    legend_below(figure, right, columns=3)
    return figure


def _curves(record: Record) -> Iterator[tuple[str, list[int], dict[str, np.ndarray]]]:
    """Yield each way, its steps, and the accuracies [runs, steps] of both kinds."""
    for way in record.config["ways"]:
        own = [trial for trial in record.metrics["trials"] if trial["way"] == way]
        curves = {kind: np.array([t[kind] for t in own]) for kind in ("clean", "perturbed")}
        yield way, own[0]["steps"], curves


def _mark_epochs(axes: Axes, record: Record) -> None:
    trial = record.metrics["trials"][0]
    epoch, last = trial["steps_in_epoch"], trial["steps"][-1]
    for end in {epoch, min(2 * epoch, last), last}:
        axes.axvline(end, color=COLOURS["reference"], ls=":", lw=1, zorder=0)
        axes.text(
            end,
            1.01,
            str(end // epoch),
            transform=axes.get_xaxis_transform(),
            ha="center",
            fontsize="small",
        )
    axes.set_title("end of epoch", fontsize="small", loc="left")


def _paper_points(axes: Axes, dataset: str | None) -> None:
    if dataset is None:
        return
    curves = FIGURE_8[dataset]
    both = {step: (x, curves["test"][step]) for step, x in curves["train"].items()}
    x, y = zip(*both.values(), strict=True)
    paper_marks(axes, x, y, label="paper, by iteration", ls="-", lw=0.8, ms=4)
    # Not every data set's curve was read off at each of them.
    for iteration in both.keys() & _NAMED:
        axes.annotate(
            str(iteration),
            both[iteration],
            xytext=(-6, -10),
            textcoords="offset points",
            fontsize="small",
        )


def steps_table(record: Record) -> Styler:
    """Return the accuracies where that on clean images is lowest, after an epoch, in the end."""
    rows = []
    for row in record.metrics["rows"]:
        for name, text in (
            ("lowest", "fewest clean images right*"),
            ("first_epoch", "one epoch"),
            ("last", f"{row['last']['step'] // row['steps_in_epoch']} epochs"),
        ):
            rows.append(
                {
                    "Trained": row["way"],
                    "After": f"{text}: step {row[name]['step']:,}",
                    "Clean test images": percent(**row[name]["clean"]),
                    "Perturbed training images": percent(**row[name]["perturbed"]),
                    "Runs": row["runs"],
                }
            )
    return plain(pd.DataFrame(rows))
