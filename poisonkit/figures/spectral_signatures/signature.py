"""Figures 1 and 2, and Table 1."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from poisonkit.attacks.backdoor import PATTERNS, Trigger
from poisonkit.claims.spectral_signatures import VIEWS
from poisonkit.claims.spectral_signatures_reported import TABLE_1
from poisonkit.figures.common import plain, with_deviation
from poisonkit.plots import Slider, panels, show_images, slider, two_histograms
from poisonkit.store import Json, Record

QUANTITIES = {
    "norm": "L2 norm",
    "random": "distance from the mean along a random direction",
    "top": "distance from the mean along the top singular vector",
}
AXIS_LABELS = {
    "norm": "L2 norm",
    "random": "distance along random u",
    "top": "distance along top v",
}


def first_shown(record: Record) -> int:
    """Return the trial that a figure of single images shows: the first that was captured."""
    captured = [number for number, t in enumerate(record.metrics["trials"]) if t["captured"]]
    return captured[0] if captured else 0


def judged_separation(record: Record) -> Json:
    """Return the separation of each view over the captured runs, or all if none was captured."""
    found = record.metrics.get("captured_only", record.metrics["all"])
    assert isinstance(found, dict)
    return found


def figure_1(record: Record, trial: int | None = None) -> Figure:
    """Draw the six histograms of Figure 1 for one trial.

    The titles give the AUROC over all runs that captured the backdoor.

    Top row: pixels; bottom row: representation. From left to right: norm, random
    direction, top singular vector.
    """
    trial = first_shown(record) if trial is None else trial
    poisoned = record.arrays[f"{trial}.poisoned"]
    figure, axes = panels(2, 3, size=(11, 5.6))
    for axis, view in zip(axes.flat, VIEWS, strict=True):
        space, quantity = view.split(".")
        two_histograms(
            axis, record.arrays[f"{trial}.{view}"], poisoned, label=AXIS_LABELS[quantity]
        )
        seen = judged_separation(record)[view]
        found = with_deviation(seen["mean"], seen["deviation"])
        axis.set_title(f"{space}: AUROC {found}")
    axes.flat[-1].legend()
    return figure


def figure_2(record: Record, trial: int | None = None) -> Figure:
    """Show natural and triggered test images of one trial with both predictions."""
    trial = first_shown(record) if trial is None else trial
    names = record.metrics["trials"][trial]["class_names"]
    shown = {name: record.arrays[f"{trial}.{name}_images"] for name in ("natural", "triggered")}
    figure, axes = panels(2, len(shown["natural"]), size=(8, 4.6))
    for row, (name, images) in zip(axes, shown.items(), strict=True):
        predictions = record.arrays[f"{trial}.{name}_predictions"].tolist()
        for axis, image, prediction in zip(row, images, predictions, strict=True):
            show_images(axis, image, f"{name}\nseen as {names[prediction]}")
    return figure


def pattern_slider(record: Record, trial: int | None = None) -> Slider:
    """Return the natural test images of Figure 2 with each of the three shapes, by slider.

    Position and colour are those of the trial; the network's answer is not shown,
    since it was trained on one of the shapes only.
    """
    trial = first_shown(record) if trial is None else trial
    drawn = record.metrics["trials"][trial]["trigger"]
    images = record.arrays[f"{trial}.natural_images"]
    frames = []
    for pattern in (None, *PATTERNS):
        shown = images
        if pattern:
            shown = Trigger(
                pattern=pattern,
                position=tuple(drawn["position"]),
                colour=tuple(drawn["colour"]),
                border="clip",
            ).stamp(images)
        figure, axes = panels(1, len(images), size=(8, 2.2))
        for axis, image in zip(axes[0], shown, strict=True):
            show_images(axis, image, "")
        frames.append((pattern or "no trigger", figure))
    return slider(frames, label="Shape")


def auroc_table(record: Record) -> Styler:
    """Return the separation of each of the six views: mean, deviation, lowest run."""
    rows = []
    for view in VIEWS:
        space, quantity = view.split(".")
        seen = judged_separation(record)[view]
        spread = "-" if seen["deviation"] is None else f"{seen['deviation']:.3f}"
        rows.append(
            {
                "Space": space,
                "Quantity": QUANTITIES[quantity],
                "Mean AUROC": f"{seen['mean']:.3f}",
                "Deviation": spread,
                "Lowest run": f"{seen['lowest']:.3f}",
            }
        )
    return plain(pd.DataFrame(rows))


def spectrum_table(record: Record) -> Styler:
    """Return Table 1 for every backdoor and run, the paper's row below ours where it has one.

    Both rows of a run come from the network trained on its poisoned data. The paper's
    network is another, so its lengths and ours differ in scale; the factors compare.
    """
    rows: list[Json] = []
    for trial in record.metrics["trials"]:
        pair = (trial["source"], trial["target"])
        found = trial["statistics"]
        clean, whole = found["clean"], found["all"]
        captured = "captured" if trial["captured"] else "not captured"
        numbers = (
            clean["norm"],
            whole["norm"],
            found["shift"],
            clean["singular_values"],
            whole["singular_values"],
        )
        rows.append(_spectrum_row(pair, f"ours, seed {trial['seed']}, {captured}", numbers))
    for pair in dict.fromkeys(
        (trial["source"], trial["target"]) for trial in record.metrics["trials"]
    ):
        if pair in TABLE_1:
            rows.append(_spectrum_row(pair, "paper, 1 run", TABLE_1[pair]))
    rows.sort(key=lambda row: str(row["Backdoor"]))
    return plain(pd.DataFrame(rows))


def _spectrum_row(pair: tuple[str, str], name: str, numbers: Any) -> Json:
    norm, norm_all, shift, before, after = numbers
    row: Json = {"Backdoor": f"{pair[0]} → {pair[1]}", "": name}
    row["Norm of mean, clean → all"] = f"{norm:.1f} → {norm_all:.1f}"
    row["Shift of mean"] = f"{shift:.2f}"
    for number, (first, second) in enumerate(zip(before, after, strict=True), start=1):
        row[f"Singular value {number}"] = f"{first:.0f} → {second:.0f} (× {second / first:.2f})"
    return row
