"""Transferable Clean-Label Poisoning Attacks (Zhu et al., 2019): the experiments."""

from poisonkit.experiments.convex_polytope.end_to_end import END_TO_END
from poisonkit.experiments.convex_polytope.limits import LIMITS
from poisonkit.experiments.convex_polytope.proposition import PROPOSITION
from poisonkit.experiments.convex_polytope.randomised import RANDOMISED
from poisonkit.experiments.convex_polytope.setting import PolytopeConfig
from poisonkit.experiments.convex_polytope.switches import SWITCHING
from poisonkit.experiments.convex_polytope.transfer import OVERLAP, TRANSFER

ALL = (PROPOSITION, TRANSFER, RANDOMISED, OVERLAP, END_TO_END, LIMITS, SWITCHING)

__all__ = ["ALL", "PolytopeConfig"]
