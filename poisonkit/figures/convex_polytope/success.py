"""Figures 1, 5, 6, 7 and 8: how often targets are taken for the poisons' class."""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import ColorType
from pandas.io.formats.style import Styler

from poisonkit.claims.convex_polytope import COLLISION, FIGURE_5, GRAY_BOX
from poisonkit.figures.common import counted, percent, plain, with_deviation
from poisonkit.plots import COLOURS, legend_below, panels
from poisonkit.statistics import mean_and_deviation, wilson
from poisonkit.store import Json, Record

#: Names of the objectives, as the papers call them.
METHODS = {
    "collision": "Feature Collision",
    "polytope": "Convex Polytope",
    "bullseye": "Bullseye Polytope",
}
_SHADES = ("clean", "poisoned", "after", "reference")
_DIAMOND = {"ls": "", "marker": "D", "mfc": "white", "ms": 6, "zorder": 4}


def _named(key: str, value: object) -> str:
    if key == "objective":
        return METHODS[str(value)]
    return f"{percent(float(str(value)), digits=0)} in common" if key == "overlap" else str(value)


def _key(record: Record) -> str:
    return next(k for k in ("objective", "overlap", "attack") if k in record.metrics["rows"][0])


def _paper(record: Record, value: object, victim: str) -> float | None:
    if record.experiment != "convex_polytope/transfer" or value != "polytope":
        return None
    return FIGURE_5.get(victim) if record.config["dataset"] == "cifar10" else None


def _shades(count: int) -> list[ColorType]:
    """Return so many colours, the book's own as far as they go."""
    if count <= len(_SHADES):
        return [COLOURS[name] for name in _SHADES[:count]]
    return list(sns.color_palette("husl", count))


def _bounds(record: Record) -> dict[str, float]:
    """Return rates that the paper's text says are not reached, or are exceeded."""
    if record.config["dataset"] != "cifar10":
        return {}
    return {
        "convex_polytope/transfer": {"Feature Collision stays below": COLLISION},
        "convex_polytope/end_to_end": {"several layers, known networks, above": GRAY_BOX},
    }.get(record.experiment, {})


def draw_rate(axes: Axes, y: float, row: Json, shade: ColorType, *, filled: bool = True) -> None:
    """Draw a rate with its interval."""
    axes.plot((100 * row["low"], 100 * row["high"]), (y, y), color=shade, linewidth=1.5)
    axes.plot(100 * row["rate"], y, "o", color=shade, mfc=shade if filled else "white", ms=7)


def success_figure(record: Record) -> Figure:
    """Draw each victim's rate of success with its 95 % interval, one colour a way to craft."""
    key, rows = _key(record), record.metrics["rows"]
    values = list(dict.fromkeys(row[key] for row in rows))
    victims = list(dict.fromkeys(row["victim"] for row in rows))
    height = 0.25 + 0.16 * len(values)
    figure, [[axes]] = panels(1, 1, size=(8.5, 1.3 + height * len(victims)))
    offsets = 0.13 * (len(values) - 1) * np.linspace(-1, 1, len(values))
    for value, offset, colour in zip(values, offsets, _shades(len(values)), strict=True):
        for row in rows:
            if row[key] == value:
                draw_rate(axes, victims.index(row["victim"]) + offset, row, colour)
        marks = [
            (found, place + offset)
            for place, victim in enumerate(victims)
            if (found := _paper(record, value, victim)) is not None
        ]
        axes.plot([], [], "o", color=colour, label=_named(key, value))
        if marks:
            x, y = zip(*marks, strict=True)
            axes.plot(x, y, color="black", label="paper's code, told by its authors", **_DIAMOND)
    for words, height in _bounds(record).items():
        axes.axvline(100 * height, color="black", ls=":", lw=1, label=f"paper: {words}")
    clean = [next(r["clean"] for r in rows if r["victim"] == victim) for victim in victims]
    axes.plot([100 * c for c in clean], range(len(victims)), "k|", ms=10, label="without poisons")
    known = set(record.config["substitutes"])
    shown = [name if name in known else f"{name} (unknown)" for name in victims]
    axes.set_yticks(range(len(victims)), shown)
    axes.set(xlim=(-3, 103), ylim=(len(victims) - 0.5, -0.5))
    axes.set_xlabel("targets taken for the poisons' class (%)")
    axes.grid(axis="x", alpha=0.3)
    legend_below(figure, axes, columns=3)
    return figure


def success_table(record: Record) -> Styler:
    """Return the numbers behind :func:`success_figure`, one line a victim and one for all."""
    key, rows = _key(record), record.metrics["rows"]
    values = list(dict.fromkeys(row[key] for row in rows))
    victims = list(dict.fromkeys(row["victim"] for row in rows))
    shown = []
    for victim in [*victims, "all"]:
        entry: dict[str, object] = {"Victim": victim}
        for value in values:
            own = [r for r in rows if r[key] == value and victim in (r["victim"], "all")]
            entry[_named(key, value)] = successes(own)
        if key == "objective" and record.config["dataset"] == "cifar10":
            reported = _paper(record, "polytope", victim)
            entry["Paper"] = "-" if reported is None else f"{reported:.0f} %"
        clean = [r["clean"] for r in rows if r[key] == values[0] and victim in (r["victim"], "all")]
        entry["Clean"] = percent(float(np.mean(clean)), digits=0)
        fitted = [
            [r["fitted"] for r in rows if r[key] == value and victim in (r["victim"], "all")]
            for value in values
            if "fitted" in rows[0]
        ]
        if fitted:
            entry["Fitted"] = ", ".join(f"{100 * float(np.mean(own)):.0f}" for own in fitted) + " %"
        shown.append(entry)
    return plain(pd.DataFrame(shown))


