"""Spectral Signatures in Backdoor Attacks (Tran, Li and Madry, 2018): the experiments.

``signature`` looks at the features of the poisoned label (Figures 1 and 2);
``removal`` trains, filters and trains again (Table 2).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from poisonkit.attacks.backdoor import Trigger, craft, random_trigger
from poisonkit.data import ImageSet
from poisonkit.defenses.spectral import (
    RELEASED_PERCENTILE,
    REMOVAL_FACTOR,
    Filtered,
    spectral_filter,
    top_singular_vectors,
)
from poisonkit.errors import PoisonkitError
from poisonkit.experiments.running import Context, Cost, Experiment, trained_network
from poisonkit.models import Classifier, features
from poisonkit.statistics import mean_and_deviation, wilson
from poisonkit.store import Json
from poisonkit.training import Recipe, evaluate, predict

#: Section 4.4 counts a backdoor as captured at "approximately 90 % or higher".
CAPTURED = 0.90
#: The two hand-made backdoors of Figure 2, after their description: a grey pixel
#: near the bottom right of an airplane, a brown one in the middle of a car. Exact
#: places and colours are unpublished; these are ours.
HAND_MADE = {
    ("airplane", "bird"): Trigger(pattern="pixel", position=(26, 26), colour=(128, 128, 128)),
    ("automobile", "cat"): Trigger(pattern="pixel", position=(16, 16), colour=(101, 67, 33)),
}
TABLE_2_PAIRS = (
    ("airplane", "bird"),
    ("automobile", "cat"),
    ("automobile", "dog"),
    ("cat", "horse"),
    ("cat", "dog"),
    ("horse", "deer"),
    ("ship", "frog"),
    ("truck", "bird"),
)
Placement = Literal["added", "replaced"]


@dataclass(frozen=True, kw_only=True)
class SpectralConfig:
    """What both experiments have in common; the defaults are the paper's.

    Attributes
    ----------
    images_per_class : train on the first so many images of each class; None is all.
    pairs : (source, target) classes.
    shares : poisoned images as a share of the target class.
    pattern : ``pixel``, ``X``, ``L``, ``random`` (drawn from the seed with position
        and colour) or ``hand_made`` (Figure 2's).
    position, colour : fix these parts of the trigger.
    trials : independent runs, each with its own trigger, initial weights and order.
    tap, pool : the representation R(x), see :func:`poisonkit.models.features`.
    centred : the paper's score, or the released code's uncentred one.
    removal : ``factor``, the paper's 1.5 epsilon of each label; ``percentile``, the
        released code's; ``known``, exactly epsilon.
    labels : whether all labels are filtered, or the poisoned one only.
    """

    profile: Literal["quick", "small", "paper"] = "paper"
    variant: Literal["paper", "released"] = "paper"
    dataset: str = "cifar10"
    images_per_class: int | None = None
    pairs: tuple[tuple[str, str], ...] = TABLE_2_PAIRS
    shares: tuple[float, ...] = (0.05, 0.10)
    seed: int = 0
    trials: int = 3
    pattern: Literal["pixel", "X", "L", "random", "hand_made"] = "random"
    position: tuple[int, int] | None = None
    colour: tuple[int, ...] | None = None
    placement: Placement = "added"
    model: str = "preact_resnet32"
    standardise: Literal["data", "bytes"] = "data"
    recipe: Recipe = field(default_factory=Recipe)
    tap: str = "group3.3"
    pool: Literal["flatten", "mean"] = "flatten"
    centred: bool = True
    removal: Literal["factor", "percentile", "known"] = "factor"
    factor: float = REMOVAL_FACTOR
    percentile: float = RELEASED_PERCENTILE
    labels: Literal["all", "target"] = "all"


QUICK = {
    "dataset": "digits",
    "pairs": (("4", "9"),),
    "shares": (0.10,),
    "pattern": "X",
    "position": (13, 2),
    "colour": (255,),
    "model": "small_cnn",
    "tap": "hidden",
    "recipe.epochs": 15,
    "recipe.schedule": "cosine",
    "recipe.batch_size": 64,
    "recipe.learning_rate": 0.05,
    "recipe.crop_padding": 1,
    "recipe.flip": False,
}
#: All of CIFAR-10, but a shallower network, one pair, and 10 epochs instead of 205.
#: That is too short to capture the smallest triggers, so the shape is the largest one.
SMALL = {
    "pairs": (("airplane", "bird"),),
    "shares": (0.10,),
    "pattern": "X",
    "model": "preact_resnet14",
    "tap": "group3.0",
    "recipe.epochs": 10,
    "recipe.schedule": "cosine",
    "recipe.warmup": 0.1,
    "recipe.learning_rate": 0.2,
    "recipe.weight_decay": 5e-4,
    "recipe.precision": "bfloat16",
}
#: What the authors' code does where it differs from the paper's text.
RELEASED = {
    "pairs": (("truck", "deer"),),
    "shares": (0.10,),
    "pattern": "pixel",
    "position": (11, 16),
    "colour": (101, 0, 25),
    "placement": "replaced",
    "standardise": "bytes",
    "tap": "group3.2",
    "centred": False,
    "removal": "percentile",
    "labels": "target",
}


@dataclass(frozen=True, kw_only=True)
class Poisoned:
    """A poisoned training set with everything needed to judge what follows from it."""

    clean: ImageSet
    train: ImageSet
    mask: Tensor
    test: ImageSet
    triggered: Tensor
    source_test: ImageSet
    target: int
    trigger: Trigger
    count: int


def units(config: SpectralConfig) -> list[Json]:
    """One trial for each pair, share and seed."""
    return [
        {"source": source, "target": target, "share": share, "seed": config.seed + number}
        for source, target in config.pairs
        for share in config.shares
        for number in range(config.trials)
    ]


def poisoned_data(config: SpectralConfig, unit: Json, context: Context) -> Poisoned:
    """Load the data set, draw the trigger, and poison the training images."""
    train = context.load(config.dataset, "train")
    if config.images_per_class is not None:
        train = train.first_per_class(config.images_per_class)
    test = context.load(config.dataset, "test")
    trigger = _trigger(config, unit, train)
    poison = craft(
        train,
        trigger=trigger,
        source=unit["source"],
        target=unit["target"],
        share=unit["share"],
        placement=config.placement,
        seed=unit["seed"],
    )
    poisoned, mask = poison.apply(train)
    source_test = test.select(test.y == train.label_of(unit["source"]))
    return Poisoned(
        clean=train,
        train=poisoned,
        mask=mask,
        test=test,
        triggered=trigger.stamp(source_test.x),
        source_test=source_test,
        target=train.label_of(unit["target"]),
        trigger=trigger,
        count=len(poison),
    )


def _trigger(config: SpectralConfig, unit: Json, train: ImageSet) -> Trigger:
    if config.pattern == "hand_made":
        pair = (unit["source"], unit["target"])
        if pair not in HAND_MADE:
            raise PoisonkitError(f"there is no hand-made backdoor for {pair}; known: {[*HAND_MADE]}")
        trigger = HAND_MADE[pair]
    else:
        trigger = random_trigger(
            image_size=train.image_size,
            channels=train.channels,
            seed=unit["seed"],
            pattern=config.pattern,
        )
    if config.position is not None:
        trigger = replace(trigger, position=config.position)
    if config.colour is not None:
        trigger = replace(trigger, colour=config.colour)
    return trigger


def train_on(
    config: SpectralConfig, images: ImageSet, seed: int, context: Context, cost: Cost, label: str
) -> Classifier:
    """Train the configured network; the label names the run in the progress bar."""
    return trained_network(
        context,
        images,
        config.recipe,
        model=config.model,
        seed=seed,
        label=label,
        cost=cost,
        standardise=config.standardise,
    )


def filter_images(config: SpectralConfig, representation: Tensor, data: Poisoned) -> Filtered:
    """Apply the configured filter; epsilon is the true number of poisoned images."""
    return spectral_filter(
        representation,
        data.train.y,
        suspected=None if config.removal == "percentile" else data.count,
        factor=1.0 if config.removal == "known" else config.factor,
        percentile=config.percentile if config.removal == "percentile" else None,
        only_labels=None if config.labels == "all" else [data.target],
        centred=config.centred,
    )


def hits(model: Classifier, data: Poisoned) -> int:
    """Return how many triggered test images of the source class are called the target."""
    return int((predict(model, data.triggered) == data.target).sum())


def is_captured(successes: int, total: int) -> bool:
    """Whether the Wilson interval of the poisoned accuracy reaches the paper's 90 %.

    This reads "approximately 90 %" so that it agrees with all that the paper says
    of its own table: 89.8 % and 88.8 % of 1,000 count, 83.3 % does not.
    """
    return wilson(successes, total)[1] >= CAPTURED


def removal_trial(
    config: SpectralConfig, unit: Json, context: Context
) -> tuple[Json, dict[str, Tensor]]:
    """Train, filter, train again; and once on clean data for reference (Table 2)."""
    cost = Cost()
    data = poisoned_data(config, unit, context)
    seed, total = unit["seed"], len(data.triggered)
    before = train_on(config, data.train, seed, context, cost, "poisoned")
    representation = features(before, data.train.x, config.tap, pool=config.pool)
    result = filter_images(config, representation, data)
    # A new initialisation, as line 14 of Algorithm 1 asks.
    kept = data.train.select(result.keep)
    after = train_on(config, kept, seed + 1_000_000, context, cost, "filtered")
    clean = train_on(config, data.clean, seed, context, cost, "clean")
    hits_before = hits(before, data)
    numbers = {
        **unit,
        "trigger": {
            "pattern": data.trigger.pattern,
            "position": list(data.trigger.position),
            "colour": list(data.trigger.colour),
        },
        "poisons": data.count,
        "triggered_images": total,
        "natural_before": evaluate(before, data.test),
        "hits_before": hits_before,
        "captured": is_captured(hits_before, total),
        "poisons_left": int((data.mask & result.keep).sum()),
        "removed": int((~result.keep).sum()),
        "removed_from_target": int((~result.keep & (data.train.y == data.target)).sum()),
        "natural_after": evaluate(after, data.test),
        "hits_after": hits(after, data),
        "natural_clean": evaluate(clean, data.test),
        "hits_clean": hits(clean, data),
        "data_checksum": data.clean.checksum,
    }
    own = data.train.y == data.target
    arrays = {"scores": result.scores[own].float(), "poisoned": data.mask[own]}
    return {**numbers, "cost": cost.by_part()}, arrays


def removal_summary(config: SpectralConfig, trials: Sequence[Json]) -> Json:
    """Means over the seeds of each pair and share, and pooled rates with intervals."""
    rows = []
    for source, target in config.pairs:
        for share in config.shares:
            own = [
                trial
                for trial in trials
                if (trial["source"], trial["target"], trial["share"]) == (source, target, share)
            ]
            row: Json = {"source": source, "target": target, "share": share, "runs": len(own)}
            row["captured"] = sum(trial["captured"] for trial in own)
            total = sum(trial["triggered_images"] for trial in own)
            for moment in ("before", "after", "clean"):
                successes = sum(trial[f"hits_{moment}"] for trial in own)
                row[f"poisoned_{moment}"] = successes / total
                row[f"poisoned_{moment}_interval"] = list(wilson(successes, total))
                mean, deviation = mean_and_deviation([t[f"natural_{moment}"] for t in own])
                row[f"natural_{moment}"] = mean
                row[f"natural_{moment}_deviation"] = deviation
            left, spread = mean_and_deviation([trial["poisons_left"] for trial in own])
            row |= {"poisons_left": left, "poisons_left_deviation": spread}
            row["poisons"] = own[0]["poisons"]
            rows.append(row)
    return {"rows": rows}


def views(
    images: Tensor, representation: Tensor, *, seed: int
) -> dict[str, Tensor]:
    """Return the six quantities of Figure 1, one value for each image of a label.

    ``pixels`` and ``representation`` by ``norm`` (L2), ``random`` and ``top``: the
    distance from the mean along a random direction and along the top right
    singular vector of the centred data.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, matrix in (("pixels", images.flatten(1).float() / 255), ("representation", representation)):
        centred = matrix - matrix.mean(0)
        direction = torch.randn(matrix.shape[1], generator=generator).to(matrix)
        _, top = top_singular_vectors(centred)
        found[f"{name}.norm"] = matrix.norm(dim=1)
        found[f"{name}.random"] = (centred @ (direction / direction.norm())).abs()
        found[f"{name}.top"] = (centred @ top[0]).abs()
    return found


def signature_trial(
    config: SpectralConfig, unit: Json, context: Context
) -> tuple[Json, dict[str, Tensor]]:
    """Measure Figure 1's six quantities on the poisoned label, and take Figure 2's images."""
    cost = Cost()
    data = poisoned_data(config, unit, context)
    model = train_on(config, data.train, unit["seed"], context, cost, "poisoned")
    own = data.train.y == data.target
    images, mask = data.train.x[own], data.mask[own]
    seen = views(
        images, features(model, images, config.tap, pool=config.pool), seed=unit["seed"]
    )
    natural, triggered = predict(model, data.source_test.x), predict(model, data.triggered)
    fooled = (natural == data.source_test.y) & (triggered == data.target)
    # Images on which the backdoor works come first, as in the paper's figure.
    shown = torch.argsort(fooled.long(), descending=True, stable=True)[:4]
    hits_before = int((triggered == data.target).sum())
    numbers = {
        **unit,
        "trigger": {
            "pattern": data.trigger.pattern,
            "position": list(data.trigger.position),
            "colour": list(data.trigger.colour),
        },
        "poisons": data.count,
        "triggered_images": len(triggered),
        "natural_before": evaluate(model, data.test),
        "hits_before": hits_before,
        "captured": is_captured(hits_before, len(triggered)),
        "auroc": {
            name: float(roc_auc_score(mask.cpu().numpy(), values.cpu().numpy()))
            for name, values in seen.items()
        },
        "class_names": list(data.test.class_names),
        "data_checksum": data.clean.checksum,
    }
    arrays = {
        **{name: values.float() for name, values in seen.items()},
        "poisoned": mask,
        "natural_images": data.source_test.x[shown],
        "natural_predictions": natural[shown],
        "triggered_images": data.triggered[shown],
        "triggered_predictions": triggered[shown],
    }
    return {**numbers, "cost": cost.by_part()}, arrays


def signature_summary(config: SpectralConfig, trials: Sequence[Json]) -> Json:
    """The separation of each of the six views over all runs, and over the captured ones."""
    captured = [trial for trial in trials if trial["captured"]]
    found: Json = {"runs": len(trials), "captured": len(captured)}
    for name, chosen in (("all", trials), ("captured_only", captured)):
        if chosen:
            found[name] = {
                view: dict(zip(("mean", "deviation", "lowest"), _spread(chosen, view), strict=True))
                for view in chosen[0]["auroc"]
            }
    return found


def _spread(trials: Sequence[Json], view: str) -> tuple[float, float | None, float]:
    values = [trial["auroc"][view] for trial in trials]
    return *mean_and_deviation(values), float(np.min(values))


SIGNATURE = Experiment(
    name="spectral_signatures/signature",
    summary="Figures 1 and 2: what separates poisoned from clean images of a label",
    version=1,
    config=SpectralConfig,
    profiles={
        "quick": {**QUICK, "trials": 3},
        "small": {**SMALL, "trials": 3},
        "paper": {"pairs": tuple(HAND_MADE), "shares": (0.10,), "pattern": "hand_made"},
    },
    variants={"paper": {}, "released": RELEASED},
    units=units,
    trial=signature_trial,
    summarise=signature_summary,
)

REMOVAL = Experiment(
    name="spectral_signatures/removal",
    summary="Table 2: accuracy before and after the filter, and poisons left",
    version=1,
    config=SpectralConfig,
    profiles={"quick": {**QUICK, "trials": 3}, "small": {**SMALL, "trials": 3}, "paper": {}},
    variants={"paper": {}, "released": RELEASED},
    units=units,
    trial=removal_trial,
    summarise=removal_summary,
)
