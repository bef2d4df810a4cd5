"""Beyond the paper: bounds, numbers of poisons, and what a spectral filter leaves."""

import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from poisonkit.figures.common import plain
from poisonkit.figures.convex_polytope.success import in_words, without_poisons
from poisonkit.plots import COLOURS, panels
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

    Dotted are the poisons that the filter leaves, and those that a random choice of as many
    images would leave; short strokes are targets taken for the class without any poisons.
    """
    figure, [axes] = panels(1, 2, size=(10, 3.8))
    labels = {"epsilon": "bound of the change (of 255)", "poisons": "number of poisons"}
    for part, (varied, label) in zip(axes, labels.items(), strict=True):
        rows = _rows(record, varied)
        unit = 255 if varied == "epsilon" else 1
        x = [unit * row[varied] for row in rows]
        shown = {
            "as they are": ("poisoned", rows),
            "after the filter": (
                "after",
                [row["filtered"] for row in rows],
            ),
        }
        for name, (colour, found) in shown.items():
            shade = COLOURS[colour]
            part.plot(x, [100 * one["rate"] for one in found], "o-", color=shade, label=name)
            low, high = ([100 * one[k] for one in found] for k in ("low", "high"))
            part.fill_between(x, low, high, color=shade, alpha=0.15)
        left = [100 * row["left"] for row in rows]
        part.plot(x, left, "k:", label="poisons that the filter leaves")
        chance = [100 * _left_by_chance(record, row) for row in rows]
        part.plot(x, chance, ":", color=COLOURS["reference"], label="poisons, removed at random")
        clean = [100 * without_poisons(record, row)["rate"] for row in rows]
        part.plot(x, clean, "k_", ms=10, label="without poisons")
        part.set(xlabel=label, ylabel="share (%)", ylim=(-3, 103))
        part.grid(alpha=0.3)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize="small")
    return figure


def limits_table(record: Record) -> Styler:
    """Return the numbers behind :func:`limits_figure`."""
    rows = [
        {
            "Bound": f"{255 * row['epsilon']:.1f} of 255",
            "Poisons": row["poisons"],
            "Successes": f"{row['hits']} of {row['targets']}",
            "Without poisons": in_words(without_poisons(record, row)),
            "After the filter": f"{row['filtered']['hits']} of {row['filtered']['targets']}",
            "Poisons left": f"{100 * row['left']:.0f} %",
            "Removed at random": f"{100 * _left_by_chance(record, row):.0f} %",
            "AUROC of the scores": f"{row['auroc']:.2f}",
            "Removed of each class": row["removed"],
        }
        for row in record.metrics["rows"]
    ]
    return plain(pd.DataFrame(rows))
