"""Beyond the paper: whose trace the filter finds."""

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from poisonkit.figures.common import plain, with_deviation
from poisonkit.figures.spectral_signatures.filtering import backdoor_of
from poisonkit.plots import COLOURS, legend_below, panels, two_histograms
from poisonkit.store import Record

#: Kinds as they fit below an axis.
_SHORT = {"trigger and wrong label": "trigger and\nwrong label"}


def trace_figure(record: Record) -> Figure:
    """Draw, for the attack and each half of it, how far the marked images stand out.

    One mark a run; filled where the backdoor was captured. Bars are means over the runs of
    a pair and share.
    """
    kinds = record.config["kinds"]
    trials = record.metrics["trials"]
    backdoors = list(dict.fromkeys(backdoor_of(t) for t in trials))
    colours = dict(zip(backdoors, sns.color_palette("colorblind", len(backdoors)), strict=True))
    figure, [axes] = panels(1, 3, size=(11, 4.2))
    chance = [100 * (1 - 1.5 * t["poisons"] / t["label_images"]) for t in trials]
    panel = (
        ("AUROC of the outlier scores", lambda t: t["auroc"], 0.5),
        (
            "marked images left (%)",
            lambda t: 100 * t["left"] / t["poisons"],
            sum(chance) / len(chance),
        ),
        (
            "marked images given their label (%)",
            lambda t: 100 * t["fitted"] / t["poisons"],
            None,
        ),
    )
    for axis, (label, value, by_chance) in zip(axes, panel, strict=True):
        for number, (backdoor, colour) in enumerate(colours.items()):
            shift = 0.22 * (number - (len(backdoors) - 1) / 2)
            for at, kind in enumerate(kinds):
                own = [t for t in trials if (t["kind"], backdoor_of(t)) == (kind, backdoor)]
                values = [value(t) for t in own]
                if values:
                    mean = sum(values) / len(values)
                    axis.plot([at + shift - 0.08, at + shift + 0.08], [mean] * 2, color=colour)
                for trial, found in zip(own, values, strict=True):
                    face = colour if trial["captured"] else "white"
                    axis.plot(at + shift, found, "o", color=colour, mfc=face, ms=6)
        if by_chance is not None:
            axis.axhline(by_chance, color=COLOURS["reference"], ls="--")
            axis.annotate(
                "chance",
                (0.01, by_chance),
                xycoords=("axes fraction", "data"),
                va="bottom",
                fontsize="small",
                color="#666666",
            )
        axis.set_xticks(range(len(kinds)), [_SHORT.get(kind, kind) for kind in kinds])
        axis.set(ylabel=label, xlim=(-0.5, len(kinds) - 0.5))
    axes[0].set_ylim(0, 1.03)
    for axis in axes[1:]:
        axis.set_ylim(-4, 104)
    for backdoor, colour in colours.items():
        axes[0].plot([], [], "o", color=colour, label=backdoor)
    axes[0].plot([], [], "o", color="black", mfc="white", label="not captured")
    legend_below(figure, axes[0])
    return figure


def trace_scores_figure(record: Record) -> Figure:
    """Draw the outlier scores of each backdoor's first run: a row a backdoor, a column a kind."""
    kinds = record.config["kinds"]
    trials = record.metrics["trials"]
    backdoors = list(dict.fromkeys(backdoor_of(t) for t in trials))
    figure, axes = panels(len(backdoors), len(kinds), size=(11, 0.6 + 2.5 * len(backdoors)))
    for row, backdoor in zip(axes, backdoors, strict=True):
        for axis, kind in zip(row, kinds, strict=True):
            number = next(
                number
                for number, t in enumerate(trials)
                if (t["kind"], backdoor_of(t)) == (kind, backdoor)
            )
            scores = record.arrays[f"{number}.scores"].double().clamp_min(0).sqrt()
            marked = record.arrays[f"{number}.poisoned"]
            two_histograms(axis, scores, marked, label="distance along top v")
            if not axis.get_subplotspec().is_first_col():
                axis.set_ylabel("")
            if not axis.get_subplotspec().is_last_row():
                axis.set_xlabel("")
            title = f"{backdoor}\n" if axis.get_subplotspec().is_first_col() else "\n"
            axis.set_title(f"{title}{kind}: AUROC {trials[number]['auroc']:.2f}")
    legend_below(figure, axes[0][0], labels=["the label's other images", "marked images"])
    return figure


def trace_table(record: Record) -> Styler:
    """Return a row for the attack and each half of it on each pair: means over its runs."""
    rows = [
        {
            "Marked by": row["kind"],
            "Backdoor": backdoor_of(row),
            "Runs": f"{row['runs']}, {row['captured']} captured",
            "Poisoned accuracy": f"{row['poisoned_before']:.1%}",
            "Given their label": f"{row['fitted'][0]:.1%}",
            "AUROC": with_deviation(*row["auroc"], digits=3),
            "Left of marked": f"{with_deviation(*row['left'], digits=0)} of {row['poisons']}",
            "Largest singular value": f"× {with_deviation(*row['rise'])}",
        }
        for row in record.metrics["rows"]
    ]
    return plain(pd.DataFrame(rows))
