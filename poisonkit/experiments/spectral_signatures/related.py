"""Table 2's procedure elsewhere: on merged classes (Table 3), and on other networks (Table 5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from poisonkit.errors import unknown
from poisonkit.experiments.networks import Context
from poisonkit.experiments.running import Experiment
from poisonkit.experiments.settings import refuse_repeats, with_options
from poisonkit.experiments.spectral_signatures.removal import (
    removal_summary,
    removal_trial,
    rows_of,
)
from poisonkit.experiments.spectral_signatures.setting import (
    QUICK,
    RELEASED,
    SMALL,
    SpectralConfig,
    units,
)
from poisonkit.experiments.spectral_signatures.steps import begin
from poisonkit.store import Json

#: The released code's way, on the classes and triggers of these experiments.
_VARIANTS: Mapping[str, Mapping[str, object]] = {
    "paper": {},
    "released": {
        name: value
        for name, value in RELEASED.items()
        if name not in ("pairs", "shares", "pattern", "position", "colour")
    },
}
#: Section 4.5: cats and dogs are "pets"; four backdoors in either direction.
_PETS: Mapping[str, object] = {
    "merged": ("cat", "dog"),
    "merged_into": "pets",
    "pairs": (("automobile", "pets"), ("pets", "automobile")),
    "pattern": "random",
    "trials": 4,
}
SUBPOPULATIONS = Experiment(
    name="spectral_signatures/subpopulations",
    summary="Table 3: the same when the clean images of a class are a mixture of two",
    version=1,
    config=SpectralConfig,
    profiles={
        "quick": {
            **QUICK,
            "merged": ("4", "7"),
            "merged_into": "4 or 7",
            "pairs": (("1", "4 or 7"), ("4 or 7", "1")),
        },
        "small": {**SMALL, **_PETS, "pattern": "X"},
        "paper": _PETS,
    },
    variants=_VARIANTS,
    units=units,
    trial=removal_trial,
    check=begin,
    summarise=removal_summary,
)

#: The options that go with a network; a VGG is read at its second to last convolution, as
#: the paper reads its ResNet at the second to last unit. ResNet-14 is trained with crops
#: and flips, which takes it 10 epochs to capture a backdoor; the others as the profile says.
NETWORKS: Mapping[str, Mapping[str, object]] = {
    "vgg16": {"model": "vgg16", "tap": "stage5.1"},
    "vgg11, width 16": {"model": "vgg11", "width": 16, "tap": "stage5.0"},
    "vgg11, width 8": {"model": "vgg11", "width": 8, "tap": "stage5.0", "image_size": 32},
    "preact_resnet14": {
        "model": "preact_resnet14",
        "tap": "group3.0",
        "recipe.optimizer": "sgd",
        "recipe.learning_rate": 0.2,
        "recipe.epochs": 10,
        "recipe.warmup": 0.1,
        "recipe.weight_decay": 5e-4,
        "recipe.crop_padding": 2,
        "recipe.flip": True,
    },
}


@dataclass(frozen=True, kw_only=True)
class NetworksConfig(SpectralConfig):
    """As :class:`SpectralConfig`, for several networks.

    Attributes
    ----------
    networks : keys of :data:`NETWORKS`; their options stand against the others.
    """

    networks: tuple[str, ...] = ("vgg16",)


def _network_units(config: NetworksConfig) -> list[Json]:
    refuse_repeats(networks=config.networks)
    for name in config.networks:
        if name not in NETWORKS:
            raise unknown("network", name, NETWORKS)
    return [{**unit, "network": name} for name in config.networks for unit in units(config)]


def _network_trial(
    config: NetworksConfig, unit: Json, context: Context
) -> tuple[Json, dict[str, Tensor]]:
    return removal_trial(_chosen(config, unit), unit, context)


def _network_check(config: NetworksConfig, unit: Json, context: Context) -> object:
    return begin(_chosen(config, unit), unit, context)


def _chosen(config: NetworksConfig, unit: Json) -> NetworksConfig:
    found = with_options(config, NETWORKS[unit["network"]])
    assert isinstance(found, NetworksConfig)
    return found


def _network_summary(config: NetworksConfig, trials: Sequence[Json]) -> Json:
    return {"rows": rows_of(trials, ("network", "source", "target", "share"))}


_ONE_PAIR: Mapping[str, object] = {"pairs": (("airplane", "bird"),), "shares": (0.10,)}
ARCHITECTURES = Experiment(
    name="spectral_signatures/architectures",
    summary="Table 5: the same for networks of another kind",
    version=1,
    config=NetworksConfig,
    profiles={
        "quick": {**QUICK, "trials": 2, "networks": ("vgg11, width 8",)},
        "small": {
            **SMALL,
            **_ONE_PAIR,
            "trials": 3,
            "networks": ("vgg11, width 16", "preact_resnet14"),
        },
        "paper": {},
    },
    variants=_VARIANTS,
    units=_network_units,
    trial=_network_trial,
    check=_network_check,
    summarise=_network_summary,
)
