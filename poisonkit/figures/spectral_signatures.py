"""The figures and tables of the Spectral Signatures chapter."""

import math
from collections.abc import Iterator

import pandas as pd
import torch
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler
from torch import Tensor

from poisonkit.attacks.backdoor import PATTERNS, Trigger
from poisonkit.claims.spectral_signatures import CLEAN_ACCURACY, TABLE_2, VIEWS
from poisonkit.figures.common import plain
from poisonkit.plots import COLOURS, Bar, Slider, bars, panels, show_images, slider, two_histograms
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
_ROW_KEYS = ("source", "target", "share")
_MOMENTS = {
    "before": ("poisoned\ntraining set", "poisoned"),
    "after": ("filtered,\nretrained", "after"),
    "clean": ("clean\ntraining set", "reference"),
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
        spread = "" if seen["deviation"] is None else f" ± {seen['deviation']:.2f}"
        axis.set_title(f"{space}: AUROC {seen['mean']:.2f}{spread}")
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


def removal_table(record: Record) -> Styler:
    """Return the columns of Table 2, ours above the paper's where it has the same row."""
    rows = []
    for row in record.metrics["rows"]:
        name = f"{row['source']} → {row['target']}, {row['share']:.0%}"
        rows.append(
            {
                "Backdoor": name,
                "": f"ours, {row['runs']} runs, {row['captured']} captured",
                "Natural 1": _spread(row, "before"),
                "Poisoned 1": _rate(row, "before"),
                "Poisons left": f"{row['poisons_left']:.1f} of {row['poisons']}",
                "Natural 2": _spread(row, "after"),
                "Poisoned 2": _rate(row, "after"),
                "Clean-trained, poisoned": _rate(row, "clean"),
            }
        )
        if paper := TABLE_2.get((row["source"], row["target"], row["share"])):
            natural_1, poisoned_1, left, natural_2, poisoned_2, standard = paper
            rows.append(
                {
                    "Backdoor": name,
                    "": "paper, 1 run",
                    "Natural 1": f"{natural_1:.2f} %",
                    "Poisoned 1": f"{poisoned_1:.2f} %",
                    "Poisons left": f"{left} of {round(row['share'] * 5000)}",
                    "Natural 2": f"{natural_2:.2f} %",
                    "Poisoned 2": f"{poisoned_2:.2f} %",
                    "Clean-trained, poisoned": f"{standard:.2f} %",
                }
            )
    return plain(pd.DataFrame(rows))


def runs_table(record: Record) -> Styler:
    """Return every run of Table 2's rows with its trigger."""
    rows = []
    for trial in record.metrics["trials"]:
        drawn, total = trial["trigger"], trial["triggered_images"]
        rates = {moment: f"{100 * trial[f'hits_{moment}'] / total:.1f} %" for moment in _MOMENTS}
        rows.append(
            {
                "Backdoor": f"{trial['source']} → {trial['target']}, {trial['share']:.0%}",
                "Seed": trial["seed"],
                "Trigger": f"{drawn['pattern']} at {tuple(drawn['position'])}, "
                f"colour {', '.join(map(str, drawn['colour']))}",
                "Captured": "yes" if trial["captured"] else "no",
                "Poisoned 1": rates["before"],
                "Poisons left": f"{trial['poisons_left']} of {trial['poisons']}",
                "Poisoned 2": rates["after"],
                "Clean-trained, poisoned": rates["clean"],
            }
        )
    return plain(pd.DataFrame(rows))


def _spread(row: Json, moment: str) -> str:
    deviation = row[f"natural_{moment}_deviation"]
    spread = "" if deviation is None else f" ± {100 * deviation:.2f}"
    return f"{100 * row[f'natural_{moment}']:.2f}{spread} %"


def _rate(row: Json, moment: str) -> str:
    low, high = row[f"poisoned_{moment}_interval"]
    return f"{100 * row[f'poisoned_{moment}']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def removal_figure(record: Record) -> Figure:
    """Draw natural and poisoned accuracy before and after the filter, and for clean training."""
    rows = record.metrics["rows"]
    figure, axes = panels(len(rows), 2, size=(10, 3.8 * len(rows)))
    for (left, right), row in zip(axes, rows, strict=True):
        own = [t for t in record.metrics["trials"] if all(t[k] == row[k] for k in _ROW_KEYS)]
        paper = TABLE_2.get((row["source"], row["target"], row["share"]))
        bars(left, list(_natural_bars(row, own, paper)), ylabel="natural accuracy (%)")
        bars(right, list(_poisoned_bars(row, own, paper)), ylabel="poisoned accuracy (%)")
        left.set_title(f"all test images; {row['runs']} runs, deviation")
        right.set_title(f"triggered {row['source']} called {row['target']}; Wilson interval, 95 %")
        if paper:
            right.plot([], [], "D", color=COLOURS["paper"], mfc="white", label="paper")
        right.plot([], [], "o", color="black", ms=3, label="one run")
        right.legend(loc="upper right")
    return figure


def _natural_bars(row: Json, own: list[Json], paper: tuple[float, ...] | None) -> Iterator[Bar]:
    values = (paper[0], paper[3], CLEAN_ACCURACY) if paper else ()
    reported = dict(zip(_MOMENTS, values, strict=False))
    for moment, (label, colour) in _MOMENTS.items():
        height, deviation = row[f"natural_{moment}"], row[f"natural_{moment}_deviation"]
        yield Bar(
            label=label,
            height=100 * height,
            interval=None
            if deviation is None
            else (100 * (height - deviation), 100 * (height + deviation)),
            runs=[100 * trial[f"natural_{moment}"] for trial in own],
            paper=reported.get(moment),
            colour=colour,
        )


def _poisoned_bars(row: Json, own: list[Json], paper: tuple[float, ...] | None) -> Iterator[Bar]:
    values = (paper[1], paper[4], paper[5]) if paper else ()
    reported = dict(zip(_MOMENTS, values, strict=False))
    for moment, (label, colour) in _MOMENTS.items():
        low, high = row[f"poisoned_{moment}_interval"]
        yield Bar(
            label=label,
            height=100 * row[f"poisoned_{moment}"],
            interval=(100 * low, 100 * high),
            runs=[100 * trial[f"hits_{moment}"] / trial["triggered_images"] for trial in own],
            paper=reported.get(moment),
            colour=colour,
        )


def threshold_figure(
    scores: Tensor, poisoned: Tensor, *, removed: int, centred: bool = True
) -> Figure:
    """Draw the outlier scores of a label with the threshold that removes the ``removed`` highest.

    The horizontal axis is the distance along the top singular vector: of centred
    scores the square root, from the mean; of the released code's uncentred ones the
    score itself, from the origin.
    """
    distance = scores.clamp_min(0).sqrt() if centred else scores
    label = QUANTITIES["top"] if centred else "distance from the origin along the top vector"
    ordered = distance.sort(descending=True).values
    gone = torch.zeros(len(scores), dtype=torch.bool)
    gone[scores.argsort(descending=True, stable=True)[:removed]] = True
    mask = poisoned.bool()
    figure, [[axis]] = panels(1, 1, size=(7.5, 3.6))
    two_histograms(axis, distance, mask, label=label)
    if 0 < removed < len(scores):
        threshold = float(ordered[removed - 1 : removed + 1].mean())
        axis.axvline(threshold, color="black", linestyle="--")
        axis.axvspan(threshold, float(ordered[0]), color=COLOURS["reference"], alpha=0.3, zorder=0)
    axis.set_title(
        f"removed {removed} of {len(scores)}: "
        f"poisoned {int((gone & mask).sum())} of {int(mask.sum())}, "
        f"clean {int((gone & ~mask).sum())} of {int((~mask).sum())}"
    )
    axis.legend()
    return figure


def threshold_slider(record: Record, trial: int | None = None, *, steps: int = 13) -> Slider:
    """Return the filter's threshold moved by a slider, from no removal to 3 epsilon."""
    trial = first_shown(record) if trial is None else trial
    scores, mask = record.arrays[f"{trial}.scores"], record.arrays[f"{trial}.poisoned"]
    frames = []
    for number in range(steps):
        factor = 3 * number / (steps - 1)
        removed = min(math.ceil(factor * int(mask.sum())), len(scores) - 1)
        centred = bool(record.config["centred"])
        figure = threshold_figure(scores, mask, removed=removed, centred=centred)
        frames.append((f"{factor:.2f} epsilon = {removed} images", figure))
    return slider(frames, label="Images removed", start=(steps - 1) // 2)
