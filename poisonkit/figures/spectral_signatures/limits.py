"""Beyond the paper: where the filter stops working, and Lemma 3.1 in numbers."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from poisonkit.experiments.spectral_signatures.limits import layer_name
from poisonkit.plots import COLOURS, Slider, legend_below, panels, slider
from poisonkit.store import Json, Record

_MARKERS = {"X": "X", "L": "s", "pixel": "o"}


def limits_figure(record: Record) -> Figure:
    """Draw the backdoor's rate and the poisons left against the poison share, by shape.

    Filled marks are runs that captured the backdoor, open ones runs that did not; lines
    go through the means.
    """
    layer = layer_name(record.config["tap"], record.config["pool"])
    factors = record.metrics["factors"]
    at = factors.index(1.5)
    figure, [[attack, defence]] = panels(1, 2, size=(11, 4.2))
    colours = dict(zip(record.config["patterns"], sns.color_palette("colorblind"), strict=False))
    for pattern, colour in colours.items():
        own = [t for t in record.metrics["trials"] if t["pattern"] == pattern]
        for trial in own:
            face = colour if trial["captured"] else "white"
            marker = _MARKERS.get(pattern, "o")
            rate = 100 * trial["hits_before"] / trial["triggered_images"]
            style = {"marker": marker, "color": colour, "mfc": face, "ms": 6, "ls": ""}
            attack.plot(100 * trial["share"], rate, **style)
            if layer in trial["layers"]:
                left = 100 * trial["layers"][layer]["left"][at] / trial["poisons"]
                defence.plot(100 * trial["share"], left, **style)
        rows = [row for row in record.metrics["rows"] if row["pattern"] == pattern]
        shares = [100 * row["share"] for row in rows]
        attack.plot(shares, [100 * row["poisoned_before"] for row in rows], color=colour, lw=1)
        if rows and layer in rows[0]["layers"]:
            means = [100 * row["layers"][layer]["left"][0] / row["poisons"] for row in rows]
            defence.plot(shares, means, color=colour, lw=1, label=pattern)
    chance = [(100 * t["share"], _chance(t, 1.5)) for t in record.metrics["trials"]]
    defence.plot(
        *zip(*sorted(set(chance)), strict=True),
        color=COLOURS["reference"],
        ls="--",
        label="removing at random",
    )
    attack.axhline(90, color=COLOURS["reference"], ls="--")
    attack.annotate(
        "captured",
        (1, 90),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        fontsize="small",
        color="#666666",
    )
    attack.set(ylabel="poisoned accuracy, unfiltered (%)", title="does the attack work?")
    defence.set(
        ylabel="poisons left (% of epsilon)",
        title=f"does the filter? ({layer}, 1.5 epsilon removed)",
    )
    for axis in (attack, defence):
        _share_axis(axis, sorted({100 * t["share"] for t in record.metrics["trials"]}))
    defence.plot([], [], "o", color="black", mfc="white", label="not captured")
    legend_below(figure, defence)
    return figure


def _chance(trial: Json, factor: float) -> float:
    """Return the percentage of poisons left if images of the label were removed at random."""
    return 100 * max(0.0, 1 - factor * trial["poisons"] / trial["label_images"])


def _share_axis(axes: Axes, shares: list[float]) -> None:
    axes.set(xscale="log", xlabel="poisoned images (% of the target class)", ylim=(-4, 104))
    axes.set_xticks(shares, [f"{share:g}" for share in shares])
    axes.minorticks_off()


def layers_figure(record: Record) -> Figure:
    """Draw the mean percentage of poisons left after 1.5 epsilon, by layer, share and shape."""
    patterns = record.config["patterns"]
    layers = [layer_name(tap, pool) for tap, pool in record.config["layers"]]
    figure, [axes] = panels(1, len(patterns), size=(11, 1.6 + 0.42 * len(layers)))
    for axis, pattern in zip(axes, patterns, strict=True):
        rows = [row for row in record.metrics["rows"] if row["pattern"] == pattern]
        table = pd.DataFrame(
            {
                f"{100 * row['share']:g}": {
                    layer: 100 * row["layers"][layer]["left"][0] / row["poisons"]
                    for layer in layers
                }
                for row in rows
            }
        )
        last = pattern == patterns[-1]
        sns.heatmap(
            table,
            ax=axis,
            vmin=0,
            vmax=100,
            cmap="rocket_r",
            annot=True,
            fmt=".0f",
            annot_kws={"size": "small"},
            cbar=last,
            cbar_kws={"label": "poisons left (%)"},
            yticklabels=pattern == patterns[0],
        )
        axis.tick_params(axis="y", rotation=0)
        axis.tick_params(axis="x", rotation=0)
        captured = sum(row["captured"] for row in rows)
        total = sum(row["runs"] for row in rows)
        axis.set(
            title=f"{pattern}: {captured} of {total} runs captured", xlabel="poisoned images (%)"
        )
    return figure


def removals_figure(record: Record, layer: str) -> Figure:
    """Draw poisons left against the number removed, one curve a share, for one layer."""
    patterns = record.config["patterns"]
    factors = record.metrics["factors"]
    shares = record.config["shares"]
    colours = dict(zip(shares, sns.color_palette("viridis_r", len(shares)), strict=True))
    figure, [axes] = panels(1, len(patterns), size=(11, 3.6))
    for axis, pattern in zip(axes, patterns, strict=True):
        for share, colour in colours.items():
            own = [
                t
                for t in record.metrics["trials"]
                if (t["pattern"], t["share"]) == (pattern, share)
            ]
            curves = np.array([t["layers"][layer]["left"] for t in own], dtype=float)
            curves *= 100 / own[0]["poisons"]
            axis.plot(factors, curves.mean(0), color=colour, label=f"{100 * share:g} %")
            axis.fill_between(factors, curves.min(0), curves.max(0), color=colour, alpha=0.15)
        axis.plot([0, 1], [100, 0], color=COLOURS["reference"], ls="--", label="perfect")
        axis.axvline(1.5, color="black", lw=0.8, ls=":")
        axis.set(title=pattern, xlabel="removed (multiples of epsilon)", ylim=(-4, 104))
    axes[0].set_ylabel("poisons left (% of epsilon)")
    legend_below(figure, axes[0], columns=len(shares) + 1)
    return figure


def removals_slider(record: Record) -> Slider:
    """Return :func:`removals_figure` with a slider over the layers."""
    layers = [layer_name(tap, pool) for tap, pool in record.config["layers"]]
    shown = layer_name(record.config["tap"], record.config["pool"])
    frames = [(layer, removals_figure(record, layer)) for layer in layers]
    return slider(frames, label="Layer", start=layers.index(shown) if shown in layers else 0)


def lemma_figure(record: Record) -> Figure:
    """Draw how far two parts overlap along the top vector against the gap of their means.

    Top: the smallest share e for which they are e-separable, in units of epsilon; below 1
    they are epsilon-spectrally separable. Bottom: how well the top vector points along the
    gap. Bands are standard deviations over the draws.
    """
    names = record.config["distributions"]
    epsilons = record.config["epsilons"]
    colours = dict(zip(epsilons, sns.color_palette("viridis_r", len(epsilons)), strict=True))
    figure, axes = panels(2, len(names), size=(11, 6))
    for column, name in enumerate(names):
        for epsilon, colour in colours.items():
            own = [
                row
                for row in record.metrics["rows"]
                if (row["distribution"], row["epsilon"]) == (name, epsilon)
            ]
            gaps = [row["gap"] for row in own]
            for axis, key, scale in (
                (axes[0][column], "overlap", 1 / epsilon),
                (axes[1][column], "alignment", 1.0),
            ):
                mean = np.array([row[key][0] for row in own]) * scale
                spread = np.array([row[key][1] or 0 for row in own]) * scale
                axis.plot(gaps, mean, color=colour, label=f"epsilon = {epsilon:g}")
                axis.fill_between(gaps, mean - spread, mean + spread, color=colour, alpha=0.2)
        for axis in axes[:, column]:
            axis.axvline(record.metrics["bound"], color="black", ls="--", lw=1)
            axis.set(xscale="log", xlabel="squared gap (units of sigma² / epsilon)")
            axis.set_xticks([0.25, 1, 3, 6, 24], ["0.25", "1", "3", "6", "24"])
            axis.minorticks_off()
        axes[0][column].axhline(1, color=COLOURS["reference"], ls="--", lw=1)
        axes[0][column].set_title(name)
        axes[0][column].set_yscale("symlog", linthresh=1)
        axes[0][column].set_ylim(-0.1, 60)
        axes[0][column].set_yticks([0, 0.5, 1, 3, 10, 30], ["0", "0.5", "1", "3", "10", "30"])
        axes[1][column].set_ylim(-0.03, 1.03)
    axes[0][0].set_ylabel("overlap / epsilon\n(below 1: separable)")
    axes[1][0].set_ylabel("|v · direction of the gap|")
    axes[0][0].annotate(
        "Lemma 3.1",
        (record.metrics["bound"], 50),
        ha="right",
        va="top",
        rotation=90,
        fontsize="small",
    )
    legend_below(figure, axes[0][0])
    return figure
