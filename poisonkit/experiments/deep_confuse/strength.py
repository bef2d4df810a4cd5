"""Figures 4 and 5: how much noise, and in how many of the training images, it takes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from poisonkit.attacks.generated_noise import craft, rows_to_perturb
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
    refuse_new_noise,
    some_of_each_class,
    train_on,
    train_perturbed,
)
from poisonkit.experiments.networks import Context
from poisonkit.experiments.running import Experiment
from poisonkit.experiments.settings import refuse_repeats
from poisonkit.images import ImageSet
from poisonkit.statistics import mean_and_deviation
from poisonkit.store import Json


@dataclass(frozen=True, kw_only=True)
class EpsilonConfig(ConfuseConfig):
    """As :class:`ConfuseConfig`, for several bounds of the noise.

    Attributes
    ----------
    epsilons : the bounds; 0 stands for clean images.
    """

    epsilons: tuple[float, ...] = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)


def _refuse_one_bound(config: "EpsilonConfig | ShareConfig") -> None:
    if config.epsilon != ConfuseConfig().epsilon:
        raise PoisonkitError(f"set epsilons=({config.epsilon},) instead of epsilon")


def _epsilon_units(config: EpsilonConfig) -> list[Json]:
    _refuse_one_bound(config)
    refuse_repeats(epsilons=config.epsilons)
    return [
        {**run, "epsilon": epsilon}
        for run in runs(config)
        for epsilon in config.epsilons
        # Without noise there is no generator to repeat it for.
        if epsilon or run["generator"] == config.seed
    ]


def _epsilon_check(config: EpsilonConfig, unit: Json, context: Context) -> object:
    return begin(_with_epsilon(config, unit), context)


def _with_epsilon(config: EpsilonConfig, unit: Json) -> EpsilonConfig:
    # Any bound will do for the clean images, which no generator sees.
    return replace(config, epsilon=unit["epsilon"] or config.epsilon)


def epsilon_trial(
    config: EpsilonConfig, unit: Json, context: Context
) -> tuple[Json, dict[str, Tensor]]:
    """Learn a generator with the bound of this trial, and train on its images (Figure 4)."""
    config = _with_epsilon(config, unit)
    data, cost = begin(config, context)
    images, seed, label = data.train, unit["seed"], f"epsilon {unit['epsilon']}"
    if unit["epsilon"]:
        learned = learned_generator(config, data, unit["generator"], context, cost)
        images, _ = craft(data.train, learned.generator).apply(data.train)
        network, course = train_perturbed(
            config,
            data.train,
            images,
            learned.generator,
            seed,
            context,
            cost,
            label,
            test=data.test,
        )
    else:
        network, course = train_on(config, images, seed, context, cost, label, test=data.test)
    numbers = {
        **unit,
        "accuracy": evaluate(network, data.test),
        "train": course["accuracy"][-1],
        "data_checksum": data.train.checksum,
    }
    shown: dict[str, Tensor] = {}
    if seed == config.seed:
        shown = {"images": images.x[some_of_each_class(data.train, 1)]}
    return {**numbers, "cost": cost.as_json()}, shown


def _by(trials: Sequence[Json], *names: str) -> list[Json]:
    """Return mean, deviation, lowest and highest accuracy of the trials that agree in names."""
    groups: dict[tuple[object, ...], list[float]] = {}
    for trial in trials:
        groups.setdefault(tuple(trial[name] for name in names), []).append(trial["accuracy"])
    rows = []
    for key, values in groups.items():
        mean, deviation = mean_and_deviation(values)
        about = {"mean": mean, "deviation": deviation, "runs": len(values)}
        rows.append(dict(zip(names, key, strict=True)) | about)
    return rows


def epsilon_summary(config: EpsilonConfig, trials: Sequence[Json]) -> Json:
    """Mean and deviation of the accuracy for each bound."""
    return {"rows": _by(trials, "epsilon")}


EPSILON = Experiment(
    name="deep_confuse/epsilon",
    summary="Figure 4: accuracy against the bound of the noise",
    version=1,
    config=EpsilonConfig,
    profiles=profiles_of(
        "mnist",
        quick={"epsilons": (0.0, 0.1, 0.2, 0.3), "repeats": 2},
        small={"generators": 1},
    ),
    variants=variants_of("mnist"),
    units=_epsilon_units,
    trial=epsilon_trial,
    check=_epsilon_check,
    summarise=epsilon_summary,
)
#: At ``small`` the bounds that the verdict needs: a generator takes half an hour of one core.
NETWORK_EPSILON = against_released_network(EPSILON, small={"epsilons": (0.0, 0.1, 0.15, 0.25, 0.3)})


@dataclass(frozen=True, kw_only=True)
class ShareConfig(ConfuseConfig):
    """As :class:`ConfuseConfig`, for several shares of the training images.

    Attributes
    ----------
    shares : of the training images, those that are perturbed, labelled at random, or left
        out; the last, which the paper does not have, says what the rest is worth alone.
    epsilons : bounds of the noise, one curve each.
    """

    shares: tuple[float, ...] = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
    epsilons: tuple[float, ...] = (0.3, 0.4)


def _share_units(config: ShareConfig) -> list[Json]:
    _refuse_one_bound(config)
    refuse_repeats(shares=config.shares, epsilons=config.epsilons)
    for share in config.shares:
        if not 0 <= share <= 1:
            raise PoisonkitError(f"a share must lie in [0, 1], not {share}")
    kinds: list[tuple[str, float | None]] = [("noise", epsilon) for epsilon in config.epsilons]
    kinds += [("random labels", None), ("left out", None)]
    units: list[Json] = [
        {**run, "kind": kind, "epsilon": epsilon, "share": share}
        for run in runs(config)
        for kind, epsilon in kinds
        for share in config.shares
        if kind != "left out" or share < 1
    ]
    # One worker learns a generator, others do meanwhile what asks for none.
    return sorted(units, key=lambda unit: unit["kind"] == "noise" and unit["share"] < 1)


def _share_check(config: ShareConfig, unit: Json, context: Context) -> object:
    refuse_new_noise(config)
    data, cost = begin(_with_share(config, unit), context)
    share = unit["share"]
    if share and unit["kind"] != "random labels":
        rows = rows_to_perturb(data.train, share=share, seed=unit["seed"])
        if unit["kind"] == "left out" and len(rows) == len(data.train):
            raise PoisonkitError(f"a share of {share} of {len(data.train)} images is all of them")
    return data, cost


def _with_share(config: ShareConfig, unit: Json) -> ShareConfig:
    return config if unit["epsilon"] is None else replace(config, epsilon=unit["epsilon"])


def random_labels(images: ImageSet, share: float, *, seed: int) -> ImageSet:
    """Give a share of the images labels drawn from all classes, their own included.

    A network trained on nothing else is right as often as chance, as Figure 5 has it.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    drawn = torch.randint(0, images.classes, (len(images),), generator=generator)
    rows = order[: round(share * len(images))]
    y = images.y.cpu().clone()
    y[rows] = drawn[rows]
    return replace(images, y=y.to(images.device), name=f"{images.name} (random labels)")


