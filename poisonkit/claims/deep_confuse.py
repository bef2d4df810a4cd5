"""Deep Confuse: the rules by which our results are judged."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from poisonkit.claims.base import Exhibit, Outcome, Verdict
from poisonkit.claims.deep_confuse_reported import (
    FIGURE_6,
    FIGURE_7,
    FIGURE_8,
    LABEL_MAP_HIT_RATE,
    TABLE_1,
    TABLE_2,
)
from poisonkit.statistics import mean_and_deviation
from poisonkit.store import Json, Record

CONFUSE = "Deep Confuse"
#: Names of the data sets, and the accuracy that guessing has, in percent.
DATASETS = {"mnist": "MNIST", "imagenet2": "ImageNet", "cifar10": "CIFAR-10"}
CHANCE = {"mnist": 10.0, "imagenet2": 50.0, "cifar10": 10.0}
#: Accuracy within so many points of that without noise counts as unharmed.
UNHARMED = 5.0
#: Neighbours that a point of Figure 3 is held against.
NEIGHBOURS = 10


def _outcome(values: Sequence[float], verdict: Verdict, measured: float | None = None) -> Outcome:
    """Return a mean of percentages, as a rate, with its lowest and highest run."""
    mean = mean_and_deviation(values)[0] if measured is None else measured
    interval = (min(values) / 100, max(values) / 100)
    return Outcome(measured=mean / 100, interval=interval, n=len(values), verdict=verdict)


def _by_share(found: float, reported: float) -> Verdict:
    """Judge an effect by the share of the reported one that it reaches."""
    if found >= 0.9 * reported:
        return "reproduced"
    return "partly" if found >= 0.5 * reported else "not"


def _means(trials: Sequence[Json], *path: str) -> tuple[list[float], float]:
    """Return a number of each trial in percent, and its mean."""
    values = []
    for trial in trials:
        found: object = trial
        for name in path:
            assert isinstance(found, dict)
            found = found[name]
        values.append(100 * float(found))  # type: ignore[arg-type]
    return values, mean_and_deviation(values)[0]


def judge_drop(dataset: str) -> Callable[[Record], Outcome | None]:
    """Judge Table 1 by the accuracy that training on perturbed images costs."""

    def judge(record: Record) -> Outcome | None:
        (reported_clean, _), (reported, _) = TABLE_1[dataset]
        _, clean = _means(record.metrics["trials"], "clean", "accuracy")
        values, perturbed = _means(record.metrics["trials"], "perturbed", "accuracy")
        verdict = _by_share(clean - perturbed, reported_clean - reported)
        if reported < CHANCE[dataset] <= perturbed and verdict == "reproduced":
            verdict = "partly"
        return _outcome(values, verdict)

    return judge


def judge_noise_alone(dataset: str) -> Callable[[Record], Outcome | None]:
    """Judge Table 2 by what perturbed training makes of the noise of test images, beyond chance."""

    def judge(record: Record) -> Outcome | None:
        _, reported = TABLE_2[dataset]
        values, found = _means(record.metrics["trials"], "on_noise", "test")
        chance = CHANCE[dataset]
        return _outcome(values, _by_share(found - chance, reported - chance))

    return judge


def judge_components(record: Record) -> Outcome | None:
    """Judge Figure 3 by who is near whom in its plane.

    Clean points may lie together class by class, only not where the training has their
    class: so both are asked, the training points' class means and the points' neighbours.
    """
    arrays = record.arrays
    if "0.components.train" not in arrays:
        return None
    train, labels = arrays["0.components.train"], arrays["0.components.train_labels"]
    classes = int(labels.max()) + 1
    means = torch.stack([train[labels == label].mean(0) for label in range(classes)])
    by_means, by_neighbours = {}, {}
    for name in ("train", "test"):
        points, own = (arrays[f"0.components.{name}{part}"] for part in ("", "_labels"))
        nearest = torch.cdist(points, means).argmin(1)
        by_means[name] = 100 * float((nearest == own).double().mean())
        by_neighbours[name] = 100 * agree_with_neighbours(points, own)
    chance = 100 / classes
    left = max(
        (shares["test"] - chance) / max(shares["train"] - chance, 1e-9)
        for shares in (by_means, by_neighbours)
    )
    verdict: Verdict = "not"
    if by_means["train"] >= (90 if classes == 2 else (100 + chance) / 2):
        verdict = "reproduced" if left <= 0.2 else "partly" if left <= 0.5 else "not"
    return _outcome([by_neighbours["test"]], verdict)


def agree_with_neighbours(points: Tensor, labels: Tensor) -> float:
    """Return the share of points whose label is the most frequent of their neighbours'."""
    distances = torch.cdist(points, points).fill_diagonal_(torch.inf)
    nearest = distances.topk(NEIGHBOURS, largest=False).indices
    return float((labels[nearest].mode(1).values == labels).double().mean())


