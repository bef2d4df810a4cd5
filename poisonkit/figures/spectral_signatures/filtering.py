"""Tables 2, 3 and 5, and the switches: accuracy before and after the filter."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from poisonkit.claims.spectral_signatures_reported import CLEAN_ACCURACY, TABLE_2, TABLE_3
from poisonkit.figures.common import percent, plain, with_deviation, with_interval
from poisonkit.plots import COLOURS, legend_below, panels
from poisonkit.store import Json, Record

#: Moment, its name and colour.
MOMENTS = {
    "before": ("poisoned training set", "poisoned"),
    "after": ("filtered and retrained", "after"),
    "clean": ("clean training set", "reference"),
}
_KEYS = ("switch", "network", "source", "target", "share")


def backdoor_of(row: Json) -> str:
    """Return the name of a row or run: its switch, or its backdoor (and network)."""
    if "switch" in row:
        return str(row["switch"])
    backdoor = f"{row['source']} → {row['target']}, {row['share']:.0%}"
    return f"{row['network']}: {backdoor}" if "network" in row else backdoor


def reported(row: Json) -> dict[str, float]:
    """Return the paper's numbers for a row, in percent; the means of Table 3's four backdoors."""
    key = (row["source"], row["target"], row["share"])
    if "switch" in row or "network" in row:
        return {}
    names = ("natural_before", "poisoned_before", "left", "natural_after", "poisoned_after")
    if key in TABLE_2:
        found = dict(zip(names, TABLE_2[key][:5], strict=True))
        found |= {"poisoned_clean": TABLE_2[key][5], "natural_clean": CLEAN_ACCURACY}
    elif key in TABLE_3:
        means = np.mean(TABLE_3[key], axis=0).tolist()
        found = dict(zip(names, means, strict=True))
    else:
        return {}
    found["left"] *= 100 / round(row["share"] * 5000)
    return found


def removal_table(record: Record) -> Styler:
    """Return the columns of Table 2, ours above the paper's where it has the same row."""
    rows = []
    for row in record.metrics["rows"]:
        name = backdoor_of(row)
        rows.append(
            {
                "Backdoor": name,
                "": f"ours, {row['runs']} run{'s' * (row['runs'] > 1)}, {row['captured']} captured",
                "Natural 1": _natural(row, "before"),
                "Poisoned 1": _poisoned(row, "before"),
                "Poisons left": _left(row),
                "Natural 2": _natural(row, "after"),
                "Poisoned 2": _poisoned(row, "after"),
                "Clean-trained": _poisoned(row, "clean"),
            }
        )
        if paper := reported(row):
            runs = "1 run" if "poisoned_clean" in paper else "4 backdoors"
            total = round(row["share"] * 5000)
            clean = f"{paper['poisoned_clean']:.2f} %" if "poisoned_clean" in paper else "-"
            rows.append(
                {
                    "Backdoor": name,
                    "": f"paper, {runs}",
                    "Natural 1": f"{paper['natural_before']:.2f} %",
                    "Poisoned 1": f"{paper['poisoned_before']:.2f} %",
                    "Poisons left": f"{paper['left'] * total / 100:.1f} of {total}",
                    "Natural 2": f"{paper['natural_after']:.2f} %",
                    "Poisoned 2": f"{paper['poisoned_after']:.2f} %",
                    "Clean-trained": clean,
                }
            )
    return plain(pd.DataFrame(rows))


def runs_table(record: Record) -> Styler:
    """Return every run of a record's rows with its trigger."""
    rows = []
    for trial in record.metrics["trials"]:
        drawn, total = trial["trigger"], trial["triggered_images"]
        rates = {moment: f"{100 * trial[f'hits_{moment}'] / total:.1f} %" for moment in MOMENTS}
        rows.append(
            {
                "Backdoor": backdoor_of(trial),
                "Seed": trial["seed"],
                "Trigger": f"{drawn['pattern']} at {tuple(drawn['position'])}, "
                f"colour {', '.join(map(str, drawn['colour']))}",
                "Captured": "yes" if trial["captured"] else "no",
                "Poisoned 1": rates["before"],
                "Poisons left": f"{trial['poisons_left']} of {trial['poisons']}",
                "Poisoned 2": rates["after"],
                "Clean-trained": rates["clean"],
            }
        )
    return plain(pd.DataFrame(rows))


def _natural(row: Json, moment: str) -> str:
    return percent(row[f"natural_{moment}"], row[f"natural_{moment}_deviation"])


def _left(row: Json) -> str:
    left = with_deviation(row["poisons_left"], row["poisons_left_deviation"], digits=1)
    return f"{left} of {row['poisons']}"


def _poisoned(row: Json, moment: str) -> str:
    interval = row[f"poisoned_{moment}_interval"]
    return with_interval(row[f"poisoned_{moment}"], *interval, digits=1)


