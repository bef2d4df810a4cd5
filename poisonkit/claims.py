"""What the papers report, and the rule by which each of our results is judged.

Every rule is stated here, beside the paper's number, before a record is made.
Rates are shares (0..1). Records count only if they were made at the unchanged
``small`` or ``paper`` profile, on the paper's data.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from poisonkit.statistics import mean_and_deviation, wilson
from poisonkit.store import Json, Record

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
    rule : how the verdict is reached, in words; ``judge`` does just that.
    experiment : the experiment whose record is judged; None where there is none yet.
    judge : returns None where the record does not cover the exhibit.
    """

    paper: str
    exhibit: str
    claim: str
    quantity: str = ""
    reported: float | None = None
    rule: str = ""
    experiment: str | None = None
    judge: Callable[[Record], Outcome | None] | None = None


SPECTRAL = "Spectral Signatures"
VIEWS = tuple(
    f"{space}.{quantity}"
    for space in ("pixels", "representation")
    for quantity in ("norm", "random", "top")
)
#: Natural accuracy of a network trained on clean data, in percent (section 4.4).
CLEAN_ACCURACY = 92.67
#: Table 2: target, share and Nat 1, Pois 1, poisons left, Nat 2, Pois 2, Std Pois in
#: percent. The table shows each source class as a picture only; the sources are read
#: from the pairs that section 4.2 lists. It lists cat to dog where the table prints a
#: second row for target cat, whose clean-trained rate of 8 % is one of dogs called cats.
TABLE_2 = {
    ("airplane", "bird", 0.05): (92.27, 74.20, 57, 92.64, 2.00, 1.20),
    ("airplane", "bird", 0.10): (92.32, 89.80, 7, 92.68, 1.50, 1.20),
    ("automobile", "cat", 0.05): (92.45, 83.30, 24, 92.24, 0.20, 0.10),
    ("automobile", "cat", 0.10): (92.39, 92.00, 0, 92.44, 0.00, 0.10),
    ("automobile", "dog", 0.05): (92.17, 89.80, 7, 93.01, 0.00, 0.00),
    ("automobile", "dog", 0.10): (92.55, 94.30, 1, 92.64, 0.00, 0.00),
    ("cat", "horse", 0.05): (92.60, 99.80, 0, 92.57, 1.00, 0.80),
    ("cat", "horse", 0.10): (92.26, 99.80, 0, 92.63, 1.20, 0.80),
    ("dog", "cat", 0.05): (92.86, 98.60, 0, 92.79, 8.30, 8.00),
    ("dog", "cat", 0.10): (92.29, 99.10, 0, 92.57, 8.20, 8.00),
    ("horse", "deer", 0.05): (92.68, 99.30, 0, 92.68, 1.10, 1.00),
    ("horse", "deer", 0.10): (92.68, 99.90, 0, 92.74, 1.60, 1.00),
    ("ship", "frog", 0.05): (92.87, 88.80, 10, 92.61, 0.10, 0.30),
    ("ship", "frog", 0.10): (92.82, 93.70, 3, 92.74, 0.10, 0.30),
    ("truck", "bird", 0.05): (92.52, 97.90, 0, 92.69, 0.00, 0.00),
    ("truck", "bird", 0.10): (92.68, 99.30, 0, 92.45, 0.50, 0.00),
}


def judge_separation(record: Record) -> Outcome | None:
    """Judge Figure 1 by how well each of its six views ranks poisoned above clean.

    A norm may separate by being smaller; for the two norms the better direction counts.
    """
    chosen = [trial for trial in record.metrics["trials"] if trial["captured"]]
    if not chosen:
        every = [trial["auroc"]["representation.top"] for trial in record.metrics["trials"]]
        interval = (min(every), max(every))
        return Outcome(measured=_mean(every), interval=interval, n=len(every), verdict="not")
    means = {view: _mean([_separation(trial, view) for trial in chosen]) for view in VIEWS}
    values = [trial["auroc"]["representation.top"] for trial in chosen]
    top, others = means["representation.top"], [means[v] for v in VIEWS[:-1]]
    verdict: Verdict = "not"
    if top > max(others):
        verdict = "reproduced" if top >= 0.95 and top - max(others) >= 0.05 else "partly"
    interval = (min(values), max(values))
    return Outcome(measured=top, interval=interval, n=len(values), verdict=verdict)


def _separation(trial: Json, view: str) -> float:
    found = float(trial["auroc"][view])
    return max(found, 1 - found) if view.endswith(".norm") else found


def judge_backdoor(record: Record) -> Outcome | None:
    """Judge Figure 2 by the poisoned accuracy, pooled over runs with its one-pixel trigger."""
    trials = [t for t in record.metrics["trials"] if t["source"] == "airplane"]
    if not trials or any(trial["trigger"]["pattern"] != "pixel" for trial in trials):
        return None
    hits = sum(trial["hits_before"] for trial in trials)
    total = sum(trial["triggered_images"] for trial in trials)
    interval = wilson(hits, total)
    reported = TABLE_2["airplane", "bird", 0.10][1] / 100
    verdict: Verdict = "not"
    if hits / total > 0.5:
        verdict = "reproduced" if interval[1] >= reported else "partly"
    return Outcome(measured=hits / total, interval=interval, n=len(trials), verdict=verdict)


