"""Figure 3: what dropout while crafting does to the loss in networks that nobody crafted with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from poisonkit.attacks.surrounding import Substitute
from poisonkit.errors import PoisonkitError
from poisonkit.experiments.convex_polytope.data import Data, begin, taps_of
from poisonkit.experiments.convex_polytope.setting import (
    BLACK_BOX,
    ObjectivesConfig,
    profiles_of,
    units_by_objective,
)
from poisonkit.experiments.convex_polytope.steps import crafted, substitutes, victim
from poisonkit.experiments.networks import Context, Cost
from poisonkit.experiments.running import Experiment
from poisonkit.store import Json


@dataclass(frozen=True, kw_only=True)
class RandomisedConfig(ObjectivesConfig):
    """As :class:`ObjectivesConfig`, with crafting that is watched from outside.

    Attributes
    ----------
    watch_every : iterations between two looks at the victims.
    """

    watch_every: int = 50


def _units(config: RandomisedConfig) -> list[Json]:
    if config.watch_every < 1:
        raise PoisonkitError(f"watch_every must be at least 1, not {config.watch_every}")
    return [
        {**unit, "dropout": dropout}
        for unit in units_by_objective(config)
        for dropout in (True, False)
    ]


def _check(config: RandomisedConfig, unit: Json, context: Context) -> tuple[Data, Cost]:
    return begin(config, context, objectives=config.objectives)


def _trial(
    config: RandomisedConfig, unit: Json, context: Context
) -> tuple[Json, dict[str, Tensor]]:
    """Craft with or without dropout, and follow the objective in the victims."""
    data, cost = _check(config, unit, context)
    order = len(config.substitutes) // 2 * (not unit["dropout"])
    nets = substitutes(config, data.pretraining, context, cost, begin_at=order)
    networks = {name: victim(config, data, name, context, cost) for name in config.victims}
    watch = [
        Substitute(network=network, taps=taps_of(network, name, "last"))
        for name, network in networks.items()
    ]
    poisons = crafted(
        config,
        data,
        nets,
        replace(config.procedure, objective=unit["objective"], dropout=unit["dropout"]),
        unit["first"],
        context,
        cost,
        watch=watch,
        watch_every=config.watch_every,
    )
    last = {name: poisons.watched[-1, k].tolist() for k, name in enumerate(config.victims)}
    numbers: Json = {
        **unit,
        "last": last,
        "data_checksum": data.pretraining.checksum,
        "cost": cost.as_json(),
    }
    return numbers, {"watched": poisons.watched, "losses": poisons.losses[:: config.watch_every]}


def _summary(config: RandomisedConfig, trials: Sequence[Json]) -> Json:
    """Mean final objective in each victim, with dropout and without, over all targets."""
    rows = []
    for objective in config.objectives:
        for name in config.victims:
            found = {
                dropout: [
                    value
                    for trial in trials
                    if trial["objective"] == objective and trial["dropout"] == dropout
                    for value in trial["last"][name]
                ]
                for dropout in (True, False)
            }
            lower = [a < b for a, b in zip(found[True], found[False], strict=True)]
            rows.append(
                {
                    "objective": objective,
                    "victim": name,
                    "with": sum(found[True]) / len(lower),
                    "without": sum(found[False]) / len(lower),
                    "lower": sum(lower),
                    "targets": len(lower),
                }
            )
    return {"rows": rows}


_STATED: Mapping[str, object] = {
    "objectives": ("collision", "polytope"),
    "victims": BLACK_BOX,
}
RANDOMISED = Experiment(
    name="convex_polytope/randomised",
    summary="Figure 3: the loss in unseen networks, crafted with dropout and without",
    version=1,
    config=RandomisedConfig,
    profiles=profiles_of(
        paper=_STATED,
        quick={"victims": ("preact_resnet8", "densenet22"), "watch_every": 10},
        small={"watch_every": 10},
    ),
    variants={"paper": {}},
    units=_units,
    trial=_trial,
    check=_check,
    summarise=_summary,
)
