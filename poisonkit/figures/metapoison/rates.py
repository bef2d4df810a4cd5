"""Figures 5 and 6c, and all else that is a rate of success under one change."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from poisonkit.claims.metapoison import FEW, OFTEN
from poisonkit.figures.common import counted, percent, plain
from poisonkit.figures.metapoison.victims import ACCURACY, SUCCESS, accuracy, called
from poisonkit.plots import COLOURS, class_colours, legend_below, panels
from poisonkit.store import Record

_KEYS = ("change", "scenario", "switch", "measure", "budget")
_SWITCH_MEANING = {
    "paper": "the paper's setting; all others begin here",
    "margin loss": "by how much another logit exceeds the wanted one, not the cross-entropy",
    "loss of all unrolled steps": "the mean loss over the unrolled steps, not the last one's",
    "smaller change, and of colours": "a bound of 8 of 255; a smooth change of colours beside it",
    "first batch's poisons in all steps": "later unrolled steps see these once more, no others",
    "range of pixels may be left": "poisons are cut off at the start of the crafting only",
    "poisons not rounded": "victims train on the numbers that were crafted",
    "released": "all that the code does otherwise, how it trains included; the scale stays",
    "poisons changed after every batch": "as in Algorithm 1, not once an epoch as in the code",
    "target normalised as in use": "by the surrogates' running averages, not with a batch",
    "surrogates trained on poisons": "on the poisons as they are so far, not on clean images",
    "surrogates trained on clean images": "as in the paper, where the profile takes poisons",
    "one unrolled step": "surrogates are looked ahead one step",
    "two unrolled steps": "surrogates are looked ahead two steps",
    "sign of the gradient": "the crafting's steps follow it, not Adam",
}


def _key(record: Record) -> str:
    return next(key for key in _KEYS if key in record.metrics["rows"][0])


def rates_figure(record: Record) -> Figure:
    """Draw the rate of success for each change, with 95 % intervals; small dots are single pairs.

    Full circles are targets in eval mode, open ones targets within a training batch; upright
    strokes are what victims of clean images do anyway.
    """
    key, rows = _key(record), record.metrics["rows"]
    figure, [[axes]] = panels(1, 1, size=(8.5, 1.6 + 0.5 * len(rows)))
    pairs = record.metrics.get("by_pair", [])
    for place, row in enumerate(rows):
        for own, offset, filled in ((row, -0.12, True), (row["in_batch"], 0.12, False)):
            shade = COLOURS["poisoned"]
            y = place + offset
            axes.plot((100 * own["low"], 100 * own["high"]), (y, y), color=shade, lw=1.5)
            axes.plot(100 * own["rate"], y, "o", color=shade, mfc=shade if filled else "white")
        if "clean_rate" in row:
            axes.plot(100 * row["clean_rate"], place, "k|", ms=12)
        single = [100 * one["rate"] for one in pairs if one[key] == row[key]]
        axes.plot(single, [place - 0.12] * len(single), ".", color="black", ms=4, alpha=0.6)
    axes.plot([], [], "o", color=COLOURS["poisoned"], label="eval mode")
    axes.plot([], [], "o", color=COLOURS["poisoned"], mfc="white", label="in a training batch")
    if pairs:
        axes.plot([], [], ".", color="black", ms=4, label="one pair, eval mode")
    if any("clean_rate" in row for row in rows):
        axes.plot([], [], "k|", ms=12, label="victims of clean images, eval mode")
    axes.set_yticks(range(len(rows)), [str(row[key]) for row in rows])
    axes.set(xlim=(-3, 103), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xlabel("targets given the wanted label (%)")
    axes.grid(axis="x", alpha=0.3)
    legend_below(figure, axes)
    return figure


def rates_table(record: Record) -> Styler:
    """Return the numbers behind :func:`rates_figure`, one line a change; what a switch changes.

    And how sure victims are of the wanted label, the mean of its probability with the lowest
    and the highest: where all give it, that tells changes apart.
    """
    key, trials = _key(record), record.metrics["trials"]
    lines = []
    for row in record.metrics["rows"]:
        sure = [p for one in trials if one[key] == row[key] for p in one["wanted_probability"]]
        line = {
            key.capitalize(): str(row[key]),
            **({"Meaning": _SWITCH_MEANING[row["switch"]]} if key == "switch" else {}),
            "Success": counted(row),
            "Wanted label's probability": f"{percent(float(np.mean(sure)), digits=0)} "
            f"({100 * min(sure):.0f} to {100 * max(sure):.0f})",
            "In a training batch": counted(row["in_batch"]),
            "Accuracy": accuracy(row),
            "Victims": str(row["victims"]),
        }
        if "clean_rate" in row:
            line["Clean victims"] = percent(row["clean_rate"], digits=0)
        if "kept_poisons" in row:
            line["Poisons left"] = f"{row['kept_poisons']} of {row['poisons']}"
        lines.append(line)
    return plain(pd.DataFrame(lines).fillna("-"))


def budget_figure(record: Record) -> Figure:
    """Draw Figure 5a: success by the number of poisons, one line a pair, and their mean.

    Bars of the success are 95 % intervals over the victims of all pairs, those of the accuracy
    standard deviations over the same; the dash-dotted line is what the paper says.
    """
    rows, pairs = record.metrics["rows"], record.metrics["by_pair"]
    figure, [[left, right]] = panels(1, 2, size=(9, 3.8))
    rates = np.array([[100 * row[key] for row in rows] for key in ("rate", "low", "high")])
    budgets = [row["budget"] for row in rows]
    left.errorbar(
        budgets,
        rates[0],
        [rates[0] - rates[1], rates[2] - rates[0]],
        fmt="o-",
        color=COLOURS["poisoned"],
        capsize=3,
        label="all pairs",
        zorder=3,
    )
    numbers = sorted({row["pair"] for row in pairs})
    for colour, number in zip(class_colours(len(numbers)), numbers, strict=True):
        own = [row for row in pairs if row["pair"] == number]
        trial = next(t for t in record.metrics["trials"] if t["pair"] == number)
        label = called(trial)
        values = [100 * row["rate"] for row in own]
        left.plot([row["budget"] for row in own], values, ".--", color=colour, lw=1, label=label)
    left.axhline(100 * rows[0]["clean_rate"], color="black", ls=":", label="clean victims")
    if record.config["dataset"] == "cifar10":
        images = 10 * (record.config["images_per_class"] or 5000)
        few = [share * images for share in FEW]
        left.plot(few, [100 * OFTEN] * 2, "k-.", label="paper: above, with 3 to 10 %")
    left.set(xlabel="poisons", ylabel=SUCCESS, ylim=(-3, 103))
    legend_below(figure, left)
    means = [100 * row["accuracy"]["mean"] for row in rows]
    bars = [100 * (row["accuracy"]["deviation"] or 0) for row in rows]
    right.errorbar(budgets, means, bars, fmt="o-", color=COLOURS["clean"], capsize=3)
    right.set(xlabel="poisons", ylabel=ACCURACY, ylim=(0, 103))
    return figure


def targets_figure(record: Record) -> Figure:
    """Draw for each target how near a clean network was to the wanted label, and the success."""
    trials = record.metrics["trials"]
    figure, [[axes]] = panels(1, 1, size=(8.5, 4))
    for success, label, colour in (
        (1.0, "given the wanted label", "poisoned"),
        (0.0, "not given it", "clean"),
    ):
        own = [trial for trial in trials if trial["course"]["success"][-1] == success]
        x = [max(trial["clean"]["wanted_probability"][0], 1e-12) for trial in own]
        y = [max(trial["wanted_probability"][0], 1e-12) for trial in own]
        axes.plot(x, y, "o", color=COLOURS[colour], alpha=0.8, label=f"{label} ({len(own)})")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="probability of the wanted label (0 to 1), network trained on clean images",
        ylabel="probability of the wanted label (0 to 1),\nnetwork trained on poisons",
        title="{target_class} that is to be called {wanted_class}".format_map(trials[0]),
    )
    axes.axline((0.1, 0.1), (1, 1), color=COLOURS["reference"], ls="--", zorder=0)
    axes.legend(fontsize="small")
    return figure
