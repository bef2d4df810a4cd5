"""Convex Polytope: the paper's numbers, and the rules by which our results are judged."""

from collections.abc import Callable, Sequence
from functools import partial

from poisonkit.claims.base import Exhibit, Outcome, Verdict
from poisonkit.statistics import mean_and_deviation, more_often, wilson
from poisonkit.store import Json, Record

POLYTOPE = "Convex Polytope"
#: Successes of Convex Polytope in percent of 50 targets; the paper has bars, these numbers
#: its authors gave to a reader who asked (issue 2 of their repository).
FIGURE_5 = {
    "dpn92": 54.0,
    "senet18": 34.0,
    "resnet50": 72.0,
    "resnext29_2x64d": 54.0,
    "googlenet": 46.0,
    "mobilenet_v2": 50.0,
    "resnet18": 52.0,
    "densenet121": 42.0,
}
#: Section 4.1, Figure 5: Feature Collision never succeeds more often than that.
COLLISION = 0.5
#: Section 4.3: with several layers all gray-box attacks succeed more often than that.
GRAY_BOX = 0.6
#: Victims overfit, says the paper; of one that fits less of its poisons no attack can be judged.
FITTED = 0.9


def _rate(rows: Sequence[Json], *, verdict: Verdict = "not") -> Outcome:
    """Return the rate of success over all rows, with its interval."""
    hits, total = _counts(rows)
    return Outcome(measured=hits / total, interval=wilson(hits, total), n=total, verdict=verdict)


def _counts(rows: Sequence[Json]) -> tuple[int, int]:
    """Return how many targets were taken for the poisons' class, and of how many.

    Counts are compared where a rule has points or halves, since quotients may miss a tie.
    """
    return sum(row["hits"] for row in rows), sum(row["targets"] for row in rows)


def _without(rows: Sequence[Json]) -> tuple[int, int]:
    """Return the same for victims that saw no poisons."""
    return _counts([{**row, "hits": round(row["clean"] * row["targets"])} for row in rows])


def _own(record: Record, **values: object) -> list[Json]:
    rows = record.metrics["rows"]
    return [row for row in rows if all(row[key] == value for key, value in values.items())]


def judge_proposition(record: Record) -> Outcome | None:
    """Judge Proposition 1 by the draws in which the target lies in the polytope."""
    rows = [row for row in _own(record, distance=0.0) if row["fitted"]]
    if not rows:
        return None
    hits, total = (sum(row[key] for row in rows) for key in ("captured", "fitted"))
    verdict: Verdict = "reproduced" if hits == total else "not"
    return Outcome(measured=hits / total, interval=wilson(hits, total), n=total, verdict=verdict)


def _distances(record: Record, objective: str) -> list[float]:
    """Return for each target the distance of its poisons, a mean over the victims."""
    found = []
    for trial in record.metrics["trials"]:
        if trial["objective"] == objective:
            squares = zip(*(entry["to_poison"] for entry in trial["victims"]), strict=True)
            found += [mean_and_deviation([d**0.5 for d in own])[0] for own in squares]
    return found


def judge_distance(record: Record) -> Outcome | None:
    """Judge Figure 1 by where the poisons of both attacks end up in the victims' features."""
    rows = {name: _own(record, objective=name) for name in ("collision", "polytope")}
    if not all(rows.values()):
        return None
    distances = {name: _distances(record, name) for name in rows}
    ratios = [p / c for p, c in zip(distances["polytope"], distances["collision"], strict=True)]
    ratio = sum(distances["polytope"]) / sum(distances["collision"])
    verdict: Verdict = "not"
    if ratio > 1:
        (hits, total), (others, of) = _counts(rows["polytope"]), _counts(rows["collision"])
        difference = hits * of - others * total  # in units of 1 / (total * of)
        if difference > 0:
            verdict = "reproduced"
        elif 20 * difference >= -total * of:
            verdict = "partly"
    interval = (min(ratios), max(ratios))
    return Outcome(measured=ratio, interval=interval, n=len(ratios), verdict=verdict)


def judge_dropout(record: Record) -> Outcome | None:
    """Judge Figure 3 by how often dropout while crafting leads to a lower objective."""
    rows = record.metrics["rows"]
    shares = [row["lower"] / row["targets"] for row in rows]
    lower, total = sum(row["lower"] for row in rows), sum(row["targets"] for row in rows)
    verdict: Verdict = "reproduced" if min(shares) >= 0.75 else "not"
    if verdict == "not" and lower > total / 2:
        verdict = "partly"
    return Outcome(measured=lower / total, interval=wilson(lower, total), n=total, verdict=verdict)


