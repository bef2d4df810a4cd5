"""Figures 2 and 3: poisons, and the target's loss and success from step to step."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from poisonkit.claims.metapoison import clean_loss
from poisonkit.figures.metapoison.victims import ACCURACY, SUCCESS
from poisonkit.plots import COLOURS, Slider, draw_poisons, legend_below, panels, slider
from poisonkit.statistics import mean_and_deviation
from poisonkit.store import Json, Record


def _first_pair(record: Record) -> tuple[int, Json]:
    """Return the trial that holds the pictures of the first pair, and its number."""
    trials = record.metrics["trials"]
    number = next(k for k, trial in enumerate(trials) if "unrolled" in trial and not trial["pair"])
    return number, trials[number]


def kept_steps(record: Record) -> list[int]:
    """Return after how many crafting steps victims were trained."""
    return [int(row["crafted"]) for row in record.metrics["rows"]]


def poisons_figure(record: Record, kept: int | None = None) -> Figure:
    """Draw Figure 2: the target, some poisons, what they were, and how they were changed.

    Parameters
    ----------
    kept : which of the kept steps to show; the last one by default.
    """
    number, trial = _first_pair(record)
    last = len(kept_steps(record)) - 1
    chosen = last if kept is None else kept
    arrays = record.arrays
    return draw_poisons(
        arrays[f"{number}.pictures.target"][0],
        arrays[f"{number}.pictures.bases"],
        {"": arrays[f"{number}.pictures.poisons.{chosen}"]},
        epsilon=trial["largest_change"] / 255,
        target_class=trial["target_class"],
        poison_class=trial["poison_class"],
    )


def poisons_slider(record: Record) -> Slider:
    """Return :func:`poisons_figure` behind a slider over the crafting steps."""
    steps = kept_steps(record)
    frames = [(f"after {step} steps", poisons_figure(record, k)) for k, step in enumerate(steps)]
    return slider(frames, label="crafting step")


def losses_figure(record: Record) -> Figure:
    """Draw Figure 3a: the target's loss towards the wanted label, in surrogates and victims.

    Lines are means over the pairs; the victims' points are means over all of them, their bars
    go from the lowest to the highest; dotted is the mean over victims of clean images.
    """
    trials = record.metrics["trials"]
    figure, [[axes]] = panels(1, 1, size=(8.5, 4))
    for name, label, colour in (
        ("unaffected", "surrogates as they are", "clean"),
        ("unrolled", "surrogates after the unrolled steps", "after"),
    ):
        values = np.array([trial[name] for trial in trials if name in trial])
        axes.plot(range(values.shape[1]), values.mean(0), color=COLOURS[colour], label=label)
    _victims_losses(axes, record)
    clean = mean_and_deviation([clean_loss(trial) for trial in trials])[0]
    axes.axhline(clean, color="black", ls=":", label="victims of clean images")
    wanted = record.config["procedure"]["objective"]
    note = "" if wanted == "cross-entropy" else " (surrogates: margin)"
    axes.set(xlabel="crafting step", ylabel=f"target's loss, cross-entropy{note}", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize="small")
    return figure


def _victims_losses(axes: Axes, record: Record) -> None:
    steps = kept_steps(record)
    values = [
        [t["course"]["target_loss"][-1] for t in record.metrics["trials"] if t["crafted"] == step]
        for step in steps
    ]
    means = np.array([mean_and_deviation(own)[0] for own in values])
    bars = [means - [min(own) for own in values], [max(own) for own in values] - means]
    axes.errorbar(
        steps,
        means,
        bars,
        fmt="o-",
        color=COLOURS["poisoned"],
        capsize=3,
        label="victims, last epoch: mean, lowest and highest",
    )


def steps_figure(record: Record) -> Figure:
    """Draw Figure 3b: success in victims, and their accuracy, by crafting step.

    Bars of the success are 95 % intervals over targets and victims, those of the accuracy
    standard deviations; dotted is how often victims of clean images succeed.
    """
    rows = record.metrics["rows"]
    steps = kept_steps(record)
    figure, [[left, right]] = panels(1, 2, size=(8.5, 3.8))
    for own, label, colour, offset in (
        (rows, "target in eval mode", "poisoned", 0.0),
        ([row["in_batch"] for row in rows], "target in a training batch", "after", 0.2),
    ):
        rates = np.array([[100 * row[key] for row in own] for key in ("rate", "low", "high")])
        left.errorbar(
            [step + offset for step in steps],
            rates[0],
            [rates[0] - rates[1], rates[2] - rates[0]],
            fmt="o-",
            color=COLOURS[colour],
            capsize=3,
            label=label,
        )
    clean = 100 * rows[-1]["clean_rate"]
    left.axhline(clean, color="black", ls=":", label="victims of clean images")
    left.set(xlabel="crafting step", ylabel=SUCCESS, ylim=(-3, 103))
    legend_below(figure, left)
    means = [100 * row["accuracy"]["mean"] for row in rows]
    bars = [100 * (row["accuracy"]["deviation"] or 0) for row in rows]
    right.errorbar(steps, means, bars, fmt="o-", color=COLOURS["clean"], capsize=3)
    right.set(xlabel="crafting step", ylabel=ACCURACY, ylim=(0, 103))
    return figure
