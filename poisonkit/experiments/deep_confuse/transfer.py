"""Figures 6 and 7: classifiers that the generator was not learned with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from torch import Tensor

from poisonkit.attacks.generated_noise import craft
from poisonkit.errors import PoisonkitError, unknown
from poisonkit.evaluation import evaluate
from poisonkit.experiments.deep_confuse.data import begin
from poisonkit.experiments.deep_confuse.learning import learned_generator
from poisonkit.experiments.deep_confuse.setting import (
    DEFAULT_NETWORK,
    ConfuseConfig,
    against_released_network,
    profiles_of,
    runs,
    variants_of,
)
from poisonkit.experiments.deep_confuse.steps import (
    clean_and_perturbed,
    refuse_new_noise,
    train_on,
    train_perturbed,
)
from poisonkit.experiments.networks import Context
from poisonkit.experiments.running import Experiment
from poisonkit.experiments.settings import refuse_repeats, with_options
from poisonkit.images import ImageSet
from poisonkit.options import added
from poisonkit.store import Json

#: The options that go with each network. Half and twice the width are the paper's small
#: and large one on MNIST; for the deep ones the rate and its schedule are ours.
NETWORKS: Mapping[str, Mapping[str, object]] = {
    "original": {},
    "small": {"model": DEFAULT_NETWORK, "width": 10},
    "large": {"model": DEFAULT_NETWORK, "width": 40},
    "half": {"model": DEFAULT_NETWORK, "width": 5},
    "twice": {"model": DEFAULT_NETWORK, "width": 20},
    **{
        name: {
            "model": name,
            "width": None,
            "recipe.optimizer": "sgd",
            "recipe.learning_rate": 0.05,
            "recipe.schedule": "cosine",
        }
        for name in ("vgg16", "vgg19", "resnet18", "resnet50", "densenet121")
    },
    "vgg11, width 16": {"model": "vgg11", "width": 16},
    "resnet8": {"model": "resnet8", "width": None},
    "resnet14": {"model": "resnet14", "width": None},
    "densenet22, width 16": {"model": "densenet22", "width": 16},
    # Those of the released CIFAR-10 code.
    "bottleneck_vgg11": {"model": "bottleneck_vgg11", "width": None},
    "bottleneck_vgg19": {"model": "bottleneck_vgg19", "width": None},
}
#: Those that are another in another size.
RESIZED = ("small", "large", "half", "twice")
CLASSICAL = ("random forest", "support vector machine")
#: Those that nothing but their data decides: one for each generator says it all.
_WITHOUT_SEED = ("support vector machine",)


@dataclass(frozen=True, kw_only=True)
class TransferConfig(ConfuseConfig):
    """As :class:`ConfuseConfig`, for several classifiers.

    Attributes
    ----------
    classifiers : of :data:`NETWORKS` and :data:`CLASSICAL`.
    resized : whether those of :data:`RESIZED` are the ``text``'s two-layer network or the
        ``attacked`` one in other sizes.
    trees : of a random forest; section 5.2 has 300, the released code 100.
    penalty : C of a support vector machine with a radial kernel of coefficient 0.01 on pixels
        in [0, 1] (section 5.2). The paper does not state it; this is the released code's.
    """

    classifiers: tuple[str, ...] = ("original", "small", "large", *CLASSICAL)
    resized: Literal["text", "attacked"] = added("text")
    trees: int = added(300)
    penalty: float = added(200.0)


def _transfer_units(config: TransferConfig) -> list[Json]:
    refuse_repeats(classifiers=config.classifiers)
    for name in config.classifiers:
        if name not in (*NETWORKS, *CLASSICAL):
            raise unknown("classifier", name, (*NETWORKS, *CLASSICAL))
    if config.trees < 1 or not config.penalty > 0:
        raise PoisonkitError(
            f"a forest needs at least one tree and a support vector machine a positive penalty, "
            f"not {config.trees} and {config.penalty}"
        )
    return [
        {**run, "classifier": name}
        for name in config.classifiers
        for run in runs(replace(config, repeats=1) if name in _WITHOUT_SEED else config)
    ]


def _attacked(config: TransferConfig, unit: Json) -> TransferConfig:
    options = dict(NETWORKS.get(unit["classifier"], {}))
    if config.resized == "attacked" and unit["classifier"] in RESIZED:
        options["model"] = config.model
    if config.variant == "released":
        # How classifiers are trained in the end is the code's.
        options = {name: options[name] for name in options if not name.startswith("recipe.")}
    found = with_options(config, options)
    assert isinstance(found, TransferConfig)
    return found


def _transfer_check(config: TransferConfig, unit: Json, context: Context) -> object:
    begin(config, context)
    if unit["classifier"] in CLASSICAL:
        refuse_new_noise(config)
    return begin(_attacked(config, unit), context)


def transfer_trial(
    config: TransferConfig, unit: Json, context: Context
) -> tuple[Json, dict[str, Tensor]]:
    """Train another classifier on the clean images and on the perturbed ones."""
    data, cost = begin(config, context)
    learned = learned_generator(config, data, unit["generator"], context, cost)
    name, seed, test = unit["classifier"], unit["seed"], data.test
    numbers: Json = {**unit, "data_checksum": data.train.checksum}
    noisy, _ = craft(data.train, learned.generator).apply(data.train)
    if name in CLASSICAL:
        for kind, images in (("clean", data.train), ("perturbed", noisy)):
            fitted = _classical(config, name, seed).fit(_pixels(images), images.y.cpu().numpy())
            right = fitted.predict(_pixels(test)) == test.y.cpu().numpy()
            numbers[kind] = float(right.mean())
        return {**numbers, "cost": cost.as_json()}, {}
    attacked = _attacked(config, unit)
    clean, _ = train_on(attacked, data.train, seed, context, cost, f"{name}, clean", test=test)
    perturbed, _ = train_perturbed(
        attacked,
        data.train,
        noisy,
        learned.generator,
        seed,
        context,
        cost,
        f"{name}, perturbed",
        test=test,
    )
    numbers |= {"clean": evaluate(clean, test), "perturbed": evaluate(perturbed, test)}
    return {**numbers, "cost": cost.as_json()}, {}


def _classical(config: TransferConfig, name: str, seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.svm import SVC

    if name == "random forest":
        return RandomForestClassifier(n_estimators=config.trees, random_state=seed)
    return SVC(kernel="rbf", gamma=0.01, C=config.penalty)


def _pixels(images: ImageSet) -> np.ndarray:
    return images.x.cpu().flatten(1).numpy().astype(np.float32) / 255


def transfer_summary(config: TransferConfig, trials: Sequence[Json]) -> Json:
    """Mean and deviation of both accuracies for each classifier."""
    return {"rows": clean_and_perturbed(trials, "classifier", config.classifiers)}


def _variants(dataset: str) -> Mapping[str, Mapping[str, object]]:
    variants = dict(variants_of(dataset))
    if dataset == "mnist":
        variants["released"] = {**variants["released"], "trees": 100, "resized": "attacked"}
    return variants


def _transfer_on(dataset: str, name: str, figure: str, **profiles: Any) -> Experiment:
    return Experiment(
        name=f"deep_confuse/{name}",
        summary=f"{figure}: classifiers that the generator was not learned with",
        version=1,
        config=TransferConfig,
        profiles=profiles_of(dataset, **profiles),
        variants=_variants(dataset),
        units=_transfer_units,
        trial=transfer_trial,
        check=_transfer_check,
        summarise=transfer_summary,
    )


_DEEP: Mapping[str, object] = {
    "classifiers": ("vgg16", "vgg19", "resnet18", "resnet50", "densenet121"),
}
_NARROW: Mapping[str, object] = {
    "repeats": 1,
    "classifiers": (
        "original",
        "vgg11, width 16",
        "resnet8",
        "resnet14",
        "densenet22, width 16",
    ),
}
_DIGITS: Mapping[str, object] = {
    "classifiers": ("original", "half", "twice", *CLASSICAL),
    "repeats": 2,
}
TRANSFER = _transfer_on("mnist", "transfer", "Figure 6", quick=_DIGITS, small={"repeats": 1})
NETWORK_TRANSFER = against_released_network(TRANSFER, resized="attacked")
TRANSFER_CIFAR10 = _transfer_on(
    "cifar10", "transfer_cifar10", "Figure 7a", quick=_DIGITS, small=_NARROW, paper=_DEEP
)
TRANSFER_IMAGENET2 = _transfer_on(
    "imagenet2", "transfer_imagenet2", "Figure 7b", quick=_DIGITS, small=_NARROW, paper=_DEEP
)
