"""Figure 4: what becomes of targets while victims train."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from poisonkit.claims.metapoison import NEARLY_ALL
from poisonkit.figures.common import counted, percent, plain
from poisonkit.plots import class_colours, legend_below, panels
from poisonkit.store import Json, Record

#: Labels of axes whose points have bars.
SUCCESS = "targets given\nthe wanted label (%),\n95 % intervals"
ACCURACY = "accuracy on test images (%),\nmean ± standard deviation"


def _by_pair(record: Record) -> tuple[dict[int, list[Json]], list[Json]]:
    trials = record.metrics["trials"]
    pairs: dict[int, list[Json]] = {}
    for trial in trials:
        if trial["pair"] is not None:
            pairs.setdefault(trial["pair"], []).append(trial)
    return pairs, [trial for trial in trials if trial["pair"] is None]


def called(trial: Json) -> str:
    """Return the name of a pair: the target's class and number, and what it shall be."""
    number = trial["targets"][0]
    return f"{trial['target_class']} (no. {number}) as {trial['wanted_class']}"


def curves_figure(record: Record) -> Figure:
    """Draw Figure 4: target loss, success and accuracy by epoch.

    One full line for each pair, a mean over its victims; of loss and accuracy in a band from
    the lowest to the highest. Dashed is what victims trained on clean images make of the
    same target, in the pair's colour. Their accuracy, the same for all pairs, is black. Dotted
    is what the paper says of success.
    """
    pairs, clean = _by_pair(record)
    figure, [axes] = panels(1, 3, size=(9.5, 4.4))
    parts = (
        ("target_loss", "target's loss towards the wanted label", 1.0),
        ("success", "victims that give it (%)", 100.0),
        ("test", "accuracy on test images (%)", 100.0),
    )
    for axis, (name, label, factor) in zip(axes, parts, strict=True):
        for colour, (pair, own) in zip(class_colours(len(pairs)), pairs.items(), strict=True):
            values = factor * np.array([trial["course"][name] for trial in own])
            epochs = np.arange(1, values.shape[1] + 1)
            axis.plot(epochs, values.mean(0), color=colour, label=called(own[0]))
            # A single victim succeeds or does not: a band would only say that both occur.
            if len(own) > 1 and name != "success":
                axis.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.12)
            if name != "test":
                key = f"pair{pair}_{name}"
                untouched = factor * np.array([trial["course"][key] for trial in clean])
                axis.plot(epochs, untouched.mean(0), color=colour, ls="--", lw=1, alpha=0.7)
        if name == "test":
            untouched = factor * np.array([trial["course"][name] for trial in clean])
            axis.plot(epochs, untouched.mean(0), color="black", ls="--", lw=1)
        axis.set(xlabel="epoch", ylabel=label)
        if factor == 100:
            axis.set_ylim(-3, 103)
    axes[1].plot([], [], color="black", ls="--", lw=1, label="clean images")
    if record.config["dataset"] == "cifar10":
        axes[1].axhline(100 * NEARLY_ALL, color="black", ls=":", label="paper: nearly all")
    legend_below(figure, axes[1], columns=3)
    return figure


def victims_table(record: Record) -> Styler:
    """Return what is left in the end, one line a pair."""
    pairs, _ = _by_pair(record)
    lines = []
    for row in record.metrics["rows"]:
        own = pairs[row["pair"]]
        lines.append(
            {
                "Target, wanted": called(own[0]),
                "Poisons": f"{own[0]['poisons']} of class {own[0]['poison_class']}",
                "Success": counted(row),
                "In a training batch": counted(row["in_batch"]),
                "Clean victims": percent(row["clean_rate"], digits=0),
                "Accuracy": accuracy(row),
            }
        )
    whole = record.metrics["all"]
    lines.append(
        {
            "Target, wanted": "all",
            "Poisons": "",
            "Success": counted(whole),
            "In a training batch": counted(whole["in_batch"]),
            "Clean victims": "",
            "Accuracy": f"{accuracy(whole)} "
            f"(clean: {percent(record.metrics['clean_accuracy'], digits=1)})",
        }
    )
    return plain(pd.DataFrame(lines))


def accuracy(row: Json) -> str:
    """Return mean and standard deviation of the accuracy over victims."""
    return percent(**row["accuracy"], digits=1)
