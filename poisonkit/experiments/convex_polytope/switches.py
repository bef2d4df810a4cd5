"""What each choice that text and released code leave open changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from poisonkit.errors import unknown
from poisonkit.experiments.convex_polytope.data import begin
from poisonkit.experiments.convex_polytope.setting import PolytopeConfig, blocks, profiles_of
from poisonkit.experiments.convex_polytope.steps import crafted, substitutes
from poisonkit.experiments.convex_polytope.victims import attack_frozen, success
from poisonkit.experiments.networks import Context
from poisonkit.experiments.running import Experiment
from poisonkit.experiments.settings import refuse_repeats, with_options
from poisonkit.store import Json

#: Each switch and the options that it sets.
SWITCHES: Mapping[str, Mapping[str, object]] = {
    "as described": {},
    "target's dropout drawn anew": {"procedure.target_mask": "every"},
    "no dropout for the target": {"procedure.target_mask": "without"},
    "no dropout": {"procedure.dropout": False},
    "steps in pixels": {"procedure.unit": "pixels"},
    "steps in pixels, a fifth": {"procedure.unit": "pixels", "procedure.learning_rate": 0.008},
    "a quarter of the steps": {},
}


@dataclass(frozen=True, kw_only=True)
class SwitchesConfig(PolytopeConfig):
    """As :class:`PolytopeConfig`, for several ways to craft.

    Attributes
    ----------
    switches : keys of :data:`SWITCHES`.
    """

    switches: tuple[str, ...] = tuple(SWITCHES)


def _units(config: SwitchesConfig) -> list[Json]:
    refuse_repeats(switches=config.switches)
    for name in config.switches:
        if name not in SWITCHES:
            raise unknown("switch", name, SWITCHES)
    return [
        {"switch": name, "first": first} for first in blocks(config) for name in config.switches
    ]


def _resolved(config: SwitchesConfig, unit: Json) -> SwitchesConfig:
    options = dict(SWITCHES[unit["switch"]])
    if unit["switch"] == "a quarter of the steps":
        options["procedure.iterations"] = max(1, config.procedure.iterations // 4)
    found = with_options(config, options)
    assert isinstance(found, SwitchesConfig)
    return found


def _check(config: SwitchesConfig, unit: Json, context: Context) -> object:
    return begin(_resolved(config, unit), context)


def _trial(config: SwitchesConfig, unit: Json, context: Context) -> tuple[Json, dict[str, Tensor]]:
    """Craft in one way, and attack every victim."""
    own = _resolved(config, unit)
    data, cost = begin(own, context)
    nets = substitutes(own, data.pretraining, context, cost)
    poisons = crafted(own, data, nets, own.procedure, unit["first"], context, cost)
    numbers: Json = {
        **unit,
        "victims": [attack_frozen(own, data, n, poisons, context, cost) for n in config.victims],
        "loss": [float(value) for value in poisons.losses[-1]],
        "poison_label": data.poison_label,
        "data_checksum": data.pretraining.checksum,
        "cost": cost.as_json(),
    }
    return numbers, {}


def _summary(config: SwitchesConfig, trials: Sequence[Json]) -> Json:
    """Success over all victims and targets, and the distances, for each switch."""
    rows = []
    for name in config.switches:
        own = [trial for trial in trials if trial["switch"] == name]
        entries = [entry for trial in own for entry in trial["victims"]]
        label = own[0]["poison_label"]
        near = [value for entry in entries for value in entry["to_polytope"]]
        losses = [value for trial in own for value in trial["loss"]]
        rows.append(
            {
                "switch": name,
                **success(entries, label),
                "unrounded": success(entries, label, of="unrounded"),
                "to_polytope": sum(near) / len(near),
                "loss": sum(losses) / len(losses),
            }
        )
    return {"rows": rows}


SWITCHING = Experiment(
    name="convex_polytope/switches",
    summary="What each choice that text and released code leave open changes",
    version=1,
    config=SwitchesConfig,
    profiles=profiles_of(
        quick={
            "switches": ("as described", "target's dropout drawn anew", "no dropout"),
            "dropouts": (0.2,),
            "victims": ("resnet8", "small_cnn", "preact_resnet8"),
        },
        small={"targets": 10},
    ),
    variants={"paper": {}},
    units=_units,
    trial=_trial,
    check=_check,
    summarise=_summary,
)