def judge_removal(source: str, target: str, share: float) -> Callable[[Record], Outcome | None]:
    """Return the judge of one row of Table 2."""

    def judge(record: Record) -> Outcome | None:
        own = [
            trial
            for trial in record.metrics["trials"]
            if (trial["source"], trial["target"], trial["share"]) == (source, target, share)
        ]
        if not own:
            return None
        captured = [trial for trial in own if trial["captured"]]
        chosen = captured or own
        total = sum(trial["triggered_images"] for trial in chosen)
        before, after, clean = (
            sum(trial[f"hits_{moment}"] for trial in chosen)
            for moment in ("before", "after", "clean")
        )
        # Whole numbers: 3.3 % less 2.3 % is more than 1 % in floating point.
        verdict: Verdict = "not"
        if captured:
            if 100 * (after - clean) <= total:
                verdict = "reproduced"
            elif 10 * (before - after) >= 8 * (before - clean):
                verdict = "partly"
        interval = wilson(after, total)
        return Outcome(measured=after / total, interval=interval, n=len(chosen), verdict=verdict)

    return judge


def _mean(values: list[float]) -> float:
    return mean_and_deviation(values)[0]


def _table_2_row(row: tuple[str, str, float], numbers: tuple[float, ...]) -> Exhibit:
    source, target, share = row
    return Exhibit(
        paper=SPECTRAL,
        exhibit=f"Table 2: {source} to {target}, {share:.0%}",
        claim="after the filter, triggered images are misclassified within 1 percentage point of "
        "the rate of a network trained on clean data",
        quantity="poisoned accuracy after filtering and retraining",
        reported=round(numbers[4] / 100, 4),
        rule="over the runs that captured the backdoor: reproduced if the poisoned accuracy "
        "after is at most 1 percentage point above the clean-trained network's; partly if at least "
        "80 % of its excess is gone; not otherwise, or if no run captured the backdoor. "
        "Interval: Wilson, 95 %, pooled",
        experiment="spectral_signatures/removal",
        judge=judge_removal(source, target, share),
    )


def _not_attempted(paper: str, claims: Json) -> list[Exhibit]:
    return [Exhibit(paper=paper, exhibit=name, claim=claim) for name, claim in claims.items()]


EXHIBITS: tuple[Exhibit, ...] = (
    Exhibit(
        paper=SPECTRAL,
        exhibit="Figure 1",
        claim="only along the top singular vector of the representation do poisoned images "
        "stand apart; norms, random directions and pixels do not suffice",
        quantity="AUROC of the projection on the representation's top singular vector",
        rule="over the runs that captured the backdoor: reproduced if the mean AUROC is at least "
        "0.95 and at least 0.05 above that of each of the other five views (for norms, in the "
        "better direction); partly if it is the highest; not otherwise, or if no run captured "
        "the backdoor. Interval: lowest and highest run",
        experiment="spectral_signatures/signature",
        judge=judge_separation,
    ),
    Exhibit(
        paper=SPECTRAL,
        exhibit="Figure 2",
        claim="one changed pixel makes the poisoned network call airplanes birds",
        quantity="poisoned accuracy, airplane to bird, 10 %",
        reported=0.898,
        rule="one-pixel triggers only: reproduced if the interval reaches the reported value; "
        "partly if more than half of the triggered images are called the target; not otherwise. "
        "Interval: Wilson, 95 %, pooled over all runs",
        experiment="spectral_signatures/signature",
        judge=judge_backdoor,
    ),
    *(_table_2_row(row, numbers) for row, numbers in TABLE_2.items()),
    *_not_attempted(
        SPECTRAL,
        {
            "Table 1": "poisoned images shift the mean and raise the top singular values",
            "Table 3": "the filter also works when the poisoned class is a merger of two",
            "Table 5": "the same holds for a VGG network",
            "Lemma 3.1": "a large enough gap between the means makes the parts separable",
        },
    ),
    *_not_attempted(
        "Deep Confuse",
        {
            "Table 1": "training on bounded noise leaves almost no accuracy on clean data",
            "Table 2": "the noise alone predicts the label",
            "Figure 4": "the damage sets in above epsilon = 0.15 on MNIST",
            "Figure 5": "the damage grows with the share of adversarial data",
            "Figures 6 and 7": "the noise transfers to other classifiers",
            "Figure 10": "the label-specific noise turns each class into the next",
        },
    ),
    *_not_attempted(
        "MetaPoison",
        {
            "Figure 3": "unrolled crafting changes the target's label after training from scratch",
            "Figure 5": "the poisons survive other training settings and small budgets",
            "Figure 6": "features of the target move towards the poison class in late layers",
        },
    ),
    *_not_attempted(
        "Convex Polytope",
        {
            "Figure 5": "Convex Polytope transfers to unseen networks better than collision",
            "Figure 6": "it works without any overlap of the training sets",
            "Figure 7": "several layers are needed when the victim is trained end to end",
        },
    ),
)
