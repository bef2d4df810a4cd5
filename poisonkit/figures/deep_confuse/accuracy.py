"""Tables 1 and 2, Figure 8, and the attacker's own judgement of the generators."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from poisonkit.claims.deep_confuse_reported import FIGURE_8, TABLE_1, TABLE_2
from poisonkit.figures.common import percent, plain
from poisonkit.figures.deep_confuse.shared import (
    guessing_line,
    on_paper_data,
    paper_marks,
    reported,
)
from poisonkit.plots import COLOURS, class_colours, legend_below, panels
from poisonkit.store import Json, Record

_KINDS = {
    "clean": "clean images",
    "perturbed": "perturbed images",
    "unrounded": "perturbed images, noise not rounded",
}
_PARTS = {"train": "the training images", "test": "clean test images"}
_STYLES = {"train": "--", "test": "-"}


def accuracy_table(record: Record) -> Styler:
    """Return Table 1: the test accuracy by what was trained on, in eval mode and otherwise."""
    found, paper = record.metrics["accuracy"], on_paper_data(record)
    numbers = dict(zip(_KINDS, TABLE_1[paper], strict=False)) if paper else {}
    kinds = dict(_KINDS)
    if record.config.get("noise") == "anew":
        # Then they are the perturbed ones.
        del kinds["unrounded"]
    rows = [
        {
            "Trained on": name,
            "Tested on": "clean images",
            "Eval mode": percent(**found[f"{kind}.accuracy"]),
            "Batch statistics": percent(**found[f"{kind}.batch_statistics"]),
            "Paper": reported(numbers.get(kind)),
        }
        for kind, name in kinds.items()
    ]
    seen = {"Trained on": _KINDS["perturbed"], "Tested on": "perturbed images"}
    both = {"Eval mode": percent(**found["perturbed.on_perturbed_test"]), "Batch statistics": "-"}
    rows.append({**seen, **both, "Paper": "-"})
    return _with_runs(record, rows)


def noise_table(record: Record) -> Styler:
    """Return Table 2: the accuracy on noise alone, after training on images with it, or on it."""
    found, paper = record.metrics["accuracy"], on_paper_data(record)
    numbers = dict(zip(("train", "test"), TABLE_2[paper], strict=True)) if paper else {}
    rows = [
        {
            "Trained on": trained,
            "Tested on": f"noise of {name} images",
            "Accuracy": percent(**found[f"{kind}.{part}"]),
            "Paper": f"{numbers[part]:.2f} %" if numbers and kind == "on_noise" else "-",
        }
        for kind, trained in (("on_noise", _KINDS["perturbed"]), ("noise_alone", "noise alone"))
        for part, name in (("train", "training"), ("test", "test"))
    ]
    return _with_runs(record, rows)


def _with_runs(record: Record, rows: list[dict[str, str]]) -> Styler:
    if on_paper_data(record) is None:
        rows = [{key: text for key, text in row.items() if key != "Paper"} for row in rows]
    trials = record.metrics["trials"]
    generators = len({trial["generator"] for trial in trials})
    runs = f"{len(trials)}, of {generators} generator{'s' if generators > 1 else ''}"
    return plain(pd.DataFrame([{**row, "Runs": runs} for row in rows]))


def curves_figure(record: Record) -> Figure:
    """Draw Figure 8: the accuracy during training, on the training images and on clean ones.

    Lines are means over the runs, bands go from the lowest run to the highest. The
    paper's horizontal unit is not stated; its last value is put at our last epoch.
    """
    figure, [axes] = panels(1, 2, size=(8.5, 4.2))
    for axis, (kind, colour) in zip(
        axes, {"clean": "clean", "perturbed": "poisoned"}.items(), strict=True
    ):
        for part, style in _STYLES.items():
            curves = 100 * np.array([trial[kind][part] for trial in record.metrics["trials"]])
            epochs = np.arange(1, curves.shape[1] + 1)
            shade = COLOURS[colour]
            marker = "." if len(epochs) < 8 else ""
            axis.plot(epochs, curves.mean(0), style, marker=marker, color=shade)
            axis.fill_between(epochs, curves.min(0), curves.max(0), color=shade, alpha=0.2, lw=0)
        axis.set(xlabel="epoch", ylim=(-4, 104), title=f"trained on {_KINDS[kind]}")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("accuracy (%)")
    for part, style in _STYLES.items():
        axes[1].plot([], [], style, color="#666666", label=f"on {_PARTS[part]}")
    if dataset := on_paper_data(record):
        _paper_curves(axes[1], dataset, record.config["recipe"]["epochs"])
    legend_below(figure, axes[1], columns=2)
    return figure


def _paper_curves(axes: Axes, dataset: str, epochs: int) -> None:
    curves = FIGURE_8[dataset]
    last = max(curves["train"])
    above = axes.twiny()
    above.spines["top"].set_visible(True)
    above.set_xlim(-0.02 * last, 1.03 * last)
    above.set_xlabel("iteration (paper)", fontsize="small")
    above.tick_params(labelsize="small")
    axes.set_xlim(-0.02 * epochs, 1.03 * epochs)
    for part, marker in (("train", "^"), ("test", "D")):
        points = {x / last * epochs: y for x, y in curves[part].items()}
        label = f"paper, on {_PARTS[part]}"
        paper_marks(axes, [*points], [*points.values()], label=label, marker=marker, ms=4)


def trials_figure(record: Record) -> Figure:
    """Draw what the generators leave of the accuracy against the trials they learned for.

    One colour a generator; a ring marks the one that the record's rule selects.
    """
    courses: dict[int, list[Json]] = {}
    for trial in record.metrics["trials"]:
        courses.setdefault(trial["generator"], trial["learning"]["checks"])
    selection = record.config["selection"]
    figure, [[axes]] = panels(1, 1, size=(8.5, 3.8))
    for colour, (generator, checks) in zip(
        class_colours(len(courses)), courses.items(), strict=True
    ):
        x = [check["trial"] for check in checks]
        for name, style in (("validation", "-"), ("test", "--")):
            if name not in checks[0]:
                continue
            y = [100 * check[name] for check in checks]
            label = f"generator {generator}, {name} images"
            axes.plot(x, y, style, marker=".", color=colour, label=label)
        scores = [check.get(selection, 0.0) for check in checks]
        chosen = max(place for place, score in enumerate(scores) if score == min(scores))
        shown = selection if selection != "last" else "validation"
        level = 100 * checks[chosen][shown if shown in checks[chosen] else "test"]
        axes.plot(x[chosen], level, "o", color=colour, mfc="none", ms=12, mew=1.5)
    axes.plot([], [], "o", color="black", mfc="none", ms=12, mew=1.5, label="selected")
    wrong = record.config["procedure"]["label_map"] is not None
    guessing_line(axes, record, missed=wrong)
    axes.set(
        xlabel="trials that the generator has learned for",
        ylabel="not called as wished (%)" if wrong else "accuracy (%)",
        ylim=(-4, 104),
    )
    axes.xaxis.get_major_locator().set_params(integer=True)
    legend_below(figure, axes)
    return figure
