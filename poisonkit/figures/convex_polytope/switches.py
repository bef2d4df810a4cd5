"""What each choice that text and released code leave open changes."""

import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from poisonkit.figures.common import hits_of, plain
from poisonkit.figures.convex_polytope.success import draw_rate, successes
from poisonkit.plots import COLOURS, legend_below, panels
from poisonkit.store import Json, Record

_MEANING = {
    "as described": "target's features read once, with one draw of dropout; Adam's rate in "
    "deviations of a channel",
    "target's dropout drawn anew": "target's features read again in each iteration",
    "no dropout for the target": "target's features read without dropout",
    "no dropout": "dropout off, for the poisons' features as well",
    "steps in pixels": "Adam's rate on the [0, 1] scale (on CIFAR-10 four times as far)",
    "steps in pixels, a fifth": "Adam's rate 0.008 on the [0, 1] scale",
    "a quarter of the steps": "a quarter of the iterations",
}


def without_poisons(record: Record, row: Json) -> Json:
    """Return how many targets the victims of a row take for the class without any poisons."""
    own = _trials(record, row)
    label = own[0]["poison_label"]
    found = [p == label for t in own for entry in t["victims"] for p in entry["clean"]]
    return {"hits": sum(found), "targets": len(found), "rate": sum(found) / len(found)}


def _by_victim(record: Record, row: Json) -> list[float]:
    """Return each victim's rate of success over all targets."""
    found: dict[str, list[bool]] = {}
    for trial in _trials(record, row):
        for entry in trial["victims"]:
            hits = [label == trial["poison_label"] for label in entry["predictions"]]
            found.setdefault(entry["victim"], []).extend(hits)
    return [sum(hits) / len(hits) for hits in found.values()]


def _trials(record: Record, row: Json) -> list[Json]:
    keys = [key for key in ("switch", "epsilon", "poisons") if key in row]
    return [t for t in record.metrics["trials"] if all(t[key] == row[key] for key in keys)]


def switches_figure(record: Record) -> Figure:
    """Draw the rate of success for each switch, over all victims and for single ones."""
    rows = record.metrics["rows"]
    figure, [[axes]] = panels(1, 1, size=(8.5, 1.6 + 0.42 * len(rows)))
    for place, row in enumerate(rows):
        draw_rate(axes, place, row, COLOURS["poisoned"])
        single = [100 * rate for rate in _by_victim(record, row)]
        axes.plot(single, [place + 0.25] * len(single), ".", color="black", ms=4, alpha=0.6)
        axes.plot(100 * without_poisons(record, row)["rate"], place, "k|", ms=12)
    axes.plot([], [], "o", color=COLOURS["poisoned"], ms=7, label="all victims, 95 % interval")
    axes.plot([], [], ".", color="black", ms=4, alpha=0.6, label="one victim")
    axes.plot([], [], "k|", ms=12, label="all victims, without poisons")
    style = {"color": COLOURS["reference"], "ls": "--", "zorder": 0}
    axes.axvline(100 * rows[0]["rate"], label=rows[0]["switch"], **style)
    axes.set_yticks(range(len(rows)), [row["switch"] for row in rows])
    axes.set(xlim=(-3, 103), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xlabel("targets taken for the poisons' class (%)")
    axes.grid(axis="x", alpha=0.3)
    legend_below(figure, axes)
    return figure


def switches_table(record: Record) -> Styler:
    """Return what each switch changes, and the numbers behind :func:`switches_figure`."""
    rows = [
        {
            "Switch": row["switch"],
            "Meaning": _MEANING[row["switch"]],
            "Successes": successes([{**row, "unrounded": row["unrounded"]["rate"]}]),
            "Without poisons": hits_of(without_poisons(record, row)),
            "Last loss, substitutes": f"{row['loss']:.4f}",
            "Squared distance to the polytope, victims": f"{row['to_polytope']:.3f}",
        }
        for row in record.metrics["rows"]
    ]
    return plain(pd.DataFrame(rows))
