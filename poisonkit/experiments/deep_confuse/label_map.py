"""Figure 10: what the perturbed images make of each class, and the label-specific attack."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from poisonkit.attacks.deep_confuse import check_label_map
from poisonkit.attacks.generated_noise import craft
from poisonkit.errors import PoisonkitError
from poisonkit.evaluation import evaluate
from poisonkit.experiments.deep_confuse.data import begin
from poisonkit.experiments.deep_confuse.learning import learned_generator
from poisonkit.experiments.deep_confuse.setting import (
    ConfuseConfig,
    against_released_network,
    profiles_of,
    runs,
    variants_of,
)
from poisonkit.experiments.deep_confuse.steps import (
    confusion,
    hit_rate,
    train_on,
    train_perturbed,
)
from poisonkit.experiments.networks import Context
from poisonkit.experiments.running import Experiment
from poisonkit.statistics import mean_and_deviation
from poisonkit.store import Json

#: The images trained on: as they are, perturbed to confuse, perturbed to confuse by rule.
KINDS = ("clean", "any wrong label", "label map")


@dataclass(frozen=True, kw_only=True)
class LabelMapConfig(ConfuseConfig):
    """As :class:`ConfuseConfig`, with the rule of the label-specific attack.

    Attributes
    ----------
    label_map : eta, the label that each class shall be taken for; the paper's is the
        next one, and the first for the last.
    """

    label_map: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 0)


def _map_units(config: LabelMapConfig) -> list[Json]:
    """One unit for each run and kind; kinds take turns, so that two workers learn one of each."""
    if config.procedure.label_map is not None:
        raise PoisonkitError("set label_map instead of procedure.label_map")
    return [
        {**run, "kind": kind}
        for run in runs(config)
        for kind in KINDS
        if kind != "clean" or run["generator"] == config.seed
    ]


def _of_kind(config: LabelMapConfig, unit: Json) -> LabelMapConfig:
    chosen = config.label_map if unit["kind"] == "label map" else None
    return replace(config, procedure=replace(config.procedure, label_map=chosen))


def _map_check(config: LabelMapConfig, unit: Json, context: Context) -> object:
    data, _ = begin(_of_kind(config, unit), context)
    check_label_map(config.label_map, data.learning)
    return data


def map_trial(
    config: LabelMapConfig, unit: Json, context: Context
) -> tuple[Json, dict[str, Tensor]]:
    """Train on the images of one kind, and count what each class is taken for."""
    config = _of_kind(config, unit)
    data, cost = begin(config, context)
    seed, kind = unit["seed"], unit["kind"]
    if kind == "clean":
        network, _ = train_on(config, data.train, seed, context, cost, kind, test=data.test)
    else:
        learned = learned_generator(config, data, unit["generator"], context, cost)
        noisy, _ = craft(data.train, learned.generator).apply(data.train)
        network, _ = train_perturbed(
            config,
            data.train,
            noisy,
            learned.generator,
            seed,
            context,
            cost,
            kind,
            test=data.test,
        )
    counts = confusion(network, data.test)
    numbers = {
        **unit,
        "accuracy": evaluate(network, data.test),
        "hit_rate": hit_rate(network, data.test, config.label_map),
        "confusion": counts.tolist(),
        "data_checksum": data.train.checksum,
    }
    return {**numbers, "cost": cost.as_json()}, {}


def map_summary(config: LabelMapConfig, trials: Sequence[Json]) -> Json:
    """For each kind: accuracy and hit rate, and the mean share of each class by prediction."""
    rows = []
    for kind in KINDS:
        own = [trial for trial in trials if trial["kind"] == kind]
        row: Json = {"kind": kind, "runs": len(own)}
        for name in ("accuracy", "hit_rate"):
            mean, deviation = mean_and_deviation([trial[name] for trial in own])
            row |= {name: mean, f"{name}_deviation": deviation}
        counts = torch.tensor([trial["confusion"] for trial in own]).double().mean(0)
        row["confusion"] = (counts / counts.sum(1, keepdim=True)).tolist()
        rows.append(row)
    return {"rows": rows}


LABEL_MAP = Experiment(
    name="deep_confuse/label_map",
    summary="Figure 10: confusion matrices, and the label-specific attack",
    version=1,
    config=LabelMapConfig,
    profiles=profiles_of(
        "mnist",
        quick={"repeats": 2, "procedure.trials": 30, "select_every": 10},
        small={"generators": 1},
    ),
    variants=variants_of("mnist"),
    units=_map_units,
    trial=map_trial,
    check=_map_check,
    summarise=map_summary,
)
NETWORK_LABEL_MAP = against_released_network(LABEL_MAP)