def judge_patterns(record: Record) -> Outcome | None:
    """Judge Figures 4 and 9 by how much the changes resemble the target's picture."""
    found: dict[str, list[float]] = {"collision": [], "polytope": []}
    for trial in record.metrics["trials"]:
        if trial["objective"] in found:
            found[trial["objective"]] += trial["likeness"]
    if not all(found.values()):
        return None
    means = {name: mean_and_deviation(values)[0] for name, values in found.items()}
    lower = [p < c for p, c in zip(found["polytope"], found["collision"], strict=True)]
    verdict: Verdict = "not"
    if means["polytope"] <= means["collision"] / 2:
        verdict = "reproduced"
    elif sum(lower) >= 0.75 * len(lower):
        verdict = "partly"
    values = found["polytope"]
    interval = (min(values), max(values))
    return Outcome(measured=means["polytope"], interval=interval, n=len(values), verdict=verdict)


def judge_victim(victim: str) -> Callable[[Record], Outcome | None]:
    """Judge a bar of Figure 5 by its rate."""

    def judge(record: Record) -> Outcome | None:
        own = _own(record, victim=victim, objective="polytope")
        other = _own(record, victim=victim, objective="collision")
        if not own or not other:
            return None
        reported = FIGURE_5[victim] / 100
        found = _rate(own)
        verdict: Verdict = "not"
        if found.measured > _rate(other).measured and found.measured >= reported / 2:
            works = more_often(*_counts(own), *_without(own))
            reached = works and found.interval[1] >= reported
            verdict = "reproduced" if reached else "partly"
        return _rate(own, verdict=verdict)

    return judge


def judge_collision(record: Record) -> Outcome | None:
    """Judge the other bars of Figure 5: collision never succeeds with more than half."""
    own = _own(record, objective="collision")
    polytope = _own(record, objective="polytope")
    if not own or not polytope:
        return None
    below = all(row["rate"] <= COLLISION for row in own)
    verdict: Verdict = "not"
    if _rate(own).measured < _rate(polytope).measured:
        # Where nothing transfers, every rate is below a half.
        less = more_often(*_counts(polytope), *_counts(own))
        verdict = "reproduced" if below and less else "partly"
    return _rate(own, verdict=verdict)


def judge_no_overlap(record: Record) -> Outcome | None:
    """Judge Figure 6 by the rate without overlap, beside that of the same training images."""
    none, whole = _own(record, overlap=0.0), _own(record, overlap=1.0)
    if not none or not whole:
        return None
    verdict: Verdict = "not"
    if more_often(*_counts(none), *_without(none)):
        (hits, total), (others, of) = _counts(none), _counts(whole)
        enough = 2 * hits * of >= others * total
        # Half of a rate is little to ask for where the attack hardly works at all.
        works = more_often(others, of, *_without(whole))
        verdict = "reproduced" if enough and works else "partly"
    return _rate(none, verdict=verdict)


def judge_capacity(record: Record) -> Outcome | None:
    """Judge what the text says of Figure 6: larger victims are easier without overlap."""
    large = [r for name in ("dpn92", "densenet121") for r in _own(record, overlap=0.0, victim=name)]
    little = [
        r for name in ("senet18", "mobilenet_v2") for r in _own(record, overlap=0.0, victim=name)
    ]
    if len(large) < 2 or len(little) < 2:
        return None
    one, other = _rate(large), _rate(little)
    verdict: Verdict = "not"
    if one.measured > other.measured:
        verdict = "reproduced" if one.interval[0] > other.interval[1] else "partly"
    return _rate(large, verdict=verdict)


def _attack(record: Record, attack: str, **values: object) -> list[Json]:
    """Return an attack's rows if its victims fit their poisons, else none."""
    rows = _own(record, attack=attack, **values)
    fitted = rows and mean_and_deviation([row["fitted"] for row in rows])[0] >= FITTED
    return rows if fitted else []


