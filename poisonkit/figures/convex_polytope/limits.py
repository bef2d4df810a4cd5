"""Beyond the paper: bounds, numbers of poisons, and what a spectral filter leaves."""

import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from poisonkit.figures.common import hits_of, percent, plain
from poisonkit.figures.convex_polytope.switches import without_poisons
from poisonkit.plots import COLOURS, legend_below, panels
from poisonkit.store import Json, Record


def _rows(record: Record, varied: str) -> list[Json]:
    """Return the rows in which only one of the two was varied, in its order."""
    other = "poisons" if varied == "epsilon" else "epsilon"
    fixed = (
        record.config["poisons"] if other == "poisons" else record.config["procedure"]["epsilon"]
    )
    return sorted(
        (row for row in record.metrics["rows"] if row[other] == fixed), key=lambda r: r[varied]
    )


def _left_by_chance(record: Record, row: Json) -> float:
    return 1 - float(row["removed"]) / record.config["fine_tuning_per_class"]


def limits_figure(record: Record) -> Figure:
    """Draw the rate of success over all victims, before and after the spectral filter.

    Bands are 95 % intervals, short strokes targets taken for the class without any poisons.
    Below, the poisons that the filter leaves, and those that a random choice of as many
    images would leave.
    """
    figure, [upper, lower] = panels(2, 2, size=(10, 6))
    labels = {"epsilon": "bound of the change (of 255)", "poisons": "number of poisons"}
    for above, below, (varied, label) in zip(upper, lower, labels.items(), strict=True):
        rows = _rows(record, varied)
        unit = 255 if varied == "epsilon" else 1
        x = [unit * row[varied] for row in rows]
        for name, shade, found in (
            ("as they are", COLOURS["poisoned"], rows),
            ("after the filter", COLOURS["after"], [row["filtered"] for row in rows]),
        ):
            above.plot(x, [100 * one["rate"] for one in found], "o-", color=shade, label=name)
            low, high = ([100 * one[k] for one in found] for k in ("low", "high"))
            above.fill_between(x, low, high, color=shade, alpha=0.15)
        clean = [100 * without_poisons(record, row)["rate"] for row in rows]
        above.plot(x, clean, "k_", ms=10, label="without poisons")
        left = [100 * row["left"] for row in rows]
        below.plot(x, left, "k:", label="left by the filter")
        chance = [100 * _left_by_chance(record, row) for row in rows]
        below.plot(x, chance, ":", color=COLOURS["reference"], label="left by random removal")
        above.set_ylabel("targets taken for\nthe poisons' class (%)")
        below.set(xlabel=label, ylabel="poisons left (%)")
        for part in (above, below):
            part.set_ylim(-3, 103)
            part.grid(alpha=0.3)
    legend_below(figure, upper[0], lower[0])
    return figure


def limits_table(record: Record) -> Styler:
    """Return the numbers behind :func:`limits_figure`."""
    rows = [
        {
            "Bound": f"{255 * row['epsilon']:.1f} of 255",
            "Poisons": row["poisons"],
            "Successes": hits_of(row),
            "Without poisons": hits_of(without_poisons(record, row)),
            "After the filter": hits_of(row["filtered"]),
            "Poisons left": percent(row["left"], digits=0),
            "Removed at random": percent(_left_by_chance(record, row), digits=0),
            "AUROC of the scores": f"{row['auroc']:.2f}",
            "Removed of each class": row["removed"],
        }
        for row in record.metrics["rows"]
    ]
    return plain(pd.DataFrame(rows))
