"""Beyond the paper: rounding, the spectral filter, and how much the choice of target matters."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from poisonkit.defenses.spectral import RELEASED_PERCENTILE, spectral_filter
from poisonkit.errors import PoisonkitError, unknown
from poisonkit.experiments.metapoison.pairs import begin, draw_pair
from poisonkit.experiments.metapoison.setting import (
    ROUNDED_VARIANTS,
    SHORTER,
    VARIANTS,
    MetaConfig,
    always_rounded,
    check_rounding,
    profiles_of,
)
from poisonkit.experiments.metapoison.steps import (
    crafted,
    last_representation,
    train_victim,
    unrounded,
)
from poisonkit.experiments.metapoison.victims import answers, attack, outcome, rows_by, runs
from poisonkit.experiments.networks import Context
from poisonkit.experiments.running import Experiment
from poisonkit.experiments.settings import refuse_repeats
from poisonkit.models import create, features
from poisonkit.store import Json

#: What is done to the poisons, or by the victim.
MEASURES = ("rounded", "not rounded", "spectral filter", "random removal")


@dataclass(frozen=True, kw_only=True)
class LimitsConfig(MetaConfig):
    """As :class:`MetaConfig`, with what is done to the poisons, or by the victim.

    Attributes
    ----------
    measures : of :data:`MEASURES`. The filter takes as many images of each class as the
        released code of Spectral Signatures does, since the number of poisons is not known;
        ``random removal`` takes as many, whichever.
    poisons : fewer than the class has: of a class of nothing but poisons any filter that
        takes a fixed share leaves as many.
    """

    measures: tuple[str, ...] = MEASURES
    poisons: int = 1500


def _units(config: LimitsConfig) -> list[Json]:
    refuse_repeats(measures=config.measures)
    for name in config.measures:
        if name not in MEASURES:
            raise unknown("measure", name, MEASURES)
    return [run for name in config.measures for run in runs(config, measure=name)]


def _check(config: LimitsConfig, unit: Json, context: Context) -> object:
    found = begin(config, unit["pair"], context)
    always_rounded(config)
    if unit["measure"] == "not rounded":
        check_rounding(replace(config, rounded=False))
    last_representation(create(config.model, like=found[0].train, seed=0))
    return found


def _trial(config: LimitsConfig, unit: Json, context: Context) -> tuple[Json, dict[str, Tensor]]:
    """Train a victim on a pair's poisons, as they are or otherwise."""
    data, pair, cost = begin(config, unit["pair"], context)
    poisons = crafted(config, data, pair, context, cost)
    images, poisoned = poisons.last.apply(data.train, targets=pair.targets.x)
    transform = None
    if unit["measure"] == "not rounded":
        transform = unrounded(poisons.last.images, poisons.images, images.checksum)
    number, numbers = unit["victim"], dict[str, int]()
    if unit["measure"] in ("spectral filter", "random removal"):
        # Scores of random features are as good as none.
        values = torch.randn(len(images), 8, generator=torch.Generator().manual_seed(number))
        if unit["measure"] == "spectral filter":
            network, _ = train_victim(config, data, images, pair, number, context, cost)
            values = features(network, images.x, last_representation(network))
        filtered = spectral_filter(
            values.to(images.device), images.y, percentile=RELEASED_PERCENTILE
        )
        kept = filtered.keep
        numbers = {"kept": int(kept.sum()), "kept_poisons": int((kept & poisoned).sum())}
        images = images.select(kept)
    network, course = train_victim(
        config, data, images, pair, number, context, cost, transform=transform
    )
    clean, _ = train_victim(config, data, data.train, None, number, context, cost)
    return {
        **unit,
        **numbers,
        **outcome(pair, network, course, data),
        "clean": answers(pair, clean, data),
        "poisons": len(pair.rows),
        "data_checksum": data.train.checksum,
        "cost": cost.as_json(),
    }, {}


def _summary(config: LimitsConfig, trials: Sequence[Json]) -> Json:
    rows = rows_by(trials, "measure")
    for row in rows:
        own = [trial for trial in trials if trial["measure"] == row["measure"]]
        if "kept_poisons" in own[0]:
            row["poisons"] = sum(trial["poisons"] for trial in own)
            row["kept_poisons"] = sum(trial["kept_poisons"] for trial in own)
    return {"rows": rows, "by_pair": rows_by(trials, "measure", "pair")}


LIMITS = Experiment(
    name="metapoison/limits",
    summary="beyond the paper: poisons that are not rounded, and the spectral filter",
    version=2,
    config=LimitsConfig,
    profiles=profiles_of(
        paper={"pairs": 2}, quick={"poisons": 30}, small={**SHORTER, "pairs": 3, "poisons": 200}
    ),
    variants=ROUNDED_VARIANTS,
    units=_units,
    trial=_trial,
    check=_check,
    summarise=_summary,
)


# Every target -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TargetsConfig(MetaConfig):
    """As :class:`MetaConfig`, for many targets of one class.

    Attributes
    ----------
    tried : the first so many test images of the first pair's class of targets, each an
        attack of its own.
    """

    tried: int = 1000


def _target_units(config: TargetsConfig) -> list[Json]:
    if config.tried < 1 or config.pairs != 1:
        raise PoisonkitError("tried must be at least 1, and pairs 1")
    return [
        {"pair": 0, "target": target, "victim": victim}
        for victim in range(config.victims)
        for target in range(config.tried)
    ]


def _of_target(config: TargetsConfig, unit: Json, context: Context) -> TargetsConfig:
    """Fix the classes of the first pair, and the target."""
    train, test = context.both(config.dataset, image_size=config.image_size)
    pair = draw_pair(replace(config, poisons=1), train, test, 0)
    return replace(
        config,
        poison_class=train.class_names[pair.poison_label],
        target_class=train.class_names[int(pair.targets.y[0])],
        target=unit["target"],
    )


def _target_check(config: TargetsConfig, unit: Json, context: Context) -> object:
    return begin(_of_target(config, unit, context), 0, context)


def _target_trial(
    config: TargetsConfig, unit: Json, context: Context
) -> tuple[Json, dict[str, Tensor]]:
    """Attack one target."""
    return attack(_of_target(config, unit, context), unit, context)


def _target_summary(config: TargetsConfig, trials: Sequence[Json]) -> Json:
    return {"rows": rows_by(trials, "target"), "all": rows_by(trials, "pair")[0]}


TARGETS = Experiment(
    name="metapoison/targets",
    summary="beyond the paper: success for each target of one class",
    version=3,
    config=TargetsConfig,
    profiles=profiles_of(
        paper={"pairs": 1, "victims": 1},
        quick={"victims": 1, "tried": 4},
        small={**SHORTER, "pairs": 1, "victims": 1, "tried": 6},
    ),
    variants=VARIANTS,
    units=_target_units,
    trial=_target_trial,
    check=_target_check,
    summarise=_target_summary,
)