def judge_last_layer(record: Record) -> Outcome | None:
    """Judge Figure 7's single layer, which hardly ever succeeds where several do."""
    own, several = _attack(record, "last layer"), _attack(record, "all stages")
    if not own or not several:
        return None
    found = _rate(own)
    (hits, total), (without, _) = _counts(own), _without(own)
    verdict: Verdict = "not"
    if 10 * (hits - without) <= total:
        # Where nothing works end to end, it says little that a single layer does not.
        others_work = _rate(several).interval[0] > found.interval[1]
        verdict = "reproduced" if others_work and found.interval[1] <= 0.2 else "partly"
    return _rate(own, verdict=verdict)


def judge_several_layers(record: Record) -> Outcome | None:
    """Judge Figure 7's several layers against victims of the substitutes' architectures."""
    known = record.config["substitutes"]
    own = [row for row in _attack(record, "all stages") if row["victim"] in known]
    single = [row for row in _attack(record, "last layer") if row["victim"] in known]
    if not own or not single:
        return None
    found, one = _rate(own), _rate(single)
    verdict: Verdict = "not"
    if found.interval[0] > one.interval[1]:
        often = found.measured >= max(GRAY_BOX, 2 * one.measured)
        reached = often and all(row["high"] >= GRAY_BOX for row in own)
        verdict = "reproduced" if reached else "partly"
    return _rate(own, verdict=verdict)


def judge_googlenet(record: Record) -> Outcome | None:
    """Judge Figure 7's exception."""
    known = record.config["substitutes"]
    rows = _attack(record, "all stages")
    own = [row for row in rows if row["victim"] == "googlenet"]
    others = [row for row in rows if row["victim"] in known]
    if not own or not others:
        return None
    found, usual = _rate(own), _rate(others)
    verdict: Verdict = "not"
    (hits, total), (of_usual, of) = _counts(own), _counts(others)
    if of_usual and 2 * hits * of <= of_usual * total:
        verdict = "reproduced" if found.interval[1] < usual.interval[0] else "partly"
    return _rate(own, verdict=verdict)


def judge_accuracy(record: Record) -> Outcome | None:
    """Judge Figure 8 by what the poisons cost the victims on test images."""
    rows = [r for r in record.metrics["rows"] if r["objective"] in ("collision", "polytope")]
    if not rows:
        return None
    drops = [row["clean_accuracy"] - row["accuracy"] for row in rows]
    mean = mean_and_deviation(drops)[0]
    verdict: Verdict = "reproduced" if max(drops) <= 0.01 else "not"
    if verdict == "not" and mean <= 0.01 and max(drops) <= 0.03:
        verdict = "partly"
    return Outcome(measured=mean, interval=(min(drops), max(drops)), n=len(drops), verdict=verdict)


_WILSON = "Interval: 95 % (Wilson) over targets and victims"
_IF_FITTED = "Judged only where victims fit at least 90 % of their poisons"
_exhibit = partial(Exhibit, paper=POLYTOPE)
_transfer = partial(_exhibit, experiment="convex_polytope/transfer")
_end_to_end = partial(_exhibit, experiment="convex_polytope/end_to_end")

