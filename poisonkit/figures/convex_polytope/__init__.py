"""What the pages of the Convex Polytope chapter draw; nothing here computes a result."""

from poisonkit.figures.convex_polytope.limits import limits_figure, limits_table
from poisonkit.figures.convex_polytope.pictures import poisons_figure, poisons_slider
from poisonkit.figures.convex_polytope.proposition import (
    plane_figure,
    proposition_figure,
    proposition_table,
)
from poisonkit.figures.convex_polytope.randomised import randomised_figure, randomised_table
from poisonkit.figures.convex_polytope.success import (
    accuracy_figure,
    distance_figure,
    likeness_table,
    success_figure,
    success_table,
)
from poisonkit.figures.convex_polytope.switches import switches_figure, switches_table

__all__ = [
    "accuracy_figure",
    "distance_figure",
    "likeness_table",
    "limits_figure",
    "limits_table",
    "plane_figure",
    "poisons_figure",
    "poisons_slider",
    "proposition_figure",
    "proposition_table",
    "randomised_figure",
    "randomised_table",
    "success_figure",
    "success_table",
    "switches_figure",
    "switches_table",
]
