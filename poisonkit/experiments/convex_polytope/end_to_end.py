"""Figures 7 and 8: victims that train all of their layers on the poisons."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from poisonkit.errors import PoisonkitError
from poisonkit.evaluation import evaluate, predict
from poisonkit.experiments.convex_polytope.data import Data, begin
from poisonkit.experiments.convex_polytope.setting import (
    BLACK_BOX,
    S2,
    Layers,
    PolytopeConfig,
    blocks,
    profiles_of,
)
from poisonkit.experiments.convex_polytope.steps import crafted, substitutes, victim
from poisonkit.experiments.convex_polytope.transfer import rows_of
from poisonkit.experiments.networks import Context, Cost
from poisonkit.experiments.running import Experiment
from poisonkit.experiments.settings import as_json, refuse_repeats
from poisonkit.images import ImageSet
from poisonkit.models import Classifier
from poisonkit.options import added
from poisonkit.store import Json, digest_of
from poisonkit.training import VERSION, Recipe, Sampler, fit

Attack = Literal["last layer", "all stages", "two layers", "two layers, as released"]
#: Where targets are surrounded, and what the pooled layer asks for, see
#: :class:`poisonkit.attacks.surrounding.Procedure`.
#: The released code reads two layers, and makes five collisions of the polytope at the pooled one.
ATTACKS: Mapping[Attack, tuple[Layers, Literal["polytope", "released"]]] = {
    "last layer": ("last", "polytope"),
    "all stages": ("several", "polytope"),
    "two layers": ("released", "polytope"),
    "two layers, as released": ("released", "released"),
}


def _end_to_end() -> Recipe:
    return Recipe(
        optimizer="adam",
        learning_rate=1e-4,
        schedule="steps",
        milestones=(0.5, 0.75),
        weight_decay=5e-4,
        batch_size=64,
        epochs=60,
        crop_padding=0,
        flip=False,
        precision="float32",
    )


@dataclass(frozen=True, kw_only=True)
class EndToEndConfig(PolytopeConfig):
    """As :class:`PolytopeConfig`, for victims of which every layer is fine-tuned.

    Attributes
    ----------
    attacks : keys of :data:`ATTACKS`.
    whole_network : how victims are fine-tuned.
    statistics : what their features are normalised by meanwhile: the ``running`` averages of
        the first training, as in the released code, or those of each ``batch``.
    tested : for the first so many targets, the victim's accuracy on all test images is
        measured, too.
    """

    attacks: tuple[Attack, ...] = tuple(ATTACKS)
    whole_network: Recipe = field(default_factory=_end_to_end)
    statistics: Literal["running", "batch"] = added("running")
    tested: int = 50


def _units(config: EndToEndConfig) -> list[Json]:
    refuse_repeats(attacks=config.attacks, victims=config.victims)
    if config.tested < 1:
        raise PoisonkitError(f"tested must be at least 1, not {config.tested}")
    return [
        {"attack": attack, "first": first, "victim": name}
        for first in blocks(config)
        for name in config.victims
        for attack in config.attacks
    ]


def _check(config: EndToEndConfig, unit: Json, context: Context) -> tuple[Data, Cost]:
    data, cost = begin(config, context, ATTACKS[unit["attack"]][0])
    Sampler(data.fine_tuning, config.whole_network, seed=0)
    return data, cost


def _trial(config: EndToEndConfig, unit: Json, context: Context) -> tuple[Json, dict[str, Tensor]]:
    """Fine-tune a victim once for each target of a block."""
    layers, pooled = ATTACKS[unit["attack"]]
    data, cost = _check(config, unit, context)
    order = config.attacks.index(unit["attack"])
    nets = substitutes(config, data.pretraining, context, cost, layers=layers, begin_at=order)
    procedure = replace(config.procedure, pooled=pooled)
    poisons = crafted(config, data, nets, procedure, unit["first"], context, cost)
    network = victim(config, data, unit["victim"], context, cost)
    clean = _fine_tuned(config, data, network, data.fine_tuning, True, context, cost)
    found = []
    for number, poison in enumerate(poisons.poisons):
        images, _ = poison.apply(data.fine_tuning, targets=poisons.targets.x[number : number + 1])
        tested = unit["first"] + number < config.tested
        found.append(_fine_tuned(config, data, network, images, tested, context, cost))
    numbers = range(unit["first"], unit["first"] + len(found))
    entry = {
        "victim": unit["victim"],
        "predictions": [one["predictions"][k] for one, k in zip(found, numbers, strict=True)],
        "clean": [clean["predictions"][k] for k in numbers],
        "accuracy": [one["accuracy"] for one in found if one["accuracy"] is not None],
        "clean_accuracy": clean["accuracy"],
        "fitted": [one["fitted"] for one in found],
    }
    result: Json = {
        **unit,
        "victims": [entry],
        "loss": [float(value) for value in poisons.losses[-1]],
        "poison_label": data.poison_label,
        "data_checksum": data.pretraining.checksum,
        "cost": cost.as_json(),
    }
    return result, {}


def _fine_tuned(
    config: EndToEndConfig,
    data: Data,
    network: Classifier,
    images: ImageSet,
    tested: bool,
    context: Context,
    cost: Cost,
) -> Json:
    """Fine-tune a copy of a network, and return its answers; each is an artefact of its own."""
    spec: Json = {
        "training": VERSION,
        "network": digest_of({}, network.state_dict()),
        "images": images.checksum,
        "recipe": as_json(config.whole_network),
        "seed": config.seed,
        "targets": data.targets.checksum,
        "test": data.test.checksum if tested else None,
        "device": images.device.type,
    }
    if config.statistics != "running":
        spec["statistics"] = config.statistics

    def compute(scratch: Path) -> tuple[Json, dict[str, Tensor]]:
        own = copy.deepcopy(network)
        fit(own, images, config.whole_network, seed=config.seed, statistics=config.statistics)
        rows = torch.tensor(data.rows, device=images.device)
        right = predict(own, images.x[rows]) == images.y[rows]
        return {
            "predictions": predict(own, data.targets.x).tolist(),
            "accuracy": evaluate(own, data.test) if tested else None,
            "fitted": float(right.double().mean()),
        }, {}

    artefact = context.artefact("fine_tuned", spec, compute, cost)
    return artefact.metrics


def _summary(config: EndToEndConfig, trials: Sequence[Json]) -> Json:
    return {"rows": rows_of(trials, "attack")}


_STATED: Mapping[str, object] = {
    "substitutes": S2,
    "victims": (*S2, "mobilenet_v2", "googlenet", *BLACK_BOX),
}
END_TO_END = Experiment(
    name="convex_polytope/end_to_end",
    summary="Figures 7 and 8: victims that are fine-tuned end to end, one layer against several",
    version=1,
    config=EndToEndConfig,
    profiles=profiles_of(
        paper=_STATED,
        quick={
            "attacks": ("last layer", "all stages"),
            "dropouts": (0.2,),
            "victims": ("resnet8", "small_cnn", "preact_resnet8"),
            "whole_network.learning_rate": 1e-3,
            "whole_network.epochs": 20,
        },
        small={
            "targets": 10,
            "targets_at_once": 10,
            "attacks": ("last layer", "all stages", "two layers, as released"),
            # A hundred images are two of the paper's batches: with its rate and batches victims
            # end up with half of the poisons unfitted.
            "whole_network.learning_rate": 1e-3,
            "whole_network.batch_size": 16,
            "whole_network.epochs": 20,
            "tested": 3,
        },
    ),
    variants={
        "paper": {},
        "released": {"attacks": ("last layer", "two layers, as released")},
    },
    units=_units,
    trial=_trial,
    check=_check,
    summarise=_summary,
)
