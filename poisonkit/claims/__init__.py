"""What the papers report, and the rule by which each of our results is judged.

Every rule is stated here, beside the paper's number, before a record is made; what was
changed later, the book names (*How to read a verdict*). Rates are shares (0..1). Records
count only if they were made at the unchanged ``small`` or ``paper`` profile, on the paper's
data or what a rule names instead.
"""

from poisonkit.claims import convex_polytope, deep_confuse, metapoison, spectral_signatures
from poisonkit.claims.base import Exhibit, Outcome, Verdict

__all__ = ["EXHIBITS", "Exhibit", "Outcome", "Verdict"]

EXHIBITS: tuple[Exhibit, ...] = (
    *spectral_signatures.EXHIBITS,
    *deep_confuse.EXHIBITS,
    *metapoison.EXHIBITS,
    *convex_polytope.EXHIBITS,
)
