"""Figure 10: what each class is taken for, and the label-specific attack."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from pandas.io.formats.style import Styler

from poisonkit.claims.deep_confuse_reported import (
    HIT_RATE_WITHOUT_MAP,
    LABEL_MAP_ACCURACY,
    LABEL_MAP_BY_CLASS,
    LABEL_MAP_HIT_RATE,
    TABLE_1,
)
from poisonkit.figures.common import percent, plain
from poisonkit.figures.deep_confuse.shared import (
    guessing_line,
    on_paper_data,
    paper_marks,
    reported,
)
from poisonkit.plots import COLOURS, panels
from poisonkit.statistics import mean_and_deviation
from poisonkit.store import Record

_TITLES = {
    "clean": "clean images",
    "any wrong label": "images perturbed for any wrong label",
    "label map": "images perturbed for the label map",
}
#: Accuracy and hit rate that the paper reports, with their deviations.
_PAPER: dict[str, dict[str, tuple[float, float | None]]] = {
    "clean": {"accuracy": TABLE_1["mnist"][0]},
    "any wrong label": {
        "accuracy": TABLE_1["mnist"][1],
        "hit_rate": (HIT_RATE_WITHOUT_MAP, None),
    },
    "label map": {"accuracy": LABEL_MAP_ACCURACY, "hit_rate": LABEL_MAP_HIT_RATE},
}
#: The paper's map: the next digit, and zero for nine.
_NEXT = [*range(1, 10), 0]
_MEASURES = {"accuracy": "called what they are", "hit_rate": "called what the map says"}


def confusion_figure(record: Record) -> Figure:
    """Draw the confusion matrices of Figure 10 by what was trained on, and the hit rates.

    Shares of each class in percent, means over the runs; small frames mark the label
    map. In the last panel, large dots are means with their standard deviation, small
    ones single runs, open diamonds the paper's values.
    """
    figure, axes = panels(2, 2, size=(8.5, 8.2))
    label_map = record.config["label_map"]
    for axis, row in zip(axes.flat, record.metrics["rows"], strict=False):
        draw_confusion(axis, row["confusion"], label_map)
        axis.set_title(_TITLES[row["kind"]])
    _rates(axes[1][1], record)
    return figure


def draw_confusion(
    axes: Axes, confusion: Sequence[Sequence[float]], label_map: Sequence[int]
) -> None:
    """Draw a confusion matrix of shares; frames mark what the label map wants."""
    shares = 100 * np.array(confusion)
    written = np.where(shares >= 0.5, np.round(shares).astype(int).astype(str), "")
    sns.heatmap(
        shares,
        ax=axes,
        vmin=0,
        vmax=100,
        cmap="rocket_r",
        square=True,
        cbar=False,
        annot=written,
        fmt="",
        annot_kws={"size": 8},
    )
    for label, wanted in enumerate(label_map):
        axes.add_patch(_frame(wanted, label))
    axes.tick_params(axis="both", rotation=0, length=0)
    axes.set(xlabel="called (%)", ylabel="class of the clean test image")


def _frame(column: int, row: int) -> Rectangle:
    return Rectangle((column, row), 1, 1, fill=False, edgecolor=COLOURS["clean"], linewidth=1.2)


def _is_papers(record: Record) -> bool:
    """Tell whether a record is on the paper's data with the paper's map."""
    return on_paper_data(record) == "mnist" and record.config["label_map"] == _NEXT


def _rates(axes: Axes, record: Record) -> None:
    kinds = [row["kind"] for row in record.metrics["rows"]]
    for offset, (name, colour) in zip(
        (-0.12, 0.12), {"accuracy": "clean", "hit_rate": "poisoned"}.items(), strict=True
    ):
        shade = COLOURS[colour]
        for place, kind in enumerate(kinds):
            runs = [100 * t[name] for t in record.metrics["trials"] if t["kind"] == kind]
            mean, deviation = mean_and_deviation(runs)
            axes.errorbar(place + offset, mean, deviation, fmt="o", color=shade, ms=7, capsize=3)
            axes.plot([place + offset] * len(runs), runs, ".", color="black", ms=3, alpha=0.6)
            if _is_papers(record) and name in _PAPER[kind]:
                paper_marks(axes, [place + offset], [_PAPER[kind][name][0]], color=shade, ms=6)
        axes.plot([], [], "o", color=shade, label=_MEASURES[name])
    if _is_papers(record):
        paper_marks(axes, [], [], label="paper")
    guessing_line(axes, record)
    axes.set_xticks(range(len(kinds)), [kind.replace(" ", "\n", 1) for kind in kinds])
    axes.set(ylim=(-4, 104), xlim=(-0.5, len(kinds) - 0.5), ylabel="clean test images (%)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize="small")


def label_map_table(record: Record) -> Styler:
    """Return accuracy and hit rate of each kind, and the paper's."""
    paper = _is_papers(record)
    rows = []
    for row in record.metrics["rows"]:
        shown = {"Trained on": _TITLES[row["kind"]]}
        for name, title in {"accuracy": "Accuracy", "hit_rate": "Hit rate"}.items():
            shown[title] = percent(row[name], row[f"{name}_deviation"])
            if paper:
                shown[f"{title}, paper"] = reported(_PAPER[row["kind"]].get(name))
        rows.append({**shown, "Runs": row["runs"]})
    return plain(pd.DataFrame(rows))


def map_by_class_table(record: Record) -> Styler:
    """Return how often each class is called what the map wants, by what was trained on.

    Where noise for any wrong label does as much, a class is no success of the map.
    """
    label_map = record.config["label_map"]
    paper = _is_papers(record)
    rows = []
    for label, wanted in enumerate(label_map):
        shown: dict[str, object] = {"Class": label, "Wanted": wanted}
        for row in record.metrics["rows"]:
            share = row["confusion"][label][wanted]
            shown[_TITLES[row["kind"]].capitalize()] = percent(share, digits=0)
        if paper:
            shown["Label map, paper"] = f"{LABEL_MAP_BY_CLASS[label]:.0f} %"
        rows.append(shown)
    return plain(pd.DataFrame(rows))
