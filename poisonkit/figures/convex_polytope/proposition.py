"""Proposition 1 and Figure 1: points, poisons and the line between two classes."""

import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler
from scipy.spatial import ConvexHull

from poisonkit.experiments.convex_polytope.proposition import Line, Placement, Scene
from poisonkit.figures.common import plain
from poisonkit.figures.convex_polytope.success import METHODS
from poisonkit.plots import COLOURS, legend_below, panels
from poisonkit.store import Record

_SHADE = {"collision": "clean", "polytope": "poisoned"}
_MARKS = ("o", "s", "^", "v")


def plane_figure(scenes: Mapping[Placement, Scene], lines: Mapping[Placement, Line]) -> Figure:
    """Draw scenes in the plane beside each other, each with the classifier trained on it."""
    figure, [axes] = panels(1, len(scenes), size=(5 * len(scenes), 4.6))
    for part, (placement, scene) in zip(axes, scenes.items(), strict=True):
        line = lines[placement]
        draw_scene(part, scene, line)
        nearest = float(np.linalg.norm(scene.poisons - scene.target, axis=1).min())
        taken = "the poisons'" if line.takes(scene.target[None])[0] else "its own"
        name = METHODS[placement]
        part.set_title(f"{name}: nearest poison at {nearest:.1f},\ntarget taken for {taken} class")
    legend_below(figure, axes[0])
    return figure


def draw_scene(axes: Axes, scene: Scene, line: Line) -> None:
    """Draw the points of a scene in the plane, and where the classifier decides."""
    points = {"poisons' class": (scene.own, "poisoned"), "target's class": (scene.other, "clean")}
    for name, (found, colour) in points.items():
        axes.plot(*found.T, ".", color=COLOURS[colour], alpha=0.45, label=name)
    around = scene.poisons
    if len(around) > 2:
        around = around[ConvexHull(around).vertices]
    closed = np.concatenate([around, around[:1]])
    axes.plot(*closed.T, "-", color=COLOURS["poisoned"], alpha=0.6, lw=1)
    axes.plot(*scene.poisons.T, "o", color=COLOURS["poisoned"], mec="black", label="poisons")
    axes.plot(*scene.target, "*", color=COLOURS["clean"], mec="black", ms=14, label="target")
    every = np.concatenate([scene.own, scene.other, scene.poisons, scene.target[None]])
    low, high = every.min(0) - 1, every.max(0) + 1
    grid = np.stack(np.meshgrid(*(np.linspace(a, b, 200) for a, b in zip(low, high, strict=True))))
    value = np.tensordot(line.weight, grid, 1) + line.bias
    axes.contour(grid[0], grid[1], value, [0.0], colors="black", linewidths=1.2)
    axes.plot([], [], "k-", lw=1.2, label="classifier")
    axes.set(xlabel="first feature", ylabel="second feature", xlim=(low[0], high[0]))
    axes.set_ylim(low[1], high[1])


def proposition_figure(record: Record) -> Figure:
    """Draw how often the target is captured, by the distance of poisons and of their polytope."""
    figure, [axes] = panels(1, 2, size=(10, 4))
    words = {"nearest": "distance to the nearest poison", "distance": "distance to the polytope"}
    rows = record.metrics["rows"]
    for part, (name, label) in zip(axes, words.items(), strict=True):
        for placement, shade in _SHADE.items():
            for dimensions, mark in zip(record.config["dimensions"], itertools.cycle(_MARKS)):
                own = [
                    row
                    for row in rows
                    if (row["placement"], row["dimensions"]) == (placement, dimensions)
                    and row["fitted"]
                ]
                x = [row[name] for row in own]
                low, high = ([100 * row[k] for row in own] for k in ("low", "high"))
                rate = [100 * row["captured"] / row["fitted"] for row in own]
                words_of = f"{METHODS[placement]}, {dimensions} dimensions"
                style = {"color": COLOURS[shade], "ms": 5}
                part.plot(x, rate, f"{mark}-", label=words_of, alpha=0.85, **style)
                part.fill_between(x, low, high, color=COLOURS[shade], alpha=0.07)
        part.set(xlabel=label, ylabel="targets captured (%)", ylim=(-3, 103))
        part.grid(alpha=0.3)
    legend_below(figure, axes[0], columns=2)
    return figure


def proposition_table(record: Record) -> Styler:
    """Return the numbers at distance 0, of which the proposition speaks."""
    rows = [
        {
            "Poisons": METHODS[row["placement"]],
            "Dimensions": row["dimensions"],
            "Draws": record.config["trials"],
            "All poisons fitted": row["fitted"],
            "Target captured": row["captured"],
        }
        for row in record.metrics["rows"]
        if row["distance"] == 0
    ]
    return plain(pd.DataFrame(rows))
