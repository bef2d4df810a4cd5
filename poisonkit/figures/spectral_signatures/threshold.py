"""Where the filter's threshold lies among the scores of a label."""

import math

import torch
from matplotlib.figure import Figure
from torch import Tensor

from poisonkit.figures.spectral_signatures.signature import QUANTITIES, first_shown
from poisonkit.plots import COLOURS, Slider, panels, slider, two_histograms
from poisonkit.store import Record


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
