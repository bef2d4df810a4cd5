"""Beyond the paper: how much must change, how many poisons it takes, and what a filter finds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from poisonkit.defenses.spectral import REMOVAL_FACTOR, spectral_filter
from poisonkit.errors import PoisonkitError
from poisonkit.experiments.convex_polytope.data import Data, begin, taps_of
from poisonkit.experiments.convex_polytope.setting import PolytopeConfig, blocks, profiles_of
from poisonkit.experiments.convex_polytope.steps import crafted, substitutes, victim
from poisonkit.experiments.convex_polytope.victims import FrozenVictim, attack_frozen, success
from poisonkit.experiments.networks import Context
from poisonkit.experiments.running import Experiment
from poisonkit.experiments.settings import refuse_repeats
from poisonkit.images import ImageSet
from poisonkit.statistics import auroc
from poisonkit.store import Json


@dataclass(frozen=True, kw_only=True)
class LimitsConfig(PolytopeConfig):
    """As :class:`PolytopeConfig`, for several bounds and numbers of poisons.

    Attributes
    ----------
    epsilons : bounds, each with ``poisons`` poisons.
    counts : numbers of poisons, each with the procedure's bound.
    """

    epsilons: tuple[float, ...] = (4 / 255, 8 / 255, 16 / 255, 0.1, 0.2)
    counts: tuple[int, ...] = (2, 3, 5, 10)


def _units(config: LimitsConfig) -> list[Json]:
    refuse_repeats(epsilons=config.epsilons, counts=config.counts)
    own = config.procedure.epsilon
    pairs = [(epsilon, config.poisons) for epsilon in config.epsilons]
    pairs += [(own, count) for count in config.counts]
    for epsilon, count in pairs:
        if not 0 < epsilon <= 1:
            raise PoisonkitError(f"a bound must lie in (0, 1], not {epsilon}")
        if count < 2:
            raise PoisonkitError(f"a polytope needs at least 2 poisons, not {count}")
    return [
        {"epsilon": epsilon, "poisons": count, "first": first}
        for first in blocks(config)
        for epsilon, count in dict.fromkeys(pairs)
    ]


def _resolved(config: LimitsConfig, unit: Json) -> LimitsConfig:
    procedure = replace(config.procedure, epsilon=unit["epsilon"])
    return replace(config, poisons=unit["poisons"], procedure=procedure)


def _check(config: LimitsConfig, unit: Json, context: Context) -> object:
    removed = math.ceil(REMOVAL_FACTOR * unit["poisons"])
    if removed >= config.fine_tuning_per_class:
        raise PoisonkitError(
            f"told of {unit['poisons']} poisons the filter removes {removed} images of each "
            f"class, of which there are {config.fine_tuning_per_class}"
        )
    return begin(_resolved(config, unit), context)


def _trial(config: LimitsConfig, unit: Json, context: Context) -> tuple[Json, dict[str, Tensor]]:
    """Attack with one bound and one number of poisons; then filter what victims train on."""
    own = _resolved(config, unit)
    data, cost = begin(own, context)
    nets = substitutes(own, data.pretraining, context, cost)
    poisons = crafted(own, data, nets, own.procedure, unit["first"], context, cost)
    entries = []
    for name in config.victims:
        entry = attack_frozen(own, data, name, poisons, context, cost)
        network = victim(own, data, name, context, cost)
        [layer] = taps_of(network, name, "last")
        frozen = FrozenVictim(own, data, network, layer)
        entries.append({**entry, **_filtered(frozen, poisons.rounded, data, poisons.targets)})
    numbers: Json = {
        **unit,
        "victims": entries,
        "poison_label": data.poison_label,
        "data_checksum": data.pretraining.checksum,
        "cost": cost.as_json(),
    }
    return numbers, {}


def _filtered(frozen: FrozenVictim, images: Tensor, data: Data, targets: ImageSet) -> Json:
    """Apply the spectral filter to each target's fine-tuning set, and train on what is left.

    The filter sees the victim's own features, is told how many poisons there are, and not
    of which class: it takes as many images from each.
    """
    sets, labels = frozen.poisoned_sets(images), data.fine_tuning.y
    rows = torch.tensor(data.rows, device=labels.device)
    found = [spectral_filter(one, labels, suspected=len(rows)) for one in sets]
    kept = torch.stack([one.keep for one in found])
    own = torch.nonzero(labels == data.poison_label).flatten()
    poisoned = torch.isin(own, rows)
    trained = frozen.fine_tune(images, kept=kept)
    return {
        "filtered": frozen.predict(*trained, targets),
        "left": [int(keep[rows].sum()) for keep in kept],
        "removed": found[0].removed_per_label[data.poison_label],
        "auroc": [auroc(poisoned, one.scores[own]) for one in found],
    }


def _summary(config: LimitsConfig, trials: Sequence[Json]) -> Json:
    """Success over all victims for each bound and number, before the filter and after."""
    rows = []
    for epsilon, count in dict.fromkeys((t["epsilon"], t["poisons"]) for t in trials):
        own = [t for t in trials if (t["epsilon"], t["poisons"]) == (epsilon, count)]
        entries = [entry for trial in own for entry in trial["victims"]]
        label = own[0]["poison_label"]
        left = [value for entry in entries for value in entry["left"]]
        rows.append(
            {
                "epsilon": epsilon,
                "poisons": count,
                **success(entries, label),
                "filtered": success(entries, label, of="filtered"),
                "left": sum(left) / len(left) / count,
                "auroc": sum(a for e in entries for a in e["auroc"]) / len(left),
                "removed": entries[0]["removed"],
            }
        )
    return {"rows": rows}


_QUICK: Mapping[str, object] = {
    "epsilons": (0.1, 0.3, 0.5),
    "counts": (2, 5, 8),
    "fine_tuning_per_class": 20,
    "dropouts": (0.2,),
    "victims": ("resnet8", "small_cnn", "preact_resnet8"),
}
LIMITS = Experiment(
    name="convex_polytope/limits",
    summary="Beyond the paper: success by bound and number of poisons, and after a spectral filter",
    version=1,
    config=LimitsConfig,
    profiles=profiles_of(
        quick=_QUICK,
        small={
            "epsilons": (8 / 255, 16 / 255, 0.1, 0.2),
            "counts": (2, 3, 5, 8),
            "fine_tuning_per_class": 20,
            "targets": 10,
        },
    ),
    variants={"paper": {}},
    units=_units,
    trial=_trial,
    check=_check,
    summarise=_summary,
)
