"""Figure 6a and b: weights on their way, and distances in feature space."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from poisonkit.claims.metapoison import EXPLAINED, is_taken
from poisonkit.figures.common import percent
from poisonkit.figures.metapoison.victims import called
from poisonkit.plots import COLOURS, legend_below, panels
from poisonkit.store import Json, Record

_KINDS = {
    "collided in clean": ("Feature Collision's poisons, network it was made with", "after", "o-"),
    "bases in clean": ("images before crafting, clean network", "clean", "o-"),
    "poisons in clean": ("MetaPoison's poisons, clean network", "poisoned", "o-"),
    "bases in victim": ("images before crafting, victim", "clean", "s--"),
    "poisons in victim": ("MetaPoison's poisons, victim", "poisoned", "s--"),
}


#: Pairs that Figure 6a shows, one victim each.
_SHOWN = 3
_TRAINED = {
    "clean": "clean images",
    "poisoned": "poisons",
    "signs": "the same changes with random signs",
}
_SHADES = {"clean": "clean", "poisoned": "poisoned", "signs": "reference"}


def paths_figure(record: Record) -> Figure:
    """Draw Figure 6a for each pair, of its first victim that the attack succeeds with, if any.

    Above, the weights' paths from the same start, in the plane of the two principal
    components of the clean and the poisoned one; arrows show which way the poisons pull a
    network on the clean path, their lengths are not to scale. Below, how far all of the
    pair's victims are from the clean path, in units of the distance between its ends.
    """
    trials = list(enumerate(record.metrics["trials"]))
    pairs = sorted({trial["pair"] for _, trial in trials})[:_SHOWN]
    figure, [upper, lower] = panels(2, len(pairs), size=(3 * len(pairs) + 1, 6.6))
    for pair, above, below in zip(pairs, upper, lower, strict=True):
        own = [(number, trial) for number, trial in trials if trial["pair"] == pair]
        number, trial = min(own, key=lambda one: (not is_taken(one[1]), one[0]))
        _plane(above, record, number, trial)
        ending = "success" if is_taken(trial) else "no success"
        both = f"{percent(sum(trial['explained']), digits=0)} in two components"
        if record.config["dataset"] == "cifar10":
            both += f" (paper: {100 * EXPLAINED:.0f})"
        above.set_title(f"{called(trial)}: {ending}\n{both}", fontsize="small")
        for _, one in own:
            for name, values in one["apart"].items():
                style = {"lw": 1, "label": f"trained on {_TRAINED[name]}"}
                below.plot(values, color=COLOURS[_SHADES[name]], **style)
        below.set(xlabel="epoch", ylim=(0, None))
    lower[0].set_ylabel("distance to the clean path,\nrelative to its length")
    legend_below(figure, upper[0])
    return figure


def _plane(axes: Axes, record: Record, number: int, trial: Json) -> None:
    for name, shade in _SHADES.items():
        path, colour = record.arrays[f"{number}.path.{name}"].numpy(), COLOURS[shade]
        axes.plot(*path.T, "-", color=colour, lw=1, alpha=0.7)
        axes.plot(*path.T, ".", color=colour, label=f"trained on {_TRAINED[name]}")
        axes.plot(*path[-1], "o", color=colour, ms=9)
    at, to = (record.arrays[f"{number}.arrows.{name}"].numpy() for name in ("at", "to"))
    length = np.ptp(record.arrays[f"{number}.path.clean"].numpy(), axis=0).max() / 10
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
    start = record.arrays[f"{number}.path.clean"][0].numpy()
    axes.plot(*start, "k^", ms=8, label="start")
    first, second = (100 * share for share in trial["explained"])
    axes.set(
        xlabel=f"first component\n({first:.0f} % of the variance)",
        ylabel=f"second component ({second:.0f} %)",
    )
    axes.margins(0.08)


def distances_figure(record: Record) -> Figure:
    """Draw Figure 6b: the distance of poisons to the target, by layer.

    Means over the runs whose victim gives the target the wanted label, and its clean twin
    does not, if there are any, else over all; bands go from the lowest to the highest.
    """
    every = record.metrics["trials"]
    trials = [trial for trial in every if is_taken(trial)] or every
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
    shown = f"{len(trials)} of {len(every)}" if any(map(is_taken, every)) else "none, so all"
    kind = "victims that give the target the wanted label, unlike their clean twins"
    axes.set_title(f"{kind}: {shown}", fontsize="small")
    legend_below(figure, axes, columns=2)
    return figure