def successes(rows: Sequence[Json]) -> str:
    """Return successes, rate and interval over some rows, and the successes before rounding."""
    hits, targets = sum(row["hits"] for row in rows), sum(row["targets"] for row in rows)
    low, high = wilson(hits, targets)
    rate = {"hits": hits, "targets": targets, "rate": hits / targets, "low": low, "high": high}
    text = counted(rate)
    if "unrounded" in rows[0]:
        before = round(sum(row["unrounded"] * row["targets"] for row in rows))
        text += f" ({before} before rounding)" if before != hits else ""
    return text


def accuracy_figure(record: Record) -> Figure:
    """Draw the accuracy on test images, fine-tuned with poisons and without (Figure 8)."""
    key, rows = _key(record), record.metrics["rows"]
    values = list(dict.fromkeys(row[key] for row in rows))
    victims = list(dict.fromkeys(row["victim"] for row in rows))
    figure, [[axes]] = panels(1, 1, size=(8.5, 1.3 + 0.45 * len(victims)))
    offsets = 0.1 * (len(values) - 1) * np.linspace(-1, 1, len(values))
    for value, offset, colour in zip(values, offsets, _shades(len(values)), strict=True):
        own = [row for row in rows if row[key] == value]
        y = np.array([victims.index(row["victim"]) for row in own]) + offset
        spread = [100 * (row["accuracy_deviation"] or 0) for row in own]
        axes.errorbar(
            [100 * row["accuracy"] for row in own],
            y,
            xerr=spread,
            fmt="o",
            ms=5,
            color=colour,
            label=_named(key, value),
        )
    clean = [next(r["clean_accuracy"] for r in rows if r["victim"] == v) for v in victims]
    axes.plot([100 * c for c in clean], range(len(victims)), "k|", ms=12, label="without poisons")
    axes.set_yticks(range(len(victims)), victims)
    axes.set(ylim=(len(victims) - 0.5, -0.5), xlabel="accuracy on test images (%)")
    axes.grid(axis="x", alpha=0.3)
    legend_below(figure, axes, columns=3)
    return figure


def distance_figure(record: Record) -> Figure:
    """Draw success by the distance between target and poisons in the victim's features.

    Each mark is a fifth of all pairs of a target and a victim, in the order of the distance.
    """
    figure, [axes] = panels(1, 2, size=(10, 3.8))
    kinds = {"to_poison": "to the poisons, on average", "to_polytope": "to their polytope"}
    label = record.metrics["trials"][0]["poison_label"]
    for part, (name, words) in zip(axes, kinds.items(), strict=True):
        for objective, colour in zip(METHODS, _SHADES, strict=False):
            pairs = [
                (distance**0.5, prediction == label)
                for trial in record.metrics["trials"]
                if trial["objective"] == objective
                for entry in trial["victims"]
                for distance, prediction in zip(entry[name], entry["predictions"], strict=True)
            ]
            if len(pairs) >= 5:
                _by_fifths(part, sorted(pairs), COLOURS[colour], METHODS[objective])
        part.set(xlabel=f"distance {words}\n(in lengths of the target's features)", ylim=(-3, 103))
        part.set_ylabel("taken for the poisons' class (%)")
        part.grid(alpha=0.3)
    legend_below(figure, axes[0])
    return figure


def _by_fifths(axes: Axes, pairs: Sequence[tuple[float, bool]], colour: str, label: str) -> None:
    cuts = np.linspace(0, len(pairs), 6).astype(int)
    parts = [pairs[a:b] for a, b in itertools.pairwise(cuts)]
    x = [float(np.median([distance for distance, _ in part])) for part in parts]
    rates = [sum(hit for _, hit in part) / len(part) for part in parts]
    bounds = np.array([wilson(sum(hit for _, hit in part), len(part)) for part in parts])
    axes.plot(x, 100 * np.array(rates), "o-", color=colour, ms=5, label=label)
    axes.fill_between(x, 100 * bounds[:, 0], 100 * bounds[:, 1], color=colour, alpha=0.12)


def likeness_table(record: Record) -> Styler:
    """Return how much the poisons' changes resemble their targets, for each objective."""
    rows = []
    for objective in dict.fromkeys(trial["objective"] for trial in record.metrics["trials"]):
        own = [t for t in record.metrics["trials"] if t["objective"] == objective]
        values = [value for trial in own for value in trial["likeness"]]
        mean, deviation = mean_and_deviation(values)
        change = float(np.mean([trial["mean_change"] for trial in own]))
        rows.append(
            {
                "Poisons by": METHODS[objective],
                "Cosine of change and target's picture": with_deviation(mean, deviation or 0),
                "Mean change of a value": f"{change:.1f} of 255",
            }
        )
    return plain(pd.DataFrame(rows))
