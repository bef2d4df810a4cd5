"""Figures 4 and 9: poisons beside the images that they were made from, and their target."""

from matplotlib.figure import Figure

from poisonkit.figures.convex_polytope.success import METHODS
from poisonkit.plots import Slider, draw_poisons, slider
from poisonkit.store import Record


def poisons_figure(record: Record, number: int = 0) -> Figure:
    """Draw bases, poisons and their changes for one target, two rows for each objective."""
    trials = record.metrics["trials"]
    first = [k for k, trial in enumerate(trials) if trial["first"] == 0]
    names, label = trials[0]["class_names"], trials[0]["poison_label"]
    return draw_poisons(
        record.arrays[f"{first[0]}.targets"][number],
        record.arrays[f"{first[0]}.bases"],
        {METHODS[trials[k]["objective"]]: record.arrays[f"{k}.poisons"][number] for k in first},
        epsilon=record.config["procedure"]["epsilon"],
        target_class=record.config["target_class"],
        poison_class=names[label],
    )


def poisons_slider(record: Record) -> Slider:
    """Return :func:`poisons_figure` behind a slider over the targets."""
    count = len(record.arrays["0.targets"])
    frames = [(f"target {k + 1}", poisons_figure(record, k)) for k in range(count)]
    return slider(frames, label="target")
