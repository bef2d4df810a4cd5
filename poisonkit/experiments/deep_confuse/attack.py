"""Tables 1 and 2, Figures 2, 3, 8 and 9: the attack on one data set."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from poisonkit.attacks.generated_noise import craft
from poisonkit.experiments.deep_confuse.data import Data, begin
from poisonkit.experiments.deep_confuse.learning import learned_generator
from poisonkit.experiments.deep_confuse.setting import (
    RELEASED_NETWORK,
    ConfuseConfig,
    profiles_of,
    runs,
    variants_of,
)
from poisonkit.experiments.deep_confuse.steps import (
    LAST_HIDDEN,
    accuracies,
    accuracy_on_noise,
    noise_images,
    some_of_each_class,
    train_on,
    train_perturbed,
)
from poisonkit.experiments.networks import Context
from poisonkit.experiments.running import Experiment
from poisonkit.images import ImageSet
from poisonkit.models import Classifier, features
from poisonkit.statistics import mean_and_deviation
from poisonkit.store import Json

#: Images of each class that Figure 3 shows.
SHOWN = 100


def attack_trial(
    config: ConfuseConfig, unit: Json, context: Context
) -> tuple[Json, dict[str, Tensor]]:
    """Learn a generator, train on clean images, on perturbed ones, and on the noise alone."""
    data, cost = begin(config, context)
    learned = learned_generator(config, data, unit["generator"], context, cost)
    poison = craft(data.train, learned.generator)
    noisy, _ = poison.apply(data.train)
    seed, test = unit["seed"], data.test
    clean_network, clean = train_on(config, data.train, seed, context, cost, "clean", test=test)
    trained_on = (data.train, noisy, learned.generator, seed, context, cost)
    network, course = train_perturbed(config, *trained_on, "perturbed", test=test)
    unrounded = network
    if config.noise == "once":
        unrounded, _ = train_perturbed(
            replace(config, noise="anew"), *trained_on, "unrounded noise"
        )
    train_noise, test_noise = (
        noise_images(learned.generator, images) for images in (data.train, data.test)
    )
    by_noise, _ = train_on(config, train_noise, seed, context, cost, "noise alone")
    noisy_test, _ = craft(data.test, learned.generator).apply(data.test)
    numbers = {
        **unit,
        "clean": {
            **accuracies(clean_network, data.test),
            "train": clean["accuracy"],
            "test": clean["test"],
        },
        "perturbed": {
            **accuracies(network, data.test),
            "on_perturbed_test": accuracies(network, noisy_test)["accuracy"],
            "train": course["accuracy"],
            "test": course["test"],
        },
        "unrounded": accuracies(unrounded, data.test),
        "on_noise": {
            part: accuracy_on_noise(network, learned.generator, images)
            for part, images in (("train", data.train), ("test", data.test))
        },
        "noise_alone": {
            "train": accuracies(by_noise, train_noise)["accuracy"],
            "test": accuracies(by_noise, test_noise)["accuracy"],
        },
        "learning": learned.course,
        "largest_change": int(poison.verify(data.train).max()),
        "class_names": [*data.train.class_names],
        "data_checksum": data.train.checksum,
    }
    arrays: dict[str, Tensor] = {}
    if unit == runs(config)[0]:
        arrays = _pictures(data, noisy, learned.generator) | _components(
            network, LAST_HIDDEN.get(config.model), noisy, data.test
        )
    return {**numbers, "cost": cost.as_json()}, arrays


def _pictures(data: Data, noisy: ImageSet, generator: Any) -> dict[str, Tensor]:
    """Return the first training image of each class without noise and with it (Figures 2, 9)."""
    rows = some_of_each_class(data.train, 1)
    return {
        "images.clean": data.train.x[rows],
        "images.perturbed": noisy.x[rows],
        "images.noise": noise_images(generator, data.train.select(rows)).x,
        "images.labels": data.train.y[rows],
    }


def _components(
    network: Classifier, tap: str | None, noisy: ImageSet, test: ImageSet
) -> dict[str, Tensor]:
    """Return the last hidden layer along the principal components of its training features.

    The components are those of perturbed training images; clean test images are projected
    onto the same ones (Figure 3).
    """
    if tap is None:
        return {}
    from sklearn.decomposition import PCA

    found: dict[str, Tensor] = {}
    fitted: PCA | None = None
    for name, images in (("train", noisy), ("test", test)):
        rows = some_of_each_class(images, SHOWN)
        values = features(network, images.x[rows], tap).cpu().numpy()
        fitted = fitted or PCA(n_components=2, svd_solver="full").fit(values)
        found[f"components.{name}"] = torch.from_numpy(fitted.transform(values)).float()
        found[f"components.{name}_labels"] = images.y[rows]
    return found


def attack_summary(config: ConfuseConfig, trials: Sequence[Json]) -> Json:
    """Means and deviations over the runs, of each accuracy."""
    paths = (
        *(
            (kind, how)
            for kind in ("clean", "perturbed", "unrounded")
            for how in ("accuracy", "batch_statistics")
        ),
        ("perturbed", "on_perturbed_test"),
        *((kind, part) for kind in ("on_noise", "noise_alone") for part in ("train", "test")),
    )
    found: Json = {}
    for kind, name in paths:
        mean, deviation = mean_and_deviation([trial[kind][name] for trial in trials])
        found[f"{kind}.{name}"] = {"mean": mean, "deviation": deviation}
    return {"accuracy": found}


def _check(config: ConfuseConfig, unit: Json, context: Context) -> object:
    return begin(config, context)


def _attack_on(
    dataset: str,
    shown: str,
    *,
    name: str | None = None,
    summary: str | None = None,
    **profiles: Any,
) -> Experiment:
    exhibits = "Tables 1 and 2, Figures 2, 3, 8 and 9"
    return Experiment(
        name=f"deep_confuse/{name or dataset}",
        summary=summary or f"{exhibits}: what noise on {shown} does to training",
        version=3,
        config=ConfuseConfig,
        profiles=profiles_of(dataset, **profiles),
        variants=variants_of(dataset),
        units=runs,
        trial=attack_trial,
        check=_check,
        summarise=attack_summary,
    )


#: At ``small`` one classifier for each generator has to do.
MNIST = _attack_on("mnist", "MNIST", small={"repeats": 1})
CIFAR10 = _attack_on("cifar10", "CIFAR-10", quick={"generator": "unet", "generator_width": 8})
IMAGENET2 = _attack_on("imagenet2", "two classes of ImageNet")
#: As ``deep_confuse/mnist``, but for the network.
NETWORK = _attack_on(
    "mnist",
    "MNIST",
    name="network",
    summary="the attack on MNIST, against the released code's network",
    small={"repeats": 1},
    paper=RELEASED_NETWORK,
)
