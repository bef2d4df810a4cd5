"""MetaPoison: what the paper claims, and the rules by which our results are judged."""

import math
from collections.abc import Callable, Sequence

from poisonkit.claims.base import Exhibit, Outcome, Verdict
from poisonkit.statistics import mean_and_deviation, more_often, wilson
from poisonkit.store import Json, Record

META = "MetaPoison"
#: Section 3: the label of the target changes for "nearly 100 %" of initialisations.
NEARLY_ALL = 1.0
#: Abstract: "over 50 %" when 3 to 10 % of the training data are poisoned.
OFTEN, FEW = 0.5, (0.03, 0.1)
#: Section 3.7: variance that the two principal components explain.
EXPLAINED = 0.96
#: Accuracy that is lost by less than so much is "only marginally affected".
MARGINAL = 0.02


def _rate(row: Json, verdict: Verdict) -> Outcome:
    interval = wilson(row["hits"], row["targets"])
    return Outcome(measured=row["rate"], interval=interval, n=row["targets"], verdict=verdict)


def _last(trials: Sequence[Json], name: str) -> list[float]:
    return [float(trial["course"][name][-1]) for trial in trials]


def clean_loss(trial: Json) -> float:
    """Return the loss of the targets towards the wanted label in a clean victim."""
    wanted = trial["clean"]["wanted_probability"]
    return mean_and_deviation([-math.log(max(one, 1e-300)) for one in wanted])[0]