EXHIBITS: tuple[Exhibit, ...] = (
    _exhibit(
        exhibit="Proposition 1",
        claim="every linear classifier that fits the poisons captures a target in their polytope",
        quantity="draws in which the target is captured, of those in which all poisons are fitted",
        reported=1.0,
        rule="reproduced if it is captured in every one of them; not otherwise. Interval: 95 % "
        "(Wilson) over the draws",
        experiment="convex_polytope/proposition",
        judge=judge_proposition,
    ),
    _transfer(
        exhibit="Figure 1",
        claim="poisons farther from the target can succeed more often",
        quantity="mean distance of Convex Polytope's poisons from the target in the victims' "
        "features, in units of Feature Collision's",
        unit="number",
        rule="reproduced if it is above 1 and Convex Polytope succeeds more often over all "
        "victims; partly if it is above 1 and it succeeds at most 5 points less often; not "
        "otherwise. Interval: lowest and highest target",
        judge=judge_distance,
    ),
    _exhibit(
        exhibit="Figure 3",
        claim="dropout while crafting lowers the loss in networks that nobody crafted with",
        quantity="targets for which the last loss is lower with dropout, over both objectives "
        "and all unseen networks",
        rule="reproduced if it is lower for at least three quarters of the targets, with each "
        "objective and in each network; partly if for more than half over all; not otherwise. "
        "Interval: 95 % (Wilson)",
        experiment="convex_polytope/randomised",
        judge=judge_dropout,
    ),
    _transfer(
        exhibit="Figures 4 and 9",
        claim="Feature Collision's poisons show the target's patterns, Convex Polytope's hardly",
        quantity="cosine between a Convex Polytope poison's change and the difference of target "
        "and base",
        unit="number",
        rule="reproduced if its mean is at most half of Feature Collision's; partly if it is "
        "lower for at least three quarters of the targets; not otherwise. Interval: lowest and "
        "highest target",
        judge=judge_patterns,
    ),
    *(
        _transfer(
            exhibit=f"Figure 5: {victim}",
            claim="Convex Polytope transfers to networks that it was not made with",
            quantity="targets taken for the poisons' class",
            reported=reported / 100,
            rule="partly if the rate is at least half of the reported one and above Feature "
            "Collision's; reproduced if, moreover, it is more than without poisons by Fisher's "
            "exact test (one-sided, 5 %) and its interval reaches the reported rate or lies "
            "above it; not otherwise. Interval: 95 % (Wilson) over the targets",
            judge=judge_victim(victim),
        )
        for victim, reported in FIGURE_5.items()
    ),
    _transfer(
        exhibit="Figure 5: Feature Collision",
        claim="Feature Collision never succeeds with more than half of the targets",
        quantity="targets taken for the poisons' class, all victims",
        rule="partly if the rate over all victims is below Convex Polytope's; reproduced if it "
        "is so by Fisher's exact test (one-sided, 5 %) and at most 50 % for every victim; not "
        f"otherwise. {_WILSON}",
        judge=judge_collision,
    ),
    _exhibit(
        exhibit="Figure 6: no overlap",
        claim="it works with substitutes that were trained on other images than the victim",
        quantity="targets taken for the poisons' class without overlap, all victims",
        rule="partly if they are more than without poisons, by Fisher's exact test (one-sided, "
        "5 %); reproduced if, moreover, that holds with the same training images as well and the "
        f"rate is at least half of theirs; not otherwise. {_WILSON}",
        experiment="convex_polytope/overlap",
        judge=judge_no_overlap,
    ),
    _exhibit(
        exhibit="Figure 6: capacity",
        claim="without overlap, networks of high capacity are fooled more often",
        quantity="targets taken for the poisons' class by DPN92 and DenseNet121, without overlap",
        rule="reproduced if the interval lies above that of SENet18 and MobileNetV2; partly if "
        f"the rate does; not otherwise. {_WILSON}",
        experiment="convex_polytope/overlap",
        judge=judge_capacity,
    ),
    _end_to_end(
        exhibit="Figure 7: last layer",
        claim="surrounding the target in the last layer hardly works against end-to-end training",
        quantity="targets taken for the poisons' class, all victims",
        rule="reproduced if the rate is at most 10 points above that without poisons and the "
        "interval ends at 20 % at most and below that of several layers; partly if the first "
        "holds; not otherwise. "
        f"{_IF_FITTED}. {_WILSON}",
        judge=judge_last_layer,
    ),
    _end_to_end(
        exhibit="Figure 7: several layers",
        claim="surrounding it in several layers succeeds more often than 0.6 with known "
        "architectures",
        quantity="targets taken for the poisons' class, victims of the substitutes' architectures",
        reported=GRAY_BOX,
        rule="partly if the interval lies above that of the last layer alone; reproduced if, "
        "moreover, the rate is at least 60 % and twice that of the last layer, and every such "
        "victim's interval reaches 60 % or lies above it; not otherwise. "
        f"{_IF_FITTED}. {_WILSON}",
        judge=judge_several_layers,
    ),
    _end_to_end(
        exhibit="Figure 7: GoogLeNet",
        claim="it remains very difficult to transfer to GoogLeNet",
        quantity="targets that GoogLeNet takes for the poisons' class, several layers",
        rule="reproduced if the interval lies below that of the known architectures, and the rate "
        "is at most half of theirs; partly if only the second holds; not otherwise. "
        f"{_IF_FITTED}. Interval: 95 % (Wilson) over the targets",
        judge=judge_googlenet,
    ),
    _transfer(
        exhibit="Figure 8",
        claim="the accuracy on clean test images does not drop obviously",
        quantity="accuracy without poisons less that with them, mean over victims and the paper's "
        "two attacks",
        unit="points",
        rule="reproduced if it is at most 1 point for each of them; partly if at most 1 on average "
        "and 3 for each; not otherwise. Interval: lowest and highest",
        judge=judge_accuracy,
    ),
)
