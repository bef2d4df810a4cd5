"""Figure 3: the objective in networks that the poisons were not crafted with."""

import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from poisonkit.figures.common import plain
from poisonkit.figures.convex_polytope.success import METHODS
from poisonkit.plots import COLOURS, legend_below, panels
from poisonkit.store import Record


def randomised_figure(record: Record) -> Figure:
    """Draw the objective over the crafting, in the substitutes and in each unseen network."""
    objectives, victims = record.config["objectives"], record.config["victims"]
    columns = ["substitutes", *victims]
    size = (3.3 * len(columns), 2.9 * len(objectives) + 0.5)
    figure, axes = panels(len(objectives), len(columns), size=size)
    every = record.config["watch_every"]
    for line, objective in enumerate(objectives):
        for dropout, colour in ((True, "poisoned"), (False, "clean")):
            # The first block of targets is drawn; the table has all of them.
            number = next(
                k
                for k, trial in enumerate(record.metrics["trials"])
                if (trial["objective"], trial["dropout"]) == (objective, dropout)
            )
            watched = record.arrays[f"{number}.watched"]
            curves = [record.arrays[f"{number}.losses"], *watched.unbind(1)]
            for part, curve in zip(axes[line], curves, strict=True):
                steps = [every * k for k in range(len(curve))]
                steps[-1] = min(steps[-1], record.config["procedure"]["iterations"])
                values = curve.sort(1).values
                label = f"dropout {'on' if dropout else 'off'} while crafting"
                shade = COLOURS[colour]
                part.plot(steps, values.median(1).values, color=shade, label=label)
                low, high = values[:, len(values[0]) // 4], values[:, -1 - len(values[0]) // 4]
                part.fill_between(steps, low, high, color=shade, alpha=0.15)
        for part, name in zip(axes[line], columns, strict=True):
            part.set_yscale("log")
            part.set(title=f"{METHODS[objective]}: {name}", xlabel="iteration")
        axes[line][0].set_ylabel("objective")
    legend_below(figure, axes[0][0])
    return figure


def randomised_table(record: Record) -> Styler:
    """Return the last objective in each unseen network, over all targets."""
    rows = [
        {
            "Poisons by": METHODS[row["objective"]],
            "Unseen network": row["victim"],
            "Dropout on": f"{row['with']:.3f}",
            "Dropout off": f"{row['without']:.3f}",
            "Lower with dropout": f"{row['lower']} of {row['targets']} targets",
        }
        for row in record.metrics["rows"]
    ]
    return plain(pd.DataFrame(rows))
