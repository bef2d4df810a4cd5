"""Deep Confuse's victims: equal settings are one training, and each measure does what it says."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from deep_confuse_laboratory import ATTACKS, DeepConfuseLaboratory, configure
from sklearn.svm import SVC

from poisonkit.attacks.generated_noise import craft
from poisonkit.augmentation import add_gaussian_noise, attack_linf
from poisonkit.data import load
from poisonkit.experiments import EXPERIMENTS, networks
from poisonkit.experiments.deep_confuse import transfer
from poisonkit.experiments.deep_confuse.data import begin, networks_of
from poisonkit.experiments.deep_confuse.learning import learned_generator
from poisonkit.experiments.deep_confuse.setting import DEFAULT_NETWORK
from poisonkit.experiments.deep_confuse.steps import LAST_HIDDEN
from poisonkit.experiments.deep_confuse.switches import SWITCHES
from poisonkit.experiments.settings import as_json, with_options
from poisonkit.models import create, features
from poisonkit.store import Record
from poisonkit.training import fit


@pytest.fixture(scope="module")
def laboratory(caches) -> DeepConfuseLaboratory:
    return DeepConfuseLaboratory.below(caches)


def by_seed(record: Record, value: Callable[[dict], float], **wanted: object) -> dict[int, float]:
    """A number of each of the trials that have the wanted settings, by their seeds."""
    return {
        trial["seed"]: value(trial)
        for trial in record.metrics["trials"]
        if all(trial[name] == setting for name, setting in wanted.items())
    }


# Known limits: different experiments, the same training ---------------------------------------


def test_clean_images_give_the_same_network_in_every_experiment(laboratory):
    """No noise, no share of the images, the measure that does nothing: it is all one."""
    clean = by_seed(laboratory.record("epsilon"), lambda t: t["accuracy"], epsilon=0.0)
    assert len(clean) == 2
    assert clean == by_seed(laboratory.record("mnist"), lambda t: t["clean"]["accuracy"])
    share, label_map = laboratory.record("share"), laboratory.record("label_map")
    for kind in ("noise", "random labels", "left out"):
        assert clean == by_seed(share, lambda t: t["accuracy"], kind=kind, share=0.0)
    assert clean == by_seed(label_map, lambda t: t["accuracy"], kind="clean")
    transfer, defences = laboratory.record("transfer"), laboratory.record("defences")
    assert clean == by_seed(transfer, lambda t: t["clean"], classifier="original")
    assert clean == by_seed(defences, lambda t: t["clean"], defence="none")
    switches = laboratory.record("switches", model=DEFAULT_NETWORK)
    for name in ("paper", "selected on the test images", "trajectory stored (Algorithm 1)"):
        assert clean == by_seed(switches, lambda t: t["clean"]["accuracy"], switch=name)


def test_fully_perturbed_images_give_the_same_network_in_every_experiment(laboratory):
    noisy = by_seed(laboratory.record("epsilon"), lambda t: t["accuracy"], epsilon=0.3)
    assert noisy != by_seed(laboratory.record("epsilon"), lambda t: t["accuracy"], epsilon=0.0)
    assert noisy == by_seed(laboratory.record("mnist"), lambda t: t["perturbed"]["accuracy"])
    share, label_map = laboratory.record("share"), laboratory.record("label_map")
    assert noisy == by_seed(share, lambda t: t["accuracy"], kind="noise", share=1.0)
    assert noisy != by_seed(share, lambda t: t["accuracy"], kind="noise", share=0.5)
    assert noisy == by_seed(label_map, lambda t: t["accuracy"], kind="any wrong label")
    transfer, defences = laboratory.record("transfer"), laboratory.record("defences")
    assert noisy == by_seed(transfer, lambda t: t["perturbed"], classifier="original")
    assert noisy == by_seed(defences, lambda t: t["perturbed"], defence="none")
    switches = laboratory.record("switches", model=DEFAULT_NETWORK)
    assert noisy == by_seed(switches, lambda t: t["perturbed"]["accuracy"], switch="paper")


def test_leaving_images_out_costs_images_and_no_steps(laboratory, monkeypatch):
    seen = []
    learning = networks.fit

    def counted(network, images, recipe, **options):
        seen.append(recipe.epochs * len(images))
        return learning(network, images, recipe, **options)

    monkeypatch.setattr(networks, "fit", counted)
    shares = (0.0, 0.25, 0.8)
    config = configure("share", shares=shares, epsilons=(), repeats=1, seed=7, images_per_class=100)
    experiment = EXPERIMENTS["deep_confuse/share"]
    units = [unit for unit in experiment.units(config) if unit["kind"] == "left out"]
    assert [unit["share"] for unit in units] == [*shares]
    for unit in units:
        experiment.trial(config, unit, laboratory.context)
    whole, *fewer = seen
    assert fewer == pytest.approx([whole] * 2, rel=0.02), "as many images are shown, repeated"


def test_a_share_is_perturbed_the_same_way_whether_the_victim_defends_itself(laboratory):
    half = by_seed(
        laboratory.record("share"), lambda t: t["accuracy"], kind="noise", share=0.5, epsilon=0.3
    )
    record = laboratory.record("defences", defences=("none",), share=0.5)
    assert half == by_seed(record, lambda t: t["perturbed"])


@pytest.mark.parametrize(
    ("name", "wanted", "alone"),
    [
        ("transfer", {"classifier": "half"}, {"width": 5}),
        ("defences", {"defence": "crops"}, {"recipe.crop_padding": 2}),
        ("switches", {"switch": "no batch normalisation"}, {"model": "two_layer_cnn"}),
    ],
)
def test_an_option_by_its_name_is_the_option_itself(name, wanted, alone, laboratory):
    """On clean images, which no generator has seen."""

    def clean(trial):
        found = trial["clean"]
        return found if isinstance(found, float) else found["accuracy"]

    expected = by_seed(
        laboratory.record("epsilon", epsilons=(0.0,), **alone), lambda t: t["accuracy"]
    )
    assert by_seed(laboratory.record(name), clean, **wanted) == expected
    assert expected != by_seed(laboratory.record("epsilon"), lambda t: t["accuracy"], epsilon=0.0)


@pytest.mark.parametrize("name", [*ATTACKS, "transfer_cifar10", "transfer_imagenet2"])
@pytest.mark.parametrize("profile", ["quick", "small"])
def test_off_the_papers_scale_the_released_variant_leaves_networks_and_trainings_alone(
    name, profile, laboratory
):
    """That of ImageNet selects as we do; its generator learns from crops, with AMSGrad."""
    experiment = EXPERIMENTS[f"deep_confuse/{name}"]
    ours, theirs = (
        as_json(experiment.configure(profile=profile, variant=variant))
        for variant in ("paper", "released")
    )
    changed = {key for key in theirs if key not in ours or ours[key] != theirs[key]}
    if name.endswith("imagenet2"):
        learning = {"amsgrad": True}
        if profile == "small":  # digits are not cut
            learning["crops"] = "random"
            changed.remove("generator")
            assert theirs["generator"] == "released_imagenet"
        assert changed == {"variant", "procedure"}
        assert theirs["procedure"] == ours["procedure"] | learning
    else:
        assert changed == {"variant", "selection"}
    if profile == "quick":
        config = experiment.configure(profile=profile, variant="released", dataset="digits")
        experiment.check(config, next(iter(experiment.units(config))), laboratory.context)


LEARNED = {"algorithm": "memory_efficient", "label_map": None, "generator_rate": 1e-4}
RELEASED = {
    "mnist": (
        {"epsilon": 0.3, "generator": "released_mnist", "model": "released_two_layer_cnn"},
        {"trials": 1000, "epochs_per_trial": 1, "batch_size": 64, "surrogate_rate": 0.01},
        {"optimizer": "adam", "learning_rate": 0.01, "epochs": 2, "batch_size": 64, "flip": False},
        {"selection": "test", "select_every": 1, "validation": 0.0, "trained_share": 1.0},
    ),
    "cifar10": (
        {"epsilon": 0.032, "generator": "unet", "model": "bottleneck_vgg19", "noise": "anew"},
        {"trials": 1000, "epochs_per_trial": 20, "batch_size": 256, "surrogate_rate": 0.01},
        {"optimizer": "adam", "learning_rate": 1e-4, "epochs": 30, "batch_size": 256, "flip": True},
        {"selection": "test", "select_every": 1, "validation": 0.0, "trained_share": 0.9},
    ),
    "imagenet2": (
        {"epsilon": 0.1, "generator": "released_imagenet", "model": "five_layer_cnn_bn"},
        {
            "trials": 500,
            "epochs_per_trial": 5,
            "batch_size": 32,
            "surrogate_rate": 0.01,
            "generator_rate": 1e-3,
            "amsgrad": True,
            "crops": "random",
        },
        {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.0, "epochs": 5, "batch_size": 16},
        {"selection": "validation", "select_every": 1, "validation": 0.146},
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_the_released_variant_is_what_the_authors_code_does(name):
    networks_, learning, training, selection = RELEASED[name]
    config = EXPERIMENTS[f"deep_confuse/{name}"].configure(variant="released")
    for expected, found in (
        (networks_ | selection | {"scored_by": "surrogate", "standardise": "none"}, config),
        (LEARNED | learning, config.procedure),
        (
            {"weight_decay": 0.0, "crop_padding": 0, "schedule": "constant"} | training,
            config.recipe,
        ),
    ):
        assert {key: getattr(found, key) for key in expected} == expected
    assert config.surrogate == ("bottleneck_vgg11" if name == "cifar10" else None)
    if name == "imagenet2":
        assert config.trained_share == pytest.approx(1 - config.validation)


def test_the_released_variants_other_classifiers_are_trained_as_its_own_is():
    experiment = EXPERIMENTS["deep_confuse/transfer_cifar10"]
    for variant in ("paper", "released"):
        config = experiment.configure(variant=variant)
        for name in ("vgg19", "densenet121"):
            own = transfer._attacked(config, {"classifier": name})
            assert own.model == name
            assert (own.recipe == config.recipe) == (variant == "released")
    released = EXPERIMENTS["deep_confuse/transfer"].configure(variant="released")
    assert released.trees == 100
    small = transfer._attacked(released, {"classifier": "small"})
    assert (small.model, small.width) == ("released_two_layer_cnn", 10)


def test_the_released_switch_trains_as_the_code_does():
    """Adam at a constant rate of 0.01 for two epochs, on pixels as they are."""
    config = with_options(configure("switches"), SWITCHES["released"])
    recipe = config.recipe
    assert (recipe.optimizer, recipe.learning_rate, recipe.epochs) == ("adam", 0.01, 2)
    assert (recipe.schedule, recipe.warmup, config.standardise) == ("constant", 0.0, "none")


def test_the_released_network_stands_for_surrogates_for_classifiers_or_for_both():
    """The attacked network comes first; surrogates have half its channels at ``small``."""
    config = EXPERIMENTS["deep_confuse/switches"].configure(profile="small")
    text, code = "two_layer_cnn_bn", "released_two_layer_cnn"
    for switch, attacked, surrogate in (
        ("paper", text, text),
        ("released network for surrogates", text, code),
        ("released network for classifiers", code, text),
        ("released network", code, code),
        ("surrogates with 5x5 kernels", text, f"{text}_5x5"),
        ("surrogates with average pooling", text, f"{text}_average"),
        ("surrogates with normalised logits", text, f"{text}_logits"),
    ):
        found = networks_of(with_options(config, SWITCHES[switch]))
        assert found == [(attacked, None), (surrogate, 10)]


@pytest.mark.parametrize("profile", ["small", "paper"])
def test_a_rate_is_switched_only_where_the_profile_has_another_than_the_paper(profile):
    config = EXPERIMENTS["deep_confuse/switches"].configure(profile=profile)
    rates = [name for name in config.switches if "rate" in name]
    assert bool(rates) == (config.procedure.surrogate_rate != 0.01) == (profile == "small")
    for name in rates:
        switched = with_options(config, SWITCHES[name])
        assert switched.procedure == replace(config.procedure, surrogate_rate=0.01)


def test_the_released_generator_and_all_of_the_released_code_can_be_switched_on(laboratory):
    chosen = (
        "released network for surrogates",
        "released network for classifiers",
        "released network",
        "released generator",
        "released",
    )
    options = {"image_size": 28, "switches": chosen, "repeats": 1, "images_per_class": 10}
    rows = laboratory.record("switches", **options, **{"procedure.trials": 1}).metrics["rows"]
    assert [row["switch"] for row in rows] == list(chosen)
    for row in rows:
        assert row["runs"] == 1
        assert 0 < row["perturbed.batch_statistics"]["mean"] <= 1


# Defences, and classifiers of other kinds -----------------------------------------------------


@pytest.mark.parametrize(
    ("defence", "options", "transform"),
    [
        ("gaussian noise", {}, partial(add_gaussian_noise, deviation=0.15)),
        ("adversarial training", {}, partial(attack_linf, epsilon=0.3, steps=7, rate=0.075)),
        # Fewer steps, as far in all.
        (
            "adversarial training",
            {"attack_steps": 3, "defences": ("adversarial training",)},
            partial(attack_linf, epsilon=0.3, steps=3, rate=0.175),
        ),
    ],
)
def test_a_measure_on_batches_has_the_strength_of_the_noise(
    defence, options, transform, laboratory
):
    record = laboratory.record("defences", **options)
    found = by_seed(record, lambda t: t["clean"], defence=defence)[0]
    config = configure("defences")
    train, test = load("digits").first_per_class(30), load("digits", split="test")
    network = create(config.model, like=train, seed=0, standardise="data", width=4)
    fit(network, train, config.recipe, seed=0, transform=transform)
    with torch.no_grad():
        right = network(test.x / 255).argmax(1) == test.y
    assert found == float(right.double().mean())


def test_the_victims_measures_are_tried_on_one_generator_and_the_images_it_made(store):
    laboratory = DeepConfuseLaboratory(store)
    for name in ("defences", "transfer"):
        laboratory.record(name)
        assert laboratory.count("generators") == 1


def test_a_support_vector_machine_sees_the_pixels_of_the_perturbed_images(laboratory):
    record = laboratory.record("transfer")
    own = {"classifier": "support vector machine"}
    config = configure("transfer")
    data, cost = begin(config, laboratory.context)
    learned = learned_generator(config, data, 0, laboratory.context, cost)
    noisy, _ = craft(data.train, learned.generator).apply(data.train)
    test = data.test.x.flatten(1).numpy() / np.float32(255)
    for kind, images in (("clean", data.train), ("perturbed", noisy)):
        machine = SVC(C=200, gamma=0.01).fit(
            images.x.flatten(1).numpy() / np.float32(255), images.y
        )
        right = float((machine.predict(test) == data.test.y.numpy()).mean())
        assert by_seed(record, lambda t, kind=kind: t[kind], **own) == {0: right}


def test_the_penalty_and_the_number_of_trees_are_options():
    config = configure("transfer")
    forest, machine = (transfer._classical(config, name, 5) for name in transfer.CLASSICAL)
    assert (forest.n_estimators, forest.random_state) == (300, 5)
    assert (machine.C, machine.kernel, machine.gamma) == (200.0, "rbf", 0.01)
    config = configure("transfer", trees=7, penalty=1.0)
    forest, machine = (transfer._classical(config, name, 5) for name in transfer.CLASSICAL)
    assert (forest.n_estimators, machine.C) == (7, 1.0)


@pytest.mark.parametrize("name", sorted(LAST_HIDDEN))
def test_the_last_hidden_layer_is_what_the_logits_are_made_of(name, make_images):
    images = make_images(8, channels=3, size=(32, 32))
    network = create(name, like=images, seed=1, width=4).eval()
    values = features(network, images.x, LAST_HIDDEN[name])
    with torch.no_grad():
        expected = network(images.x.float() / 255)
        found = network.body.linear(values)
    torch.testing.assert_close(found, expected)


def test_every_network_that_an_attack_is_measured_with_has_a_last_hidden_layer():
    """Figure 3 shows it."""
    for name in ATTACKS:
        for variant in ("paper", "released"):
            config = EXPERIMENTS[f"deep_confuse/{name}"].configure(profile="paper", variant=variant)
            assert config.model in LAST_HIDDEN


def test_switches_begin_from_maxima_and_lead_to_the_network_of_the_other_pages():
    """Two switches make of it the network that every other experiment has by default."""
    config = EXPERIMENTS["deep_confuse/switches"].configure(profile="paper")
    plain, completed = (
        with_options(config, SWITCHES[name]).model
        for name in ("paper", "average pooling, normalised logits")
    )
    assert plain == "two_layer_cnn_bn" != completed
    for name in ("mnist", "transfer", "epsilon", "share", "label_map", "defences"):
        assert EXPERIMENTS[f"deep_confuse/{name}"].configure(profile="paper").model == completed
