"""Figures 5 and 6c: one thing changed at a time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from poisonkit.errors import PoisonkitError, unknown
from poisonkit.experiments.metapoison.pairs import begin
from poisonkit.experiments.metapoison.setting import (
    ROUNDED_VARIANTS,
    SHORTER,
    VARIANTS,
    MetaConfig,
    profiles_of,
)
from poisonkit.experiments.metapoison.victims import attack, rows_by, runs
from poisonkit.experiments.networks import Context
from poisonkit.experiments.running import Experiment
from poisonkit.experiments.settings import refuse_repeats, with_options
from poisonkit.store import Json

#: Lays over a configuration what a unit asks for.
Chosen = Callable[[Any, Json], MetaConfig]


def one_at_a_time(
    key: str,
    chosen: Chosen,
    *,
    name: str,
    summary: str,
    config: type,
    units: Callable[[Any], Sequence[Json]],
    profiles: Mapping[str, Mapping[str, object]],
    version: int = 3,
    victims_only: bool = False,
) -> Experiment:
    """Return an experiment whose trials differ in what each unit has under a key.

    Parameters
    ----------
    victims_only : whether the poisons are crafted as if nothing were changed. Their victims
        may crop and mirror images, which those of poisons that are not rounded cannot.
    """

    return Experiment(
        name=f"metapoison/{name}",
        summary=summary,
        version=version,
        config=config,
        profiles=profiles,
        variants=ROUNDED_VARIANTS if victims_only else VARIANTS,
        units=units,
        trial=partial(_trial, chosen, victims_only),
        check=partial(_check, chosen),
        summarise=partial(_summarise, key),
    )


def _check(chosen: Chosen, config: Any, unit: Json, context: Context) -> object:
    return begin(chosen(config, unit), unit["pair"], context)


def _trial(
    chosen: Chosen, victims_only: bool, config: Any, unit: Json, context: Context
) -> tuple[Json, dict[str, Tensor]]:
    attacker = config if victims_only else None
    return attack(chosen(config, unit), unit, context, attacker=attacker)


def _summarise(key: str, config: Any, trials: Sequence[Json]) -> Json:
    return {
        "rows": rows_by(trials, key),
        "by_pair": rows_by(trials, key, "pair"),
        "training_images": trials[0]["training_images"],
    }


# Figure 5a ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BudgetConfig(MetaConfig):
    """As :class:`MetaConfig`, for several numbers of poisons.

    Attributes
    ----------
    budgets : numbers of poisons; ``poisons`` stands back.
    """

    budgets: tuple[int, ...] = (500, 1500, 2500, 5000)


def _budget_units(config: BudgetConfig) -> list[Json]:
    refuse_repeats(budgets=config.budgets)
    return [run for budget in config.budgets for run in runs(config, budget=budget)]


def _of_budget(config: BudgetConfig, unit: Json) -> MetaConfig:
    return replace(config, poisons=unit["budget"])


BUDGET = one_at_a_time(
    "budget",
    _of_budget,
    name="budget",
    summary="Figure 5a: success by the number of poisons",
    config=BudgetConfig,
    units=_budget_units,
    profiles=profiles_of(
        paper={"pairs": 2},
        quick={"budgets": (15, 30, 60)},
        small={**SHORTER, "pairs": 3, "budgets": (50, 200, 500)},
    ),
)


# Figure 5b ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(MetaConfig):
    """As :class:`MetaConfig`, for victims that are trained otherwise than expected.

    Attributes
    ----------
    changes : what is other about the victims, see :func:`changed_victims`.
    networks : other networks that victims are; the poisons' surrogates stay what they are.
    decay, padding, mirrored : weight decay, crops and flips of ``regularised``. The paper
        states none of them; the released code has 2e-4 times the sum of squared weights, which
        is twice that in :class:`~poisonkit.training.Recipe`'s convention.
    """

    changes: tuple[str, ...] = (
        "as expected",
        "batches and rate doubled",
        "no momentum",
        "regularised",
    )
    networks: tuple[str, ...] = ("resnet14", "five_block_cnn", "vgg11")
    decay: float = 4e-4
    padding: int = 4
    mirrored: bool = True


def changed_victims(config: TrainingConfig) -> dict[str, Mapping[str, object]]:
    """Return what each change sets, by its name (section 3.5)."""
    recipe = config.recipe
    own = config.surrogate or config.model
    return {
        "as expected": {},
        "batches and rate doubled": {
            "recipe.batch_size": 2 * recipe.batch_size,
            "recipe.learning_rate": 2 * recipe.learning_rate,
        },
        "no momentum": {"recipe.optimizer": "sgd", "recipe.momentum": 0.0},
        "momentum": {"recipe.optimizer": "sgd", "recipe.momentum": 0.9},
        "regularised": {
            "recipe.weight_decay": config.decay,
            "recipe.crop_padding": config.padding,
            "recipe.flip": config.mirrored,
        },
        **{name: {"model": name, "width": None, "surrogate": own} for name in config.networks},
    }


def _training_units(config: TrainingConfig) -> list[Json]:
    asked = (*config.changes, *config.networks)
    refuse_repeats(changes=config.changes, networks=config.networks, changes_and_networks=asked)
    known = changed_victims(config)
    for change in config.changes:
        if change not in known:
            raise unknown("change", change, known)
    return [run for change in asked for run in runs(config, change=change)]


def _trained_otherwise(config: TrainingConfig, unit: Json) -> MetaConfig:
    found = with_options(config, changed_victims(config)[unit["change"]])
    assert isinstance(found, MetaConfig)
    return found


TRAINING = one_at_a_time(
    "change",
    _trained_otherwise,
    name="training",
    summary="Figure 5b: victims that are trained otherwise than the surrogates; other networks",
    config=TrainingConfig,
    units=_training_units,
    profiles=profiles_of(
        paper={"pairs": 2},
        quick={"networks": ("resnet8", "five_block_cnn"), "padding": 1, "mirrored": False},
        small={**SHORTER, "pairs": 3, "networks": ("resnet8", "small_cnn")},
    ),
    victims_only=True,
)


# Figure 6c ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ScenarioConfig(MetaConfig):
    """As :class:`MetaConfig`, for several things that an attacker may want.

    Attributes
    ----------
    several : targets that the same poisons are for in the attack with several targets; the
        paper does not say how many it took.
    """

    several: int = 3


SCENARIOS = ("one target", "third party", "several targets")


def _scenario_units(config: ScenarioConfig) -> list[Json]:
    if config.several < 2:
        raise PoisonkitError(f"several must be at least 2, not {config.several}")
    return [run for name in SCENARIOS for run in runs(config, scenario=name)]


def _in_scenario(config: ScenarioConfig, unit: Json) -> MetaConfig:
    return replace(
        config,
        third_party=unit["scenario"] == "third party",
        targets=config.several if unit["scenario"] == "several targets" else 1,
    )


SCENARIO = one_at_a_time(
    "scenario",
    _in_scenario,
    name="scenarios",
    summary="Figure 6c: one target, a label that no poison has, several targets at once",
    config=ScenarioConfig,
    units=_scenario_units,
    profiles=profiles_of(quick={"several": 2}, small={**SHORTER, "pairs": 3, "several": 2}),
)