def share_trial(
    config: ShareConfig, unit: Json, context: Context
) -> tuple[Json, dict[str, Tensor]]:
    """Perturb, label at random, or leave out a share of the training images (Figure 5)."""
    config = _with_share(config, unit)
    data, cost = begin(config, context)
    images, seed, share = data.train, unit["seed"], unit["share"]
    if share and unit["kind"] == "noise":
        learned = learned_generator(config, data, unit["generator"], context, cost)
        images, _ = craft(images, learned.generator, share=share, seed=seed).apply(images)
    elif share and unit["kind"] == "left out":
        # Those that would be perturbed with the same seed.
        chosen = rows_to_perturb(images, share=share, seed=seed)
        kept = torch.ones(len(images), dtype=torch.bool, device=images.device)
        kept[chosen] = False
        images = images.select(kept)
        # As many steps as on the whole set: what is missing is images, not training.
        epochs = round(config.recipe.epochs * len(kept) / len(images))
        config = replace(config, recipe=replace(config.recipe, epochs=epochs))
    elif share:
        images = random_labels(images, share, seed=seed)
    label = f"{unit['kind']}, {share:.0%}"
    network, course = train_on(config, images, seed, context, cost, label, test=data.test)
    numbers = {
        **unit,
        "accuracy": evaluate(network, data.test),
        "train": course["accuracy"][-1],
        "data_checksum": data.train.checksum,
    }
    return {**numbers, "cost": cost.as_json()}, {}


def share_summary(config: ShareConfig, trials: Sequence[Json]) -> Json:
    """Mean and deviation of the accuracy for each kind of change, bound and share."""
    return {"rows": _by(trials, "kind", "epsilon", "share")}


SHARE = Experiment(
    name="deep_confuse/share",
    summary="Figure 5: accuracy against the share of perturbed training images",
    version=2,
    config=ShareConfig,
    profiles=profiles_of(
        "mnist",
        quick={"epsilons": (0.3,), "shares": (0.0, 0.5, 0.8, 0.9, 1.0), "repeats": 2},
        small={
            "shares": (0.0, 0.4, 0.9, 0.95, 1.0),
            "generators": 1,
            "repeats": 2,
        },
    ),
    variants=variants_of("mnist"),
    units=_share_units,
    trial=share_trial,
    check=_share_check,
    summarise=share_summary,
)
NETWORK_SHARE = against_released_network(
    SHARE, small={"epsilons": (0.3,), "shares": (0.0, 0.4, 0.9, 1.0)}
)
