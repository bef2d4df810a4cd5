"""What a victim's own measures leave of the attack."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from poisonkit.attacks.generated_noise import craft, rows_to_perturb
from poisonkit.augmentation import add_gaussian_noise, attack_linf
from poisonkit.defenses.spectral import RELEASED_PERCENTILE, spectral_filter
from poisonkit.errors import PoisonkitError, unknown
from poisonkit.evaluation import evaluate
from poisonkit.experiments.deep_confuse.data import begin
from poisonkit.experiments.deep_confuse.learning import learned_generator
from poisonkit.experiments.deep_confuse.setting import (
    ConfuseConfig,
    profiles_of,
    runs,
)
from poisonkit.experiments.deep_confuse.steps import (
    LAST_HIDDEN,
    clean_and_perturbed,
    refuse_new_noise,
    train_on,
)
from poisonkit.experiments.networks import Context, Cost, Transform
from poisonkit.experiments.running import Experiment
from poisonkit.experiments.settings import refuse_repeats, with_options
from poisonkit.images import ImageSet
from poisonkit.models import Classifier, features
from poisonkit.store import Json

#: How far the attack on each batch could go in all its steps, in bounds of the noise.
REACH = 1.75


def _noise(config: "DefencesConfig") -> Transform:
    deviation = config.epsilon / 2
    return Transform(
        about={"gaussian": deviation}, apply=partial(add_gaussian_noise, deviation=deviation)
    )


def _attack(config: "DefencesConfig") -> Transform:
    steps = config.attack_steps
    options = {"epsilon": config.epsilon, "steps": steps, "rate": REACH * config.epsilon / steps}
    return Transform(about={"attack": options}, apply=partial(attack_linf, **options))  # type: ignore[arg-type]


#: What each measure changes of the training, and what it does to each batch.
DEFENCES: Mapping[str, Mapping[str, object]] = {
    "none": {},
    "crops": {"recipe.crop_padding": 2},
    "gaussian noise": {},
    "adversarial training": {},
    "spectral filter": {},
}
_TRANSFORMS: Mapping[str, Callable[["DefencesConfig"], Transform]] = {
    "gaussian noise": _noise,
    "adversarial training": _attack,
}


@dataclass(frozen=True, kw_only=True)
class DefencesConfig(ConfuseConfig):
    """As :class:`ConfuseConfig`, with the victim's measures.

    Attributes
    ----------
    defences : keys of :data:`DEFENCES`.
    share : of the training images, those that are perturbed.
    attack_steps : of the attack on each batch in adversarial training.
    """

    defences: tuple[str, ...] = tuple(DEFENCES)
    share: float = 1.0
    attack_steps: int = 7


def _defence_units(config: DefencesConfig) -> list[Json]:
    refuse_repeats(defences=config.defences)
    for name in config.defences:
        if name not in DEFENCES:
            raise unknown("defence", name, DEFENCES)
    if config.attack_steps < 1:
        raise PoisonkitError(f"attack_steps must be at least 1, not {config.attack_steps}")
    return [{**run, "defence": name} for name in config.defences for run in runs(config)]


def _defended(config: DefencesConfig, unit: Json) -> DefencesConfig:
    found = with_options(config, DEFENCES[unit["defence"]])
    assert isinstance(found, DefencesConfig)
    return found


def _defence_check(config: DefencesConfig, unit: Json, context: Context) -> object:
    refuse_new_noise(config)
    data, _ = begin(_defended(config, unit), context)
    rows_to_perturb(data.train, share=config.share, seed=unit["seed"])
    if config.model not in LAST_HIDDEN and unit["defence"] == "spectral filter":
        raise unknown("network with a known last hidden layer", config.model, LAST_HIDDEN)
    return data


def defence_trial(
    config: DefencesConfig, unit: Json, context: Context
) -> tuple[Json, dict[str, Tensor]]:
    """Train with one measure, on clean images and on perturbed ones."""
    data, cost = begin(config, context)
    learned = learned_generator(config, data, unit["generator"], context, cost)
    poison = craft(data.train, learned.generator, share=config.share, seed=unit["seed"])
    noisy, _ = poison.apply(data.train)
    numbers: Json = {**unit, "data_checksum": data.train.checksum}
    for name, images in (("clean", data.train), ("perturbed", noisy)):
        network = _train(_defended(config, unit), unit, images, data.test, context, cost, name)
        numbers[name] = evaluate(network, data.test)
    return {**numbers, "cost": cost.as_json()}, {}


def _train(
    config: DefencesConfig,
    unit: Json,
    images: ImageSet,
    test: ImageSet,
    context: Context,
    cost: Cost,
    name: str,
) -> Classifier:
    defence, seed = unit["defence"], unit["seed"]
    transform = _TRANSFORMS[defence](config) if defence in _TRANSFORMS else None
    label = f"{defence}, {name}"
    network, _ = train_on(
        config, images, seed, context, cost, label, test=test, transform=transform
    )
    if defence != "spectral filter":
        return network
    values = features(network, images.x, LAST_HIDDEN[config.model])
    # How many images are perturbed the victim cannot know; this is the released code's way.
    kept = images.select(spectral_filter(values, images.y, percentile=RELEASED_PERCENTILE).keep)
    network, _ = train_on(config, kept, seed + 1_000_000, context, cost, f"{label}, filtered")
    return network


def defence_summary(config: DefencesConfig, trials: Sequence[Json]) -> Json:
    """Mean and deviation of both accuracies for each measure."""
    return {"rows": clean_and_perturbed(trials, "defence", config.defences)}


DEFENCE = Experiment(
    name="deep_confuse/defences",
    summary="what augmentation, adversarial training and the spectral filter leave of the attack",
    version=1,
    config=DefencesConfig,
    profiles=profiles_of(
        "mnist",
        quick={"repeats": 2},
        small={"generators": 1, "repeats": 1},
    ),
    variants={"paper": {}},
    units=_defence_units,
    trial=defence_trial,
    check=_defence_check,
    summarise=defence_summary,
)