def removal_figure(record: Record) -> Figure:
    """Draw poisoned accuracy, poisons left and natural accuracy, one line a backdoor.

    Large dots are means over the runs with their interval, small ones single runs, open
    diamonds the paper's values.
    """
    rows = record.metrics["rows"]
    figure, [axes] = panels(1, 3, size=(11, 1.9 + 0.42 * len(rows)))
    poisoned, left, natural = axes
    for place, row in enumerate(rows):
        own = [t for t in record.metrics["trials"] if _same(t, row)]
        paper = reported(row)
        for offset, (moment, (_, colour)) in zip((-0.24, 0, 0.24), MOMENTS.items(), strict=True):
            y = place + offset
            rates = [100 * t[f"hits_{moment}"] / t["triggered_images"] for t in own]
            low, high = (100 * end for end in row[f"poisoned_{moment}_interval"])
            _dot(poisoned, y, 100 * row[f"poisoned_{moment}"], (low, high), rates, colour)
            accuracies = [100 * t[f"natural_{moment}"] for t in own]
            mean, spread = 100 * row[f"natural_{moment}"], row[f"natural_{moment}_deviation"]
            ends = None if spread is None else (mean - 100 * spread, mean + 100 * spread)
            _dot(natural, y, mean, ends, accuracies, colour)
            _diamond(poisoned, y, paper.get(f"poisoned_{moment}"), colour)
            _diamond(natural, y, paper.get(f"natural_{moment}"), colour)
        shares = [100 * t["poisons_left"] / t["poisons"] for t in own]
        ends = (min(shares), max(shares))
        _dot(left, place, float(np.mean(shares)), ends, shares, "poisoned")
        _diamond(left, place, paper.get("left"), "poisoned")
    titles = (
        "triggered images called the target",
        "poisoned images that the filter leaves",
        "all test images, classified correctly",
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set_yticks(range(len(rows)), [])
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.grid(axis="x", alpha=0.3)
        axis.set_title(title, fontsize="small")
    poisoned.set_yticks(range(len(rows)), [backdoor_of(row) for row in rows])
    poisoned.set(xlabel="poisoned accuracy (%)", xlim=(-4, 104))
    left.set(xlabel="poisons left (% of epsilon)", xlim=(-4, 104))
    natural.set(xlabel="natural accuracy (%)")
    _legend(figure, any(reported(row) for row in rows))
    return figure


def _same(trial: Json, row: Json) -> bool:
    return all(trial[key] == row[key] for key in _KEYS if key in row)


def _dot(
    axes: Axes,
    y: float,
    value: float,
    ends: tuple[float, float] | None,
    runs: Sequence[float],
    colour: str,
) -> None:
    shade = COLOURS[colour]
    if ends is not None:
        axes.plot(ends, (y, y), color=shade, linewidth=1.5)
    axes.plot(runs, [y] * len(runs), ".", color=shade, ms=3, alpha=0.7)
    axes.plot(value, y, "o", color=shade, ms=6)


def _diamond(axes: Axes, y: float, value: float | None, colour: str) -> None:
    if value is not None:
        axes.plot(value, y, "D", color=COLOURS[colour], mfc="white", ms=5, zorder=3)


def _legend(figure: Figure, with_paper: bool) -> None:
    axes = figure.axes[0]
    for name, colour in MOMENTS.values():
        axes.plot([], [], "o", color=COLOURS[colour], ms=6, label=name)
    axes.plot([], [], ".", color="black", ms=4, label="one run")
    if with_paper:
        axes.plot([], [], "D", color="black", mfc="white", ms=5, label="paper")
    legend_below(figure, axes)


_SWITCH_MEANING = {
    "paper": "the paper's setting",
    "uncentred": "score |R(x) · v| instead of ((R(x) − mean) · v)²",
    "percentile": "remove above the 85th percentile of the label",
    "known": "remove exactly epsilon of each label",
    "target label": "filter the poisoned label only",
    "pooled": "average the feature map over its pixels",
    "replaced": "take the stamped originals out of the source class",
    "bytes": "feed raw values 0 to 255",
    "layer": "read another layer",
    "released, paper's data": "all of the released scoring: layer, score, percentile, one label",
    "released": "the same, and its data: replaced, raw values",
}


def switches_table(record: Record) -> Styler:
    """Return what each switch does to the filter and to the networks trained after it."""
    layer = record.config["other_tap"]
    rows = []
    for row in record.metrics["rows"]:
        own = [trial for trial in record.metrics["trials"] if _same(trial, row)]
        lost = np.mean([t["removed"] - t["poisons"] + t["poisons_left"] for t in own])
        meaning = _SWITCH_MEANING[row["switch"]]
        rows.append(
            {
                "Switch": row["switch"],
                "Meaning": f"{meaning} ({layer})" if row["switch"] == "layer" else meaning,
                "Poisoned 1": _poisoned(row, "before"),
                "Poisons left": _left(row),
                "Clean images lost": f"{lost:,.0f}",
                "Natural 2": _natural(row, "after"),
                "Poisoned 2": _poisoned(row, "after"),
            }
        )
    return plain(pd.DataFrame(rows))
