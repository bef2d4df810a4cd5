"""What an exhibit is, and what a rule says about a record of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from poisonkit.store import Record

Verdict = Literal["reproduced", "partly", "not", "not attempted"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a record says about an exhibit.

    Attributes
    ----------
    measured : the number to hold beside the paper's.
    interval : its range; the exhibit's rule says of what kind.
    n : how many runs it rests on.
    """

    measured: float
    interval: tuple[float, float]
    n: int
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """One figure, table or row of a paper.

    Attributes
    ----------
    reported : the paper's number, or None where it shows a picture only.
    quantity : what is reported and measured, in words.
    unit : ``rate``, shown in percent; ``points``, a difference of rates; or ``number``.
    rule : how the verdict is reached, in words; ``judge`` does just that.
    experiment : the experiment whose record is judged; None where there is none yet.
    judge : returns None where the record does not cover the exhibit.
    """

    paper: str
    exhibit: str
    claim: str
    quantity: str = ""
    unit: Literal["rate", "points", "number"] = "rate"
    reported: float | None = None
    rule: str = ""
    experiment: str | None = None
    judge: Callable[[Record], Outcome | None] | None = None
