"""Spectral Signatures: the rules by which our results are judged."""

from collections.abc import Callable

from poisonkit.claims.base import Exhibit, Outcome, Verdict
from poisonkit.claims.spectral_signatures_reported import (
    PAPER_CAPTURED,
    TABLE_1,
    TABLE_2,
    TABLE_3,
)
from poisonkit.statistics import mean_and_deviation, wilson
from poisonkit.store import Json, Record

SPECTRAL = "Spectral Signatures"
VIEWS = tuple(
    f"{space}.{quantity}"
    for space in ("pixels", "representation")
    for quantity in ("norm", "random", "top")
)


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


def judge_removal(
    source: str | None = None,
    target: str | None = None,
    share: float | None = None,
    *,
    network: str | None = None,
    excess: float | None = None,
) -> Callable[[Record], Outcome | None]:
    """Return the judge of the filter's effect on the runs that agree with what is given.

    Parameters
    ----------
    excess : where given, all runs count, and not only those that captured the backdoor, if the
        poisoned accuracy before the filter is by at least so much above the clean network's.
    """
    wanted = {"source": source, "target": target, "share": share}

    def judge(record: Record) -> Outcome | None:
        own = [
            trial
            for trial in record.metrics["trials"]
            if all(trial[key] == value for key, value in wanted.items() if value is not None)
            and (network is None or trial["network"].startswith(network))
        ]
        if not own:
            return None
        captured = [trial for trial in own if trial["captured"] or excess is not None]
        chosen = captured or own
        total = sum(trial["triggered_images"] for trial in chosen)
        before, after, clean = (
            sum(trial[f"hits_{moment}"] for trial in chosen)
            for moment in ("before", "after", "clean")
        )
        # Whole numbers: 3.3 % less 2.3 % is more than 1 % in floating point.
        verdict: Verdict = "not"
        if captured and before - clean >= (excess or 0) * total:
            if 100 * (after - clean) <= total:
                verdict = "reproduced"
            elif 10 * (before - after) >= 8 * (before - clean):
                verdict = "partly"
        ends = [wilson(trial["hits_after"], trial["triggered_images"]) for trial in chosen]
        interval = (min(low for low, _ in ends), max(high for _, high in ends))
        return Outcome(measured=after / total, interval=interval, n=len(chosen), verdict=verdict)

    return judge


def judge_poisons_left(record: Record) -> Outcome | None:
    """Judge the share of poisoned images that the filter leaves, over all captured runs."""
    trials = record.metrics["trials"]
    captured = [trial for trial in trials if trial["captured"]]
    chosen = captured or trials
    left = sum(trial["poisons_left"] for trial in chosen)
    total = sum(trial["poisons"] for trial in chosen)
    verdict: Verdict = "not"
    if captured and 4 * left <= total:
        verdict = "reproduced" if 20 * left <= total else "partly"
    shares = [trial["poisons_left"] / trial["poisons"] for trial in chosen]
    interval = (min(shares), max(shares))
    return Outcome(measured=left / total, interval=interval, n=len(chosen), verdict=verdict)


def judge_spectrum(source: str, target: str) -> Callable[[Record], Outcome | None]:
    """Return the judge of one half of Table 1."""
    _, _, _, clean, poisoned = TABLE_1[source, target]
    reported = poisoned[0] / clean[0]

    def judge(record: Record) -> Outcome | None:
        own = [
            trial
            for trial in record.metrics["trials"]
            if (trial["source"], trial["target"]) == (source, target)
        ]
        if not own:
            return None
        captured = [trial for trial in own if trial["captured"]]
        growth = [singular_growth(trial) for trial in captured or own]
        first, second, third = (_mean([values[k] for values in growth]) for k in range(3))
        verdict: Verdict = "not"
        if captured and first > max(second, third):
            enough = first - 1 >= (reported - 1) / 2 and first - max(second, third) >= 0.05
            verdict = "reproduced" if enough else "partly"
        firsts = [values[0] for values in growth]
        interval = (min(firsts), max(firsts))
        return Outcome(measured=first, interval=interval, n=len(growth), verdict=verdict)

    return judge


def singular_growth(trial: Json) -> list[float]:
    """Return by what factors the poisoned images raise the three largest singular values."""
    found = trial["statistics"]
    pairs = zip(found["all"]["singular_values"], found["clean"]["singular_values"], strict=True)
    return [after / before for after, before in pairs]


