"""What the pages of the MetaPoison chapter draw; nothing here computes a result."""

from poisonkit.figures.metapoison.crafting import (
    losses_figure,
    poisons_figure,
    poisons_slider,
    steps_figure,
)
from poisonkit.figures.metapoison.mechanism import distances_figure, paths_figure
from poisonkit.figures.metapoison.rates import (
    budget_figure,
    rates_figure,
    rates_table,
    targets_figure,
)
from poisonkit.figures.metapoison.victims import curves_figure, victims_table

__all__ = [
    "budget_figure",
    "curves_figure",
    "distances_figure",
    "losses_figure",
    "paths_figure",
    "poisons_figure",
    "poisons_slider",
    "rates_figure",
    "rates_table",
    "steps_figure",
    "targets_figure",
    "victims_table",
]