def judge_losses(record: Record) -> Outcome | None:
    """Judge Figure 3a by the target's loss in surrogates and in victims."""
    trials = record.metrics["trials"]
    last_step = max(trial["crafted"] for trial in trials)
    ends = [trial for trial in trials if trial["crafted"] == last_step]
    starts = [trial for trial in trials if trial["crafted"] == 0]
    curves = [trial for trial in ends if "unrolled" in trial]
    third = [
        (trial["unaffected"][-part:], trial["unrolled"][-part:])
        for trial in curves
        for part in [max(1, len(trial["unrolled"]) // 3)]
    ]
    before = mean_and_deviation([mean_and_deviation(one)[0] for one, _ in third])[0]
    after = mean_and_deviation([mean_and_deviation(one)[0] for _, one in third])[0]
    values = _last(ends, "target_loss")
    found, begun, clean = (
        mean_and_deviation(losses)[0]
        for losses in (values, _last(starts, "target_loss"), [clean_loss(t) for t in ends])
    )
    comparable = record.config["procedure"]["objective"] == "cross-entropy"
    verdict: Verdict = "not"
    if found <= min(begun, clean) / 2:
        verdict = "reproduced" if comparable and found < after < before else "partly"
    interval = (min(values), max(values))
    return Outcome(measured=found, interval=interval, n=len(values), verdict=verdict)


def judge_steps(record: Record) -> Outcome | None:
    """Judge Figure 3b by success and accuracy after the first and the last step."""
    rows = record.metrics["rows"]
    first, last = rows[0], rows[-1]
    kept = first["accuracy"]["mean"] - last["accuracy"]["mean"] <= MARGINAL
    apart, often = last["low"] > first["high"], last["rate"] >= OFTEN
    verdict: Verdict = "not"
    if _beyond_clean(last) and (apart or (often and last["rate"] > first["rate"])):
        verdict = "reproduced" if apart and often and kept else "partly"
    return _rate(last, verdict)


def judge_victims(record: Record) -> Outcome | None:
    """Judge Figure 4 by success over all pairs, and by the accuracy beside clean victims'."""
    whole = record.metrics["all"]
    kept = record.metrics["clean_accuracy"] - whole["accuracy"]["mean"] <= MARGINAL
    verdict: Verdict = "not"
    if whole["rate"] >= OFTEN and _beyond_clean(whole):
        verdict = "reproduced" if kept and whole["rate"] >= 0.9 else "partly"
    return _rate(whole, verdict)


def _beyond_clean(row: Json) -> bool:
    """Tell whether more targets are given the wanted label than by victims of clean images."""
    return more_often(row["hits"], row["targets"], row["clean_hits"], row["clean_targets"])


def _in_two_pairs(rows: Sequence[Json]) -> bool:
    """Tell whether at least two pairs, each by itself, go beyond clean victims."""
    return sum(map(_beyond_clean, rows)) >= 2


def judge_budget(record: Record) -> Outcome | None:
    """Judge Figure 5a by the smallest budget of at least 3 % of the training data."""
    rows = record.metrics["rows"]
    size = record.metrics["training_images"]
    low = [row for row in rows if FEW[0] * size <= row["budget"] < FEW[1] * size]
    if not low or len(rows) < 2:
        return None
    least = min(low, key=lambda row: row["budget"])
    most = max(rows, key=lambda row: row["budget"])
    verdict: Verdict = "not"
    if _beyond_clean(least):
        pairs = [row for row in record.metrics["by_pair"] if row["budget"] == least["budget"]]
        if least["rate"] >= OFTEN and _in_two_pairs(pairs):
            verdict = "reproduced"
        elif least["rate"] >= most["rate"] / 2:
            verdict = "partly"
    return _rate(least, verdict)


def judge_training(record: Record) -> Outcome | None:
    """Judge Figure 5b by the change of training that success suffers most from."""
    rows = {row["change"]: row for row in record.metrics["rows"]}
    changes = [
        rows[name]
        for name in ("batches and rate doubled", "no momentum", "regularised")
        if name in rows
    ]
    if "as expected" not in rows or len(changes) < 3:
        return None
    expected = rows["as expected"]
    least = min(changes, key=lambda row: row["rate"])
    pairs = {(row["change"], row["pair"]): row for row in record.metrics["by_pair"]}
    attacked = [
        p for (name, p), row in pairs.items() if name == "as expected" and _beyond_clean(row)
    ]

    def survived(row: Json) -> bool:
        both = [(row, expected)]
        both += [(pairs[row["change"], p], pairs["as expected", p]) for p in attacked]
        return _beyond_clean(row) and all(own["rate"] >= usual["rate"] / 2 for own, usual in both)

    enough = [survived(row) for row in changes]
    verdict: Verdict = "not"
    if expected["rate"] >= OFTEN and _beyond_clean(expected) and attacked and any(enough):
        verdict = "reproduced" if all(enough) and len(attacked) >= 2 else "partly"
    return _rate(least, verdict)


def is_taken(trial: Json) -> bool:
    """Tell whether a victim gives the target the wanted label, and its clean twin does not."""
    wanted, clean = trial["wanted_class"], trial["clean"]["predictions"][0]
    return bool(trial["predictions"][0] == wanted != clean)


def _taken(record: Record) -> list[Json]:
    return [trial for trial in record.metrics["trials"] if is_taken(trial)]


def judge_plane(record: Record) -> Outcome | None:
    """Judge Figure 6a by the variance that two components explain, and by who leaves the path."""
    values, taken = record.metrics["explained"], _taken(record)
    found = mean_and_deviation(values)[0]
    leave = [
        mean_and_deviation(trial["apart"]["poisoned"])[0]
        > mean_and_deviation(trial["apart"]["signs"])[0]
        for trial in taken
    ]
    verdict: Verdict = "not"
    if taken and found >= 0.75:
        verdict = "reproduced" if found >= 0.9 and all(leave) else "partly"
    interval = (min(values), max(values))
    return Outcome(measured=found, interval=interval, n=len(values), verdict=verdict)


def judge_features(record: Record) -> Outcome | None:
    """Judge Figure 6b by the last representation of victims, beside that of a collision."""
    taken = _taken(record)
    ratios, near = [], []
    for trial in taken or record.metrics["trials"]:
        last = {kind: values[-1] for kind, values in trial["distances"].items()}
        ratios.append(last["poisons in victim"] / last["bases in victim"])
        collided = last["collided in clean"] / last["bases in clean"]
        in_clean = last["poisons in clean"] / last["bases in clean"]
        near.append(min(ratios[-1], in_clean) <= collided)
    found = mean_and_deviation(ratios)[0]
    verdict: Verdict = "not"
    if taken and not any(near):
        verdict = "reproduced" if found >= 0.5 else "partly"
    interval = (min(ratios), max(ratios))
    return Outcome(measured=found, interval=interval, n=len(ratios), verdict=verdict)


def _of_first_target(record: Record, scenario: str) -> Json:
    """Count what became of each pair's first target, which all of its attacks have."""
    own = [t for t in record.metrics["trials"] if t["scenario"] == scenario]
    hits = sum(t["predictions"][0] == t["wanted_class"] for t in own)
    anyway = sum(t["clean"]["predictions"][0] == t["wanted_class"] for t in own)
    counts = {"clean_hits": anyway, "clean_targets": len(own)}
    return {"hits": hits, "targets": len(own), "rate": hits / len(own), **counts}


def judge_scenario(name: str) -> Callable[[Record], Outcome | None]:
    """Judge a bar of Figure 6c beside that of one target, by the target that both have."""

    def judge(record: Record) -> Outcome | None:
        own, usual = (_of_first_target(record, kind) for kind in (name, "one target"))
        verdict: Verdict = "not"
        if usual["rate"] < OFTEN or not all(map(_beyond_clean, (usual, own))):
            return _rate(own, verdict)
        # Of whole numbers, so that four fifths are 0.8: 0.6 / 0.75 is less.
        share = own["hits"] * usual["targets"] / (usual["hits"] * own["targets"])
        if name == "third party":
            verdict = "reproduced" if share >= 0.8 else "partly" if share >= 0.5 else "not"
        elif share < 1:
            less = more_often(usual["hits"], usual["targets"], own["hits"], own["targets"])
            verdict = "reproduced" if less and share <= 0.8 else "partly"
        return _rate(own, verdict)

    return judge


_SUCCESS = "targets given the wanted label, all pairs and victims"
_INTERVAL = "interval: 95 % for the rate"
_FISHER = "Fisher's exact test, one-sided, 5 %"
_BEYOND = f"only rates above that of victims of clean images count ({_FISHER})"

EXHIBITS: tuple[Exhibit, ...] = (
    Exhibit(
        paper=META,
        exhibit="Figure 3a",
        claim="a few unrolled steps lower the target's loss a little, training on the poisons "
        "lowers it much",
        quantity="target's loss in victims after the last crafting step",
        unit="number",
        rule="reproduced: over the last third of the crafting steps the loss is lower in "
        "surrogates after the unrolled steps than before them, and in victims lower still, and "
        "at most half of what it is in victims of the first step and in victims of clean images; "
        "partly: only the latter two, or the surrogates' loss is a margin; "
        "interval: lowest and highest victim",
        experiment="metapoison/crafting",
        judge=judge_losses,
    ),
    Exhibit(
        paper=META,
        exhibit="Figure 3b",
        claim="success in victims grows with the crafting steps, their accuracy hardly changes",
        quantity="targets given the wanted label after the last crafting step",
        rule="reproduced: after the last step at least half of the victims give the wanted label, "
        "the interval lies above that before the first, and the accuracy is at most "
        f"{100 * MARGINAL:.0f} points lower; partly: the intervals are apart, or at least half of "
        f"the victims do and more than before; {_BEYOND}; {_INTERVAL}",
        experiment="metapoison/crafting",
        judge=judge_steps,
    ),
    Exhibit(
        paper=META,
        exhibit="Figure 4",
        claim="poisons change the target's label for nearly all initialisations, and nothing else",
        quantity=_SUCCESS,
        reported=NEARLY_ALL,
        rule="reproduced: at least 90 %, and the mean accuracy at most "
        f"{100 * MARGINAL:.0f} points below that of victims trained on clean images; partly: at "
        f"least 50 %, as the abstract has it; {_BEYOND}; {_INTERVAL}",
        experiment="metapoison/victims",
        judge=judge_victims,
    ),
    Exhibit(
        paper=META,
        exhibit="Figure 5a",
        claim="fewer poisons than a tenth of the data are enough",
        quantity="targets given the wanted label with the smallest budget of 3 % and more, "
        "but less than 10 %",
        reported=OFTEN,
        rule="reproduced: at least 50 % (the abstract: over 50 % with 3 to 10 % of the data), and "
        "in at least two pairs by themselves more than clean victims; partly: at least "
        f"half of the rate with the largest budget; {_BEYOND}; {_INTERVAL}",
        experiment="metapoison/budget",
        judge=judge_budget,
    ),
    Exhibit(
        paper=META,
        exhibit="Figure 5b",
        claim="poisons survive other batch sizes and rates, another optimizer, regularisation",
        quantity="targets given the wanted label under the change that hurts most",
        rule="reproduced: at least half of the victims give the wanted label as expected; there "
        "are at least two pairs that by themselves go beyond clean victims, and in each of them "
        "and over all under each of the three changes at least half as many do; partly: one such "
        f"pair, or under some changes; {_BEYOND}, of victims trained in the same way; {_INTERVAL}",
        experiment="metapoison/training",
        judge=judge_training,
    ),
    Exhibit(
        paper=META,
        exhibit="Figure 6a",
        claim="poisoned training leaves the clean path; two components show the paths",
        quantity="variance that two components explain",
        reported=EXPLAINED,
        rule="reproduced: at least 90 %, and in every run whose victim gives the target the "
        "wanted label (and its clean twin does not) the weights are on average over the epochs "
        "farther from the clean path than with the same changes at random signs; partly: at "
        "least 75 %, and there is such a run; interval: lowest and highest run",
        experiment="metapoison/mechanism",
        judge=judge_plane,
    ),
    Exhibit(
        paper=META,
        exhibit="Figure 6b",
        claim="unlike collisions, poisons stay far from the target in feature space",
        quantity="distance of poisons to the target in victims, as a share of that of the "
        "images they were made from",
        rule="in the last representation, in runs whose victim gives the target the wanted label "
        "(and its clean twin does not): reproduced if this share is larger than a collision's "
        "in the network it was made with, in every run, as it is in clean networks, and on average "
        "at least a half; partly: only larger; not: otherwise, or if there is no such run; "
        "interval: lowest and highest run",
        experiment="metapoison/mechanism",
        judge=judge_features,
    ),
    Exhibit(
        paper=META,
        exhibit="Figure 6c: third party",
        claim="poisons of one class give the target the label of another one",
        quantity=_SUCCESS,
        rule="reproduced: at least 80 % of the usual attack's rate; partly: at least 50 %; "
        f"neither if the usual attack succeeds less than half of the time; {_BEYOND}; {_INTERVAL}",
        experiment="metapoison/scenarios",
        judge=judge_scenario("third party"),
    ),
    Exhibit(
        paper=META,
        exhibit="Figure 6c: several targets",
        claim="with several targets at once the attack becomes less reliable",
        quantity="the target that the usual attack has, too, given the wanted label, all pairs and "
        "victims",
        rule="reproduced: at most 80 % of the usual attack's rate, and less often than it "
        f"({_FISHER}); partly: only a lower rate; neither if the usual attack succeeds less than "
        f"half of the time; {_BEYOND}, for both attacks; {_INTERVAL}",
        experiment="metapoison/scenarios",
        judge=judge_scenario("several targets"),
    ),
)
