"""Figure 8 step by step: what a training on perturbed images does before its first epoch ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from poisonkit.attacks.generated_noise import craft
from poisonkit.errors import PoisonkitError, unknown
from poisonkit.experiments.deep_confuse.data import begin
from poisonkit.experiments.deep_confuse.learning import learned_generator
from poisonkit.experiments.deep_confuse.setting import (
    ConfuseConfig,
    profiles_of,
    runs,
)
from poisonkit.experiments.deep_confuse.steps import refuse_new_noise, some_of_each_class
from poisonkit.experiments.networks import Context, training_of, width_option
from poisonkit.experiments.running import Experiment
from poisonkit.experiments.settings import refuse_repeats, with_options
from poisonkit.statistics import mean_and_deviation
from poisonkit.store import Json
from poisonkit.training import Sampler

_DESCENT: Mapping[str, object] = {
    "standardise": "none",
    "recipe.optimizer": "sgd",
    "recipe.learning_rate": 0.01,
    "recipe.schedule": "constant",
    "recipe.warmup": 0.0,
}
#: How classifiers are trained; the paper states the rate and the size of a batch, 64.
WAYS: Mapping[str, Mapping[str, object]] = {
    "as in Table 1": {},
    "gradient descent": {**_DESCENT, "recipe.momentum": 0.0},
    "with momentum": {**_DESCENT, "recipe.momentum": 0.9},
}

#: A network that is right on fewer of the perturbed images has not learned them yet.
_LEARNED = 0.5


@dataclass(frozen=True, kw_only=True)
class FirstStepsConfig(ConfuseConfig):
    """As :class:`ConfuseConfig`, with the ways to train and when networks are looked at.

    Attributes
    ----------
    ways : keys of :data:`WAYS`.
    looks : for every tenfold of steps, so many times; and after each epoch.
    looked_at : perturbed training images of each class whose labels are asked for.
    """

    ways: tuple[str, ...] = ("gradient descent", "with momentum")
    looks: int = 12
    looked_at: int = 200


def steps_looked_at(total: int, looks: int) -> list[int]:
    """Return numbers of steps from 1 to ``total``, ``looks`` for every tenfold, as whole ones."""
    found, step, place = {total}, 1, 0
    while step < total:
        found.add(step)
        place += 1
        step = round(10 ** (place / looks))
    return sorted(found)


def _units(config: FirstStepsConfig) -> list[Json]:
    refuse_repeats(ways=config.ways)
    for way in config.ways:
        if way not in WAYS:
            raise unknown("way", way, WAYS)
    for name in ("looks", "looked_at"):
        if getattr(config, name) < 1:
            raise PoisonkitError(f"{name} must be at least 1, not {getattr(config, name)}")
    return [{"way": way, **run} for way in config.ways for run in runs(config)]


def _trained(config: FirstStepsConfig, way: str) -> FirstStepsConfig:
    found = with_options(config, WAYS[way])
    assert isinstance(found, FirstStepsConfig)
    return found


def _check(config: FirstStepsConfig, unit: Json, context: Context) -> object:
    refuse_new_noise(config)
    return begin(_trained(config, unit["way"]), context)


def _trial(
    config: FirstStepsConfig, unit: Json, context: Context
) -> tuple[Json, dict[str, Tensor]]:
    """Train on perturbed images, and look at the network between its steps."""
    data, cost = begin(config, context)
    # The generator is the other experiments', whichever way its classifiers are trained.
    learned = learned_generator(config, data, unit["generator"], context, cost)
    noisy, _ = craft(data.train, learned.generator).apply(data.train)
    own = _trained(config, unit["way"])
    epoch = Sampler(noisy, own.recipe, seed=0).steps
    seen = noisy.select(some_of_each_class(noisy, config.looked_at))
    _, course = training_of(
        context,
        noisy,
        own.recipe,
        model=own.model,
        seed=unit["seed"],
        label=unit["way"],
        cost=cost,
        standardise=own.standardise,
        watch={"clean": data.test, "perturbed": seen},
        watch_after=steps_looked_at(own.recipe.epochs * epoch, config.looks),
        options=width_option(own.width),
    )
    ends = range(epoch, own.recipe.epochs * epoch + 1, epoch)
    found = {look["step"]: (look["clean"], look["perturbed"]) for look in course["between"]}
    found |= dict(zip(ends, zip(course["clean"], course["perturbed"], strict=True), strict=True))
    steps = sorted(found)
    return {
        **unit,
        "steps": steps,
        "clean": [found[step][0] for step in steps],
        "perturbed": [found[step][1] for step in steps],
        "steps_in_epoch": epoch,
        "tested": {"clean": len(data.test), "perturbed": len(seen)},
        "data_checksum": data.train.checksum,
        "cost": cost.as_json(),
    }, {}


def _summary(config: FirstStepsConfig, trials: Sequence[Json]) -> Json:
    """Where the accuracy on clean images is lowest, and what it is after one epoch and in the end.

    The lowest is that of the mean over the runs, once half of the perturbed images are called
    right: before that a network has learned nothing.
    """
    rows = []
    for way in config.ways:
        own = [trial for trial in trials if trial["way"] == way]
        steps, epoch = own[0]["steps"], own[0]["steps_in_epoch"]
        means = [mean_and_deviation(at)[0] for at in _columns(own, "clean")]
        fits = [mean_and_deviation(at)[0] >= _LEARNED for at in _columns(own, "perturbed")]
        places = {
            "lowest": min(
                (place for place, fit in enumerate(fits) if fit),
                key=means.__getitem__,
                default=len(steps) - 1,
            ),
            "first_epoch": steps.index(epoch),
            "last": len(steps) - 1,
        }
        row: Json = {"way": way, "runs": len(own), "steps_in_epoch": epoch}
        for name, place in places.items():
            row[name] = {"step": steps[place]}
            for kind in ("clean", "perturbed"):
                mean, deviation = mean_and_deviation([trial[kind][place] for trial in own])
                row[name][kind] = {"mean": mean, "deviation": deviation}
        rows.append(row)
    return {"rows": rows}


def _columns(trials: Sequence[Json], kind: str) -> list[tuple[float, ...]]:
    """Return the accuracies of one kind of all runs, at one look after the other."""
    return list(zip(*(trial[kind] for trial in trials), strict=True))


FIRST_STEPS = Experiment(
    name="deep_confuse/first_steps",
    summary="Figure 8 step by step, for three ways to train",
    version=1,
    config=FirstStepsConfig,
    profiles=profiles_of(
        "mnist",
        quick={"ways": tuple(WAYS)},
        small={"repeats": 1, "ways": tuple(WAYS)},
    ),
    variants={"paper": {}},
    units=_units,
    trial=_trial,
    check=_check,
    summarise=_summary,
)
