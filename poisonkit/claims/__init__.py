"""What the papers report, and the rule by which each of our results is judged.

Every rule is stated here, beside the paper's number, before a record is made.
Rates are shares (0..1). Records count only if they were made at the unchanged
``small`` or ``paper`` profile, on the paper's data.
"""

from poisonkit.claims import convex_polytope, deep_confuse, spectral_signatures
from poisonkit.claims.base import Exhibit, Outcome, Verdict
from poisonkit.store import Json

__all__ = ["EXHIBITS", "Exhibit", "Outcome", "Verdict"]


def _not_attempted(paper: str, claims: Json) -> list[Exhibit]:
    return [Exhibit(paper=paper, exhibit=name, claim=claim) for name, claim in claims.items()]


EXHIBITS: tuple[Exhibit, ...] = (
    *spectral_signatures.EXHIBITS,
    *deep_confuse.EXHIBITS,
    *_not_attempted(
        "MetaPoison",
        {
            "Figure 3": "unrolled crafting changes the target's label after training from scratch",
            "Figure 5": "the poisons survive other training settings and small budgets",
            "Figure 6": "features of the target move towards the poison class in late layers",
        },
    ),
    *convex_polytope.EXHIBITS,
)