def judge_lemma(record: Record) -> Outcome | None:
    """Judge Lemma 3.1 by the draws whose gap is at least the bound."""
    rows = [row for row in record.metrics["rows"] if row["gap"] >= record.metrics["bound"]]
    if not rows:
        return None
    separable, runs = sum(row["separable"] for row in rows), sum(row["runs"] for row in rows)
    # A draw is moved to every gap, so each counts once.
    draws = sum({(row["distribution"], row["epsilon"]): row["runs"] for row in rows}.values())
    verdict: Verdict = "not"
    if 100 * separable >= 95 * runs:
        verdict = "reproduced" if separable == runs else "partly"
    interval = wilson(separable * draws // runs, draws)
    return Outcome(measured=separable / runs, interval=interval, n=draws, verdict=verdict)


def _mean(values: list[float]) -> float:
    return mean_and_deviation(values)[0]


_FILTER_CLAIM = (
    "after the filter, triggered images are misclassified within 1 percentage point of "
    "the rate of a network trained on clean data"
)
_FILTER_QUANTITY = "poisoned accuracy after filtering and retraining"


def _filter_rule(excess: float | None = None) -> str:
    runs, none = "the runs that captured the backdoor", "no run captured the backdoor"
    if excess is not None:
        runs = "all runs"
        none = f"the excess before is below {100 * excess:.1f} points, half of the paper's"
    return (
        f"over {runs}: reproduced if the poisoned accuracy after is at most 1 percentage point "
        "above the clean-trained network's; partly if at least 80 % of its excess is gone; not "
        f"otherwise, or if {none}. Interval: from the lowest to the highest end of the runs' own, "
        "Wilson, 95 %"
    )


def _table_2_row(row: tuple[str, str, float], numbers: tuple[float, ...]) -> Exhibit:
    source, target, share = row
    # Where the paper's own run did not capture the backdoor, ours need not either; but there
    # has to be something that the filter could remove.
    missed = numbers[1] < PAPER_CAPTURED
    excess = round((numbers[1] - numbers[5]) / 200, 4) if missed else None
    return Exhibit(
        paper=SPECTRAL,
        exhibit=f"Table 2: {source} to {target}, {share:.0%}",
        claim=_FILTER_CLAIM,
        quantity=_FILTER_QUANTITY,
        reported=round(numbers[4] / 100, 4),
        rule=_filter_rule(excess),
        experiment="spectral_signatures/removal",
        judge=judge_removal(*row, excess=excess),
    )


def _table_3_row(row: tuple[str, str, float], numbers: tuple[tuple[float, ...], ...]) -> Exhibit:
    source, target, share = row
    return Exhibit(
        paper=SPECTRAL,
        exhibit=f"Table 3: {source} to {target}, {share:.0%}",
        claim="the filter works as well when the clean images of a class are a mixture of two",
        quantity=f"{_FILTER_QUANTITY}, mean of four backdoors",
        reported=round(_mean([backdoor[4] for backdoor in numbers]) / 100, 5),
        rule=_filter_rule(),
        experiment="spectral_signatures/subpopulations",
        judge=judge_removal(*row),
    )


def _table_1_half(pair: tuple[str, str]) -> Exhibit:
    source, target = pair
    _, _, _, clean, poisoned = TABLE_1[pair]
    return Exhibit(
        paper=SPECTRAL,
        exhibit=f"Table 1: {source} to {target}",
        claim="poisoned images shift the mean of the representation and raise its top singular "
        "value far more than the next two",
        quantity="factor by which the poisoned images raise the largest singular value",
        unit="number",
        reported=round(poisoned[0] / clean[0], 3),
        rule="over the runs that captured the backdoor: reproduced if the mean rise (the factor "
        "less 1) is at least half the reported one and the factor at least 0.05 above those of "
        "the second and third value; partly if it is the largest of the three; not otherwise, or "
        "if no run captured the backdoor. Interval: lowest and highest run",
        experiment="spectral_signatures/signature",
        judge=judge_spectrum(*pair),
    )


#: Table 2's poisons left, over its rows that count as captured.
_REPORTED_LEFT = sum(row[2] for row in TABLE_2.values() if row[1] >= PAPER_CAPTURED) / sum(
    round(5000 * key[2]) for key, row in TABLE_2.items() if row[1] >= PAPER_CAPTURED
)


EXHIBITS: tuple[Exhibit, ...] = (
    Exhibit(
        paper=SPECTRAL,
        exhibit="Figure 1",
        claim="only along the top singular vector of the representation do poisoned images "
        "stand apart; norms, random directions and pixels do not suffice",
        quantity="AUROC of the projection on the representation's top singular vector",
        unit="number",
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
    *(_table_1_half(pair) for pair in TABLE_1),
    *(_table_2_row(row, numbers) for row, numbers in TABLE_2.items()),
    Exhibit(
        paper=SPECTRAL,
        exhibit="Table 2: poisons left",
        claim="the filter removes many, in fact often all, of the poisoned images",
        quantity="share of the poisoned images that the filter leaves, over all pairs and shares",
        reported=round(_REPORTED_LEFT, 4),
        rule="over the runs that captured the backdoor: reproduced if at most 5 % of their "
        "poisoned images are left; partly if at most 25 %; not otherwise, or if no run captured "
        "the backdoor. Interval: lowest and highest run",
        experiment="spectral_signatures/removal",
        judge=judge_poisons_left,
    ),
    *(_table_3_row(row, numbers) for row, numbers in TABLE_3.items()),
    Exhibit(
        paper=SPECTRAL,
        exhibit="Table 5: VGG",
        claim="the filter works as well on a VGG network",
        quantity=_FILTER_QUANTITY,
        rule=_filter_rule(),
        experiment="spectral_signatures/architectures",
        judge=judge_removal(network="vgg"),
    ),
    Exhibit(
        paper=SPECTRAL,
        exhibit="Lemma 3.1",
        claim="parts whose means are far enough apart for their variance and share are "
        "spectrally separable",
        quantity="share of draws at or above the bound that are separable",
        reported=1.0,
        rule="reproduced if all draws with a gap at or above the bound are epsilon-spectrally "
        "separable; partly if at least 95 % are; not otherwise. A draw is moved to several gaps, "
        "and counted once. Interval: Wilson, 95 %",
        experiment="spectral_signatures/lemma",
        judge=judge_lemma,
    ),
)
