"""What the MetaPoison trials have in common: networks trained from scratch on poisons."""

from collections.abc import Sequence

from torch import Tensor

from poisonkit.experiments.metapoison.pairs import Data, Pair, begin
from poisonkit.experiments.metapoison.setting import MetaConfig
from poisonkit.experiments.metapoison.steps import (
    crafted,
    target_logits,
    train_victim,
    unrounded,
)
from poisonkit.experiments.networks import Context
from poisonkit.models import Classifier
from poisonkit.statistics import mean_and_deviation, wilson
from poisonkit.store import Json


def runs(config: MetaConfig, **kind: object) -> list[Json]:
    """One run for each victim of each pair; workers begin with different pairs."""
    return [
        {**kind, "pair": pair, "victim": victim}
        for victim in range(config.victims)
        for pair in range(config.pairs)
    ]


def attack(
    config: MetaConfig,
    unit: Json,
    context: Context,
    *,
    attacker: MetaConfig | None = None,
    beside_clean: bool = True,
) -> tuple[Json, dict[str, Tensor]]:
    """Train a victim on a pair's poisons as they are after their last crafting step.

    Parameters
    ----------
    attacker : what the poisons are crafted with, if not what the victim is trained with.
    beside_clean : whether a victim trained in the same way on clean images is asked about
        the targets, too; one serves all pairs.
    """
    data, pair, cost = begin(config, unit["pair"], context)
    poisons = crafted(attacker or config, data, pair, context, cost)
    images, _ = poisons.last.apply(data.train, targets=pair.targets.x)
    transform = None
    if not config.rounded:
        transform = unrounded(poisons.last.images, poisons.images, images.checksum)
    network, course = train_victim(
        config, data, images, pair, unit["victim"], context, cost, transform=transform
    )
    found = outcome(pair, network, course, data)
    if beside_clean:
        clean, _ = train_victim(config, data, data.train, None, unit["victim"], context, cost)
        found["clean"] = answers(pair, clean, data)
    return {
        **unit,
        **found,
        "poisons": len(pair.rows),
        "training_images": len(data.train),
        "largest_change": int(poisons.last.verify(data.train).max()),
        "data_checksum": data.train.checksum,
        "cost": cost.as_json(),
    }, {}


def outcome(pair: Pair, network: Classifier, course: Json, data: Data) -> Json:
    """Return what became of a pair's targets, in the end and from epoch to epoch."""
    return {
        **pair.as_json(data.train.class_names),
        **answers(pair, network, data),
        "course": {
            name: course[name]
            for name in course
            if name == "test" or name.endswith(("target_loss", "success", "accuracy"))
        },
    }


def answers(pair: Pair, network: Classifier, data: Data) -> Json:
    """Return what a network takes a pair's targets for, and how probable the wanted label is."""
    probabilities = target_logits(network, pair.targets).double().softmax(1)
    names = data.train.class_names
    return {
        "predictions": [names[label] for label in probabilities.argmax(1).tolist()],
        "wanted_probability": probabilities[:, pair.wanted].tolist(),
    }


def success(trials: Sequence[Json], *, way: str = "") -> Json:
    """Return how many targets were given the wanted label after the last epoch.

    Parameters
    ----------
    way : ``in_batch_`` for targets that are normalised together with training images.
    """
    targets = sum(len(trial["targets"]) for trial in trials)
    hits = round(
        sum(trial["course"][f"{way}success"][-1] * len(trial["targets"]) for trial in trials)
    )
    low, high = wilson(hits, targets)
    return {"hits": hits, "targets": targets, "rate": hits / targets, "low": low, "high": high}


def row_of(trials: Sequence[Json]) -> Json:
    """Return success both ways, and mean and deviation of the accuracy, over some trials.

    ``clean_hits`` of ``clean_targets``, a share of ``clean_rate``, are given the wanted
    label by clean victims anyway, where they were asked.
    """
    mean, deviation = mean_and_deviation([trial["course"]["test"][-1] for trial in trials])
    anyway = [
        label == trial["wanted_class"]
        for trial in trials
        if "clean" in trial
        for label in trial["clean"]["predictions"]
    ]
    return {
        **(clean_row(sum(anyway), len(anyway)) if anyway else {}),
        **success(trials),
        "in_batch": success(trials, way="in_batch_"),
        "accuracy": {"mean": mean, "deviation": deviation},
        "victims": len(trials),
    }


def clean_row(hits: int, targets: int) -> Json:
    """Return what clean victims make of the targets, as a row has it."""
    return {"clean_hits": hits, "clean_targets": targets, "clean_rate": hits / targets}


def rows_by(trials: Sequence[Json], *keys: str) -> list[Json]:
    """Return a row for each combination of values that trials have under some keys."""
    kinds: dict[tuple[object, ...], list[Json]] = {}
    for trial in trials:
        kinds.setdefault(tuple(trial[key] for key in keys), []).append(trial)
    return [{**dict(zip(keys, kind, strict=True)), **row_of(own)} for kind, own in kinds.items()]