def judge_threshold(record: Record) -> Outcome | None:
    """Judge Figure 4 by the largest bound that leaves the accuracy unharmed."""
    trials = record.metrics["trials"]
    means = {row["epsilon"]: 100 * row["mean"] for row in record.metrics["rows"]}
    if not {0.0, 0.1, 0.15, 0.25, 0.3} <= set(means):
        return None

    def unharmed(accuracy: dict[float, float]) -> float:
        return max(e for e in accuracy if accuracy[e] >= means[0.0] - UNHARMED or e == 0)

    runs: dict[tuple[int, int], dict[float, float]] = {}
    for trial in trials:
        if trial["epsilon"]:
            own = runs.setdefault((trial["generator"], trial["seed"]), {0.0: means[0.0]})
            own[trial["epsilon"]] = 100 * trial["accuracy"]
    found, each = unharmed(means), [unharmed(own) for own in runs.values()]
    verdict: Verdict = "not"
    if means[0.1] >= means[0.0] - UNHARMED and means[0.3] <= means[0.0] / 2:
        sudden = found == 0.15 and max(means[0.25], means[0.3]) < CHANCE["mnist"]
        verdict = "reproduced" if sudden else "partly"
    interval = (min(each), max(each))
    return Outcome(measured=found, interval=interval, n=len(each), verdict=verdict)


def judge_share(record: Record) -> Outcome | None:
    """Judge Figure 5 by the curve of epsilon 0.3 beside that of random labels."""
    rows = [row for row in record.metrics["rows"] if row["epsilon"] in (0.3, None)]
    means = {(row["kind"], row["share"]): 100 * row["mean"] for row in rows}
    shares = {share for kind, share in means if kind == "noise"}
    if not {0.0, 0.4, 0.9, 1.0} <= shares:
        return None
    values, _ = _means(
        [
            trial
            for trial in record.metrics["trials"]
            if trial["epsilon"] == 0.3 and trial["share"] == 0.9
        ],
        "accuracy",
    )
    whole = means["noise", 0.0]
    verdict: Verdict = "not"
    few = min(means["noise", share] for share in shares if share <= 0.4)
    if few >= whole - UNHARMED and means["noise", 1.0] <= whole / 2:
        below = means["noise", 0.9] < means["random labels", 0.9]
        verdict = "reproduced" if below and means["noise", 1.0] < CHANCE["mnist"] else "partly"
    return _outcome(values, verdict)


def judge_transfer(
    figure: dict[str, tuple[float, float]], *, others: bool
) -> Callable[[Record], Outcome | None]:
    """Judge Figures 6 and 7 by the drop of each classifier's accuracy.

    Parameters
    ----------
    figure : reported accuracies in percent, without noise and with it, by classifier.
    others : whether other classifiers may stand in for the figure's; then each is held
        against the mean drop.
    """
    drops = {name: clean - perturbed for name, (clean, perturbed) in figure.items()}
    order: list[Verdict] = ["not", "partly", "reproduced"]

    def judge(record: Record) -> Outcome | None:
        # The network that the noise was made with is no transfer, unless the figure has it.
        rows = {
            row["classifier"]: row
            for row in record.metrics["rows"]
            if row["classifier"] in figure or row["classifier"] != "original"
        }
        found = {name: 100 * (row["clean"] - row["perturbed"]) for name, row in rows.items()}
        if set(drops) <= set(found):
            each = [_by_share(found[name], reported) for name, reported in drops.items()]
        elif others and found:
            reported = mean_and_deviation([*drops.values()])[0]
            each = [_by_share(drop, reported) for drop in found.values()]
        else:
            return None
        values = [100 * row["perturbed"] for row in rows.values()]
        return _outcome(values, min(each, key=order.index))

    return judge


