"""Places where paper and released code differ, or the paper is silent, switched one by one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from poisonkit.attacks.generated_noise import craft
from poisonkit.errors import unknown
from poisonkit.experiments.deep_confuse.data import begin
from poisonkit.experiments.deep_confuse.learning import learned_generator
from poisonkit.experiments.deep_confuse.setting import (
    RELEASED_NETWORK,
    ConfuseConfig,
    profiles_of,
    runs,
)
from poisonkit.experiments.deep_confuse.steps import (
    accuracies,
    train_on,
    train_perturbed,
)
from poisonkit.experiments.networks import Context
from poisonkit.experiments.running import Experiment
from poisonkit.experiments.settings import refuse_repeats, with_options
from poisonkit.statistics import mean_and_deviation
from poisonkit.store import Json

#: The network that all begin from: the text's with maxima in the pooling and logits as they are,
#: so that each choice that the code makes where the text is silent can be added by itself.
WITH_MAXIMA = "two_layer_cnn_bn"
#: What each switch changes.
SWITCHES: Mapping[str, Mapping[str, object]] = {
    "paper": {},
    "selected on the test images": {"selection": "test"},
    "last trial, not selected": {"selection": "last"},
    "trajectory stored (Algorithm 1)": {"procedure.algorithm": "stored"},
    "no batch normalisation": {"model": "two_layer_cnn"},
    "no batch normalisation at all": {"model": "two_layer_cnn", "generator": "plain_autoencoder"},
    "5x5 kernels without padding": {"model": "two_layer_cnn_bn_5x5"},
    "average pooling": {"model": "two_layer_cnn_bn_average"},
    "normalised logits": {"model": "two_layer_cnn_bn_logits"},
    "average pooling, normalised logits": {"model": "two_layer_cnn_bn_average_logits"},
    # Of kernels, pooling and logits each by itself, for nothing but the networks that the noise
    # is made with.
    "surrogates with 5x5 kernels": {"surrogate": "two_layer_cnn_bn_5x5"},
    "surrogates with average pooling": {"surrogate": "two_layer_cnn_bn_average"},
    "surrogates with normalised logits": {"surrogate": "two_layer_cnn_bn_logits"},
    # All three at a time; for the networks that the noise is made with, or for those that are
    # trained on it, or for both.
    "released network for surrogates": {"surrogate": RELEASED_NETWORK["model"]},
    "released network for classifiers": {**RELEASED_NETWORK, "surrogate": WITH_MAXIMA},
    "released network": RELEASED_NETWORK,
    "rate of the surrogates 0.01": {"procedure.surrogate_rate": 0.01},
    "released network, rate 0.01": {**RELEASED_NETWORK, "procedure.surrogate_rate": 0.01},
    "released generator": {"generator": "released_mnist"},
    "released": {
        **RELEASED_NETWORK,
        "generator": "released_mnist",
        "scored_by": "surrogate",
        "validation": 0.0,
        "selection": "test",
        "recipe.epochs": 2,
        "recipe.learning_rate": 0.01,
        "recipe.optimizer": "adam",
        "recipe.schedule": "constant",
        "recipe.warmup": 0.0,
        "standardise": "none",
    },
}


@dataclass(frozen=True, kw_only=True)
class ConfuseSwitchesConfig(ConfuseConfig):
    """As :class:`ConfuseConfig`, with the switches to try.

    Attributes
    ----------
    switches : keys of :data:`SWITCHES`; by default those that change something of the paper's
        setting for MNIST, whose rate of the surrogates is 0.01 anyway.
    """

    switches: tuple[str, ...] = tuple(
        name for name, changed in SWITCHES.items() if "procedure.surrogate_rate" not in changed
    )


def _switch_units(config: ConfuseSwitchesConfig) -> list[Json]:
    refuse_repeats(switches=config.switches)
    for name in config.switches:
        if name not in SWITCHES:
            raise unknown("switch", name, SWITCHES)
    return [{**run, "switch": name} for run in runs(config) for name in config.switches]


def _chosen(config: ConfuseSwitchesConfig, unit: Json) -> ConfuseSwitchesConfig:
    found = with_options(config, SWITCHES[unit["switch"]])
    assert isinstance(found, ConfuseSwitchesConfig)
    return found


def _switch_check(config: ConfuseSwitchesConfig, unit: Json, context: Context) -> object:
    return begin(_chosen(config, unit), context)


def switch_trial(
    config: ConfuseSwitchesConfig, unit: Json, context: Context
) -> tuple[Json, dict[str, Tensor]]:
    """Learn, select and train as the switch says; look in eval mode and by batch statistics."""
    config = _chosen(config, unit)
    data, cost = begin(config, context)
    learned = learned_generator(config, data, unit["generator"], context, cost)
    seed = unit["seed"]
    clean, _ = train_on(config, data.train, seed, context, cost, "clean", test=data.test)
    noisy, _ = craft(data.train, learned.generator).apply(data.train)
    network, _ = train_perturbed(
        config,
        data.train,
        noisy,
        learned.generator,
        seed,
        context,
        cost,
        "perturbed",
        test=data.test,
    )
    numbers: Json = {
        **unit,
        "checks": learned.course["checks"],
        "clean": accuracies(clean, data.test),
        "perturbed": accuracies(network, data.test),
        "data_checksum": data.train.checksum,
    }
    return {**numbers, "cost": cost.as_json()}, {}


def switch_summary(config: ConfuseSwitchesConfig, trials: Sequence[Json]) -> Json:
    """Mean and deviation of each accuracy for each switch."""
    rows = []
    for name in config.switches:
        own = [trial for trial in trials if trial["switch"] == name]
        row: Json = {"switch": name, "runs": len(own)}
        for kind in ("clean", "perturbed"):
            for how in ("accuracy", "batch_statistics"):
                mean, deviation = mean_and_deviation([trial[kind][how] for trial in own])
                row[f"{kind}.{how}"] = {"mean": mean, "deviation": deviation}
        rows.append(row)
    return {"rows": rows}


SWITCHING = Experiment(
    name="deep_confuse/switches",
    summary="what each difference between the paper and the released code changes",
    version=2,
    config=ConfuseSwitchesConfig,
    profiles=profiles_of(
        "mnist",
        paper={"model": WITH_MAXIMA},
        quick={
            "image_size": 28,
            "repeats": 1,
            "switches": (
                "paper",
                "selected on the test images",
                "last trial, not selected",
                "released network",
            ),
        },
        # Sixteen generators are learned (five of them equal to others, which other classifiers
        # judge), so each from half as many trials as elsewhere, and the classifiers see a third
        # of the images. Both algorithms learn the same generator to rounding, so one of them
        # will do.
        small={
            "generators": 1,
            "images_per_class": 2000,
            "procedure.trials": 30,
            "switches": (
                "paper",
                "selected on the test images",
                "last trial, not selected",
                "no batch normalisation",
                "5x5 kernels without padding",
                "average pooling",
                "normalised logits",
                "average pooling, normalised logits",
                "surrogates with 5x5 kernels",
                "surrogates with average pooling",
                "surrogates with normalised logits",
                "released network for surrogates",
                "released network for classifiers",
                "released network",
                "rate of the surrogates 0.01",
                "released network, rate 0.01",
                "released generator",
                "released",
            ),
        },
    ),
    variants={"paper": {}},
    units=_switch_units,
    trial=switch_trial,
    check=_switch_check,
    summarise=switch_summary,
)
