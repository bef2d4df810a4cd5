"""Figure 6a and b: weights on their way, and distances in feature space."""

import numpy as np
from matplotlib.figure import Figure

from poisonkit.plots import COLOURS, panels
from poisonkit.store import Record

_KINDS = {
    "collided in clean": ("Feature Collision's poisons, network it was made with", "after", "o-"),
    "bases in clean": ("images before crafting, clean network", "clean", "o-"),
    "poisons in clean": ("MetaPoison's poisons, clean network", "poisoned", "o-"),
    "bases in victim": ("images before crafting, victim", "clean", "s--"),
    "poisons in victim": ("MetaPoison's poisons, victim", "poisoned", "s--"),
}


def paths_figure(record: Record, pair: int = 0) -> Figure:
    """Draw Figure 6a: the weights' paths on clean and on poisoned images, from the same start.

    The plane is that of the two principal components of all points; arrows show which way
    the poisons pull a network on the clean path, their lengths are not to scale.
    """
    trial = record.metrics["trials"][pair]
    figure, [[axes]] = panels(1, 1, size=(8, 4.6))
    for name, colour in (("clean", "clean"), ("poisoned", "poisoned")):
        path = record.arrays[f"{pair}.path.{name}"].numpy()
        axes.plot(*path.T, "-", color=COLOURS[colour], lw=1, alpha=0.7)
        axes.plot(*path.T, ".", color=COLOURS[colour], label=f"trained on {name} images")
        axes.plot(*path[-1], "o", color=COLOURS[colour], ms=9)
    at, to = (record.arrays[f"{pair}.arrows.{name}"].numpy() for name in ("at", "to"))
    length = np.ptp(record.arrays[f"{pair}.path.clean"].numpy(), axis=0).max() / 10
    unit = length * to / np.linalg.norm(to, axis=1, keepdims=True).clip(1e-30)
    axes.quiver(
        *at.T,
        *unit.T,
        angles="xy",
        scale_units="xy",
        scale=1,
        width=0.004,
        color=COLOURS["after"],
        label="the poisons' pull",
    )
    start = record.arrays[f"{pair}.path.clean"][0].numpy()
    axes.plot(*start, "k^", ms=8, label="start")
    first, second = (100 * share for share in trial["explained"])
    axes.set(
        xlabel=f"first component ({first:.0f} % of the variance)",
        ylabel=f"second component ({second:.0f} %)",
    )
    axes.margins(0.08)
    axes.legend(fontsize="small")
    return figure


def distances_figure(record: Record) -> Figure:
    """Draw Figure 6b: the distance of poisons to the target, by layer, mean over the pairs.

    Bands go from the lowest pair to the highest.
    """
    trials = record.metrics["trials"]
    layers = trials[0]["layers"]
    figure, [[axes]] = panels(1, 1, size=(8.5, 4.4))
    for kind, (label, colour, style) in _KINDS.items():
        values = np.array([trial["distances"][kind] for trial in trials])
        axes.plot(
            range(len(layers)),
            values.mean(0),
            style,
            color=COLOURS[colour],
            mfc="white",
            label=label,
        )
        if len(values) > 1:
            low, high = values.min(0), values.max(0)
            axes.fill_between(range(len(layers)), low, high, color=COLOURS[colour], alpha=0.1)
    axes.set_xticks(range(len(layers)), layers)
    axes.set(xlabel="layer", ylabel="mean distance to the target,\nrelative to its norm")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    return figure
