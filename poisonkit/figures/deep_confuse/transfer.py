"""Figures 6 and 7: classifiers that the generator was not learned with."""

import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from poisonkit.claims.deep_confuse_reported import FIGURE_6, FIGURE_7, TABLE_1
from poisonkit.figures.common import percent, plain
from poisonkit.figures.deep_confuse.shared import (
    Series,
    accuracy_rows,
    chance,
    on_paper_data,
)
from poisonkit.store import Record


def _paper(record: Record) -> dict[str, tuple[float, float]]:
    """Return the paper's accuracies by classifier, those that we do not run included."""
    dataset = on_paper_data(record)
    if dataset is None:
        return {}
    if dataset == "mnist":
        return FIGURE_6
    (clean, _), (perturbed, _) = TABLE_1[dataset]
    return {"original": (clean, perturbed), **FIGURE_7[dataset]}


def transfer_figure(record: Record) -> Figure:
    """Draw the accuracy of each classifier after training on clean and on perturbed images.

    Classifiers that only the paper has are at the bottom.
    """
    ours, paper = record.config["classifiers"], _paper(record)
    names = [*ours, *(name for name in paper if name not in ours)]
    series = [
        Series(
            label=f"trained on {kind} images",
            colour=colour,
            runs=[
                [t[kind] for t in record.metrics["trials"] if t["classifier"] == name]
                for name in names
            ],
            paper=[paper[name][place] if name in paper else None for name in names],
        )
        for place, (kind, colour) in enumerate({"clean": "clean", "perturbed": "poisoned"}.items())
    ]
    shown = [name if name in ours else f"{name} (paper's)" for name in names]
    xlabel = "accuracy on clean test images (%)"
    return accuracy_rows(shown, series, guessing=chance(record), xlabel=xlabel)


def transfer_table(record: Record) -> Styler:
    """Return the numbers behind :func:`transfer_figure`."""
    paper = _paper(record)
    rows = []
    for row in record.metrics["rows"]:
        reported = paper.get(row["classifier"])
        shown = {
            "Classifier": row["classifier"],
            "Trained on clean images": percent(row["clean"], row["clean_deviation"]),
            "On perturbed images": percent(row["perturbed"], row["perturbed_deviation"]),
        }
        if paper:
            values = ["-" if reported is None else f"{value:.2f} %" for value in reported or "--"]
            shown |= dict(zip(("Paper, clean", "Paper, perturbed"), values, strict=True))
        rows.append({**shown, "Runs": row["runs"]})
    return plain(pd.DataFrame(rows))