def judge_gap(dataset: str) -> Callable[[Record], Outcome | None]:
    """Judge Figure 8 by the gap between both curves at their end."""

    def judge(record: Record) -> Outcome | None:
        curves = [trial["perturbed"] for trial in record.metrics["trials"]]
        gaps = [100 * (curve["train"][-1] - curve["test"][-1]) for curve in curves]
        return _outcome(gaps, _by_share(mean_and_deviation(gaps)[0], _final_gap(dataset)))

    return judge


def _final_gap(dataset: str) -> float:
    ends = {name: curve[max(curve)] for name, curve in FIGURE_8[dataset].items()}
    return ends["train"] - ends["test"]


def judge_hit_rate(record: Record) -> Outcome | None:
    """Judge Figure 10 by the share of test images that are called what the map wants."""
    own = [trial for trial in record.metrics["trials"] if trial["kind"] == "label map"]
    values, found = _means(own, "hit_rate")
    return _outcome(values, _by_share(found, LABEL_MAP_HIT_RATE[0]))


#: What an exhibit is called that was made with the released code's network, not the text's.
CODES_NETWORK = ", the code's network"
_RUNS = "Interval: lowest and highest run"
_STAND_IN = "At small, jellyfish and albatross stand in for jellyfish and bulbul"
_BY_SHARE = "reproduced if it is at least 90 % of the reported one; partly if at least half; not \
otherwise"


def _for_data(dataset: str, *, released_network: bool = False) -> list[Exhibit]:
    """Return what Tables 1 and 2 and Figures 3 and 8 show of a data set.

    Parameters
    ----------
    released_network : judge the attack on the released code's network, not on the text's.
    """
    name = DATASETS[dataset] + (CODES_NETWORK if released_network else "")
    stand_in = f". {_STAND_IN}" if dataset == "imagenet2" else ""
    experiment = f"deep_confuse/{'network' if released_network else dataset}"
    exhibit = partial(Exhibit, paper=CONFUSE, experiment=experiment)
    return [
        exhibit(
            exhibit=f"Table 1: {name}",
            claim="training on slightly perturbed images ruins the accuracy on clean ones",
            quantity="accuracy on clean test images after training on perturbed ones",
            reported=round(TABLE_1[dataset][1][0] / 100, 6),
            rule="the drop is the mean accuracy after training on clean images less that after "
            f"training on perturbed ones: {_BY_SHARE}. Where the reported accuracy is below "
            f"chance, it takes one below chance to be reproduced. {_RUNS}{stand_in}",
            judge=judge_drop(dataset),
        ),
        exhibit(
            exhibit=f"Table 2: {name}",
            claim="classifiers over-fit to the noise: from it alone they tell the label",
            quantity="accuracy on the noise of test images, after training on perturbed images",
            reported=round(TABLE_2[dataset][1] / 100, 6),
            rule=f"the mean accuracy less that of guessing: {_BY_SHARE}. {_RUNS}{stand_in}",
            judge=judge_noise_alone(dataset),
        ),
        exhibit(
            exhibit=f"Figure 3: {name}",
            claim="a network trained on perturbed images separates them, and not the clean ones",
            quantity="clean test images that have the most frequent class of their ten nearest "
            "neighbours (the first of several), in the plane of the perturbed training images' "
            "two principal components",
            rule="this share, and that of images nearest to the mean of their class among "
            "the training images, each less that of guessing: reproduced if for test images "
            "both are at most a fifth of what they are for training images; partly if at most "
            "half; not otherwise, or if fewer training images are nearest to their mean than "
            f"halfway between guessing and all (two classes: 90 %). One run{stand_in}",
            judge=judge_components,
        ),
        exhibit(
            exhibit=f"Figure 8: {name}",
            claim="the network fits the perturbed images, and the gap to clean ones is wide",
            quantity="accuracy on perturbed training images, as they are trained on in the last "
            "epoch, less that on clean test images after it",
            unit="points",
            reported=round(_final_gap(dataset) / 100, 4),
            rule=f"the mean gap: {_BY_SHARE}. {_RUNS}{stand_in}",
            judge=judge_gap(dataset),
        ),
    ]


