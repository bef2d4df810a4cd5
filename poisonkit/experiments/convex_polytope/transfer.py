"""Figures 4 to 6 and 8: victims that train a linear layer on poisons made with other networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from poisonkit.errors import PoisonkitError
from poisonkit.experiments.convex_polytope.data import Data, begin
from poisonkit.experiments.convex_polytope.setting import (
    BLACK_BOX,
    RELEASED,
    S2,
    ObjectivesConfig,
    PolytopeConfig,
    blocks,
    profiles_of,
    units_by_objective,
)
from poisonkit.experiments.convex_polytope.steps import crafted, substitutes
from poisonkit.experiments.convex_polytope.victims import attack_frozen, success
from poisonkit.experiments.networks import Context, Cost
from poisonkit.experiments.running import Experiment
from poisonkit.experiments.settings import refuse_repeats
from poisonkit.statistics import mean_and_deviation
from poisonkit.store import Json

#: So many targets' poisons are kept with a record, to be looked at.
PICTURES = 3


def _check(config: ObjectivesConfig, unit: Json, context: Context) -> tuple[Data, Cost]:
    return begin(config, context, objectives=config.objectives)


def _trial(
    config: ObjectivesConfig, unit: Json, context: Context
) -> tuple[Json, dict[str, Tensor]]:
    """Craft poisons for a block of targets, and give them to every victim."""
    data, cost = _check(config, unit, context)
    order = config.objectives.index(unit["objective"])
    images = data.pretraining
    nets = substitutes(config, images, context, cost, begin_at=order * len(config.substitutes) // 2)
    procedure = replace(config.procedure, objective=unit["objective"])
    poisons = crafted(config, data, nets, procedure, unit["first"], context, cost)
    found = [attack_frozen(config, data, name, poisons, context, cost) for name in config.victims]
    tensors = {
        "losses": poisons.losses.mean(1),
        "poisons": poisons.rounded[:PICTURES].cpu(),
        "targets": poisons.targets.x[:PICTURES].cpu(),
        "bases": data.fine_tuning.x[list(data.rows)].cpu(),
    }
    change = poisons.rounded.float() - data.fine_tuning.x[list(data.rows)].float()
    numbers: Json = {
        **unit,
        "victims": found,
        "loss": [float(value) for value in poisons.losses[-1]],
        "mean_change": float(change.abs().mean()),
        "likeness": likeness(poisons.rounded, data, poisons.targets.x),
        "poison_label": data.poison_label,
        "class_names": list(data.test.class_names),
        "data_checksum": data.pretraining.checksum,
        "cost": cost.as_json(),
    }
    return numbers, tensors


def likeness(images: Tensor, data: Data, targets: Tensor) -> list[float]:
    """Return the cosine between each target's difference to its bases and the poisons' change.

    1 would be a change straight towards the target's picture, 0 one that shows nothing of it.
    """
    bases = data.fine_tuning.x[list(data.rows)].float()
    change = (images.float() - bases).flatten(2)
    wanted = (targets[:, None].float() - bases).flatten(2)
    cosine = (change * wanted).sum(-1) / (change.norm(dim=-1) * wanted.norm(dim=-1)).clamp_min(1e-9)
    return [float(value) for value in cosine.mean(1)]


def rows_of(trials: Sequence[Json], key: str) -> list[Json]:
    """Return one row for each value of ``key`` and victim, over all blocks of targets."""
    entries: dict[tuple[object, str], list[Json]] = {}
    for trial in trials:
        for entry in trial["victims"]:
            entries.setdefault((trial[key], entry["victim"]), []).append(entry)
    label = trials[0]["poison_label"]
    rows = []
    for (value, name), own in entries.items():
        mean, deviation = mean_and_deviation([a for entry in own for a in entry["accuracy"]])
        rows.append(
            {
                key: value,
                "victim": name,
                **success(own, label),
                "clean": success(own, label, of="clean")["rate"],
                "accuracy": mean,
                "accuracy_deviation": deviation,
                "clean_accuracy": own[0]["clean_accuracy"],
            }
        )
        if "fitted" in own[0]:
            fitted = [share for entry in own for share in entry["fitted"]]
            rows[-1]["fitted"] = sum(fitted) / len(fitted)
        if "unrounded" in own[0]:
            rows[-1]["unrounded"] = success(own, label, of="unrounded")["rate"]
    return rows


def _summary(config: ObjectivesConfig, trials: Sequence[Json]) -> Json:
    return {"rows": rows_of(trials, "objective")}


TRANSFER = Experiment(
    name="convex_polytope/transfer",
    summary="Figures 1, 4, 5 and 8: Feature Collision and Convex Polytope against eight victims",
    version=2,
    config=ObjectivesConfig,
    profiles=profiles_of(),
    variants={"paper": {}, "released": RELEASED},
    units=units_by_objective,
    trial=_trial,
    check=_check,
    summarise=_summary,
)


# Figure 6 -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OverlapConfig(PolytopeConfig):
    """As :class:`PolytopeConfig`, for substitutes trained on other images than the victims.

    Attributes
    ----------
    overlaps : shares of the substitutes' training images that the victims' have, too.
    """

    overlaps: tuple[float, ...] = (0.0, 0.5, 1.0)


def _overlap_units(config: OverlapConfig) -> list[Json]:
    refuse_repeats(overlaps=config.overlaps)
    for share in config.overlaps:
        if not 0 <= share <= 1:
            raise PoisonkitError(f"an overlap must lie in [0, 1], not {share}")
    needed = round((2 - min(config.overlaps, default=1)) * config.pretraining_per_class)
    if needed > config.pool_from:
        raise PoisonkitError(
            f"overlaps={config.overlaps} need {needed} images of each class before the pool, "
            f"which begins after {config.pool_from}"
        )
    return [
        {"overlap": share, "first": first} for first in blocks(config) for share in config.overlaps
    ]


def _overlap_check(config: OverlapConfig, unit: Json, context: Context) -> object:
    return begin(config, context)


def _overlap_trial(
    config: OverlapConfig, unit: Json, context: Context
) -> tuple[Json, dict[str, Tensor]]:
    """Train substitutes on images that the victims' share a part of; the rest as in Figure 5."""
    data, cost = begin(config, context)
    skip = round((1 - unit["overlap"]) * config.pretraining_per_class)
    train = context.load(config.dataset, "train", image_size=config.image_size)
    images = train.first_per_class(config.pretraining_per_class, skip=skip)
    order = config.overlaps.index(unit["overlap"])
    nets = substitutes(config, images, context, cost, begin_at=order)
    poisons = crafted(config, data, nets, config.procedure, unit["first"], context, cost)
    found = [attack_frozen(config, data, name, poisons, context, cost) for name in config.victims]
    numbers: Json = {
        **unit,
        "victims": found,
        "poison_label": data.poison_label,
        "data_checksum": data.pretraining.checksum,
        "cost": cost.as_json(),
    }
    return numbers, {}


def _overlap_summary(config: OverlapConfig, trials: Sequence[Json]) -> Json:
    return {"rows": rows_of(trials, "overlap")}


#: The paper does not say how many images each side has; a half each allows for no overlap.
_HALF: Mapping[str, object] = {
    "substitutes": S2,
    "victims": (*S2, "mobilenet_v2", "googlenet", *BLACK_BOX),
    "pretraining_per_class": 2400,
}
OVERLAP = Experiment(
    name="convex_polytope/overlap",
    summary="Figure 6: substitutes and victims trained on different images",
    version=1,
    config=OverlapConfig,
    profiles=profiles_of(
        paper=_HALF,
        quick={
            "pretraining_per_class": 50,
            "dropouts": (0.2,),
            "victims": ("resnet8", "small_cnn", "preact_resnet8"),
        },
    ),
    variants={"paper": {}},
    units=_overlap_units,
    trial=_overlap_trial,
    check=_overlap_check,
    summarise=_overlap_summary,
)