def _mean_perturbed(figure: dict[str, tuple[float, float]]) -> float:
    return round(mean_and_deviation([found for _, found in figure.values()])[0] / 100, 5)


def _transfer(
    exhibit: str,
    experiment: str,
    figure: dict[str, tuple[float, float]],
    *,
    others: bool = False,
) -> Exhibit:
    stand_in = f". {_STAND_IN}" if exhibit.endswith("ImageNet") else ""
    instead = ". Other classifiers that stand in for them: each drop against the reported mean"
    return Exhibit(
        paper=CONFUSE,
        exhibit=exhibit,
        claim="the noise ruins classifiers that it was not made with",
        quantity="accuracy on clean test images after training on perturbed ones, mean over the "
        "classifiers",
        reported=_mean_perturbed(figure),
        rule="each classifier's mean drop, against the one reported for it: reproduced if for "
        "every one it is at least 90 %; partly if for every one at least half; not otherwise"
        f"{instead if others else ''}. Interval: lowest and highest classifier{stand_in}",
        experiment=experiment,
        judge=judge_transfer(figure, others=others),
    )


def _on_mnist(*, released_network: bool = False) -> list[Exhibit]:
    """Return Figures 4, 5, 6 and 10, as :func:`_for_data` does Tables 1 and 2."""
    experiment = f"deep_confuse/{'network_' if released_network else ''}"
    suffix = CODES_NETWORK if released_network else ""
    return [
        Exhibit(
            paper=CONFUSE,
            exhibit=f"Figure 4{suffix}",
            claim="on MNIST the accuracy drops suddenly once epsilon exceeds 0.15",
            quantity="largest epsilon at which the accuracy is within 5 points of that without "
            "noise",
            unit="number",
            reported=0.15,
            rule="mean accuracies over the runs: reproduced if that epsilon is 0.15 and the "
            "accuracy at 0.25 and 0.3 below chance; partly if it is unharmed at 0.1 and at most "
            f"half at 0.3; not otherwise. {_RUNS}",
            experiment=f"{experiment}epsilon",
            judge=judge_threshold,
        ),
        Exhibit(
            paper=CONFUSE,
            exhibit=f"Figure 5{suffix}",
            claim="the damage grows with the share of perturbed images and exceeds that of random "
            "labels",
            quantity="accuracy with 90 % of the images perturbed, epsilon 0.3",
            reported=0.672,
            rule="mean accuracies: reproduced if up to a share of 40 % they are within 5 points of "
            "clean training, at 90 % below those of as many random labels, and at 100 % below "
            "chance; partly if the first holds and the accuracy at 100 % is at most half; not "
            f"otherwise. {_RUNS}",
            experiment=f"{experiment}share",
            judge=judge_share,
        ),
        _transfer(f"Figure 6{suffix}", f"{experiment}transfer", FIGURE_6),
        Exhibit(
            paper=CONFUSE,
            exhibit=f"Figure 10{suffix}",
            claim="label-specific noise makes the network take each class for the next",
            quantity="share of clean test images that are called the next class",
            reported=round(LABEL_MAP_HIT_RATE[0] / 100, 4),
            rule=f"the mean share: {_BY_SHARE}. {_RUNS}",
            experiment=f"{experiment}label_map",
            judge=judge_hit_rate,
        ),
    ]


EXHIBITS: tuple[Exhibit, ...] = (
    *_for_data("mnist"),
    *_on_mnist(),
    *_for_data("mnist", released_network=True),
    *_on_mnist(released_network=True),
    *_for_data("imagenet2"),
    *_for_data("cifar10"),
    *(
        _transfer(
            f"Figure 7: {DATASETS[data]}",
            f"deep_confuse/transfer_{data}",
            FIGURE_7[data],
            others=True,
        )
        for data in ("cifar10", "imagenet2")
    ),
)
