"""The Deep Confuse experiments: what their records hold, and what they refuse."""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.svm import SVC
from torch import Tensor

from poisonkit.attacks.generated_noise import craft
from poisonkit.augmentation import add_gaussian_noise, attack_linf
from poisonkit.data import load
from poisonkit.errors import PoisonkitError
from poisonkit.evaluation import evaluate
from poisonkit.experiments import EXPERIMENTS, networks, run
from poisonkit.experiments.deep_confuse import steps
from poisonkit.experiments.deep_confuse.data import begin, load_data
from poisonkit.experiments.deep_confuse.steps import (
    accuracy_on_noise,
    float_noise,
    learned_generator,
    noise_images,
    some_of_each_class,
    train_on,
)
from poisonkit.experiments.deep_confuse.strength import random_labels
from poisonkit.experiments.deep_confuse.switches import SWITCHES
from poisonkit.experiments.networks import Context
from poisonkit.experiments.settings import as_json, with_options
from poisonkit.models import create
from poisonkit.models.generators import create_generator
from poisonkit.store import Record, Store
from poisonkit.training import fit

#: As quick as can be: 300 digits of 16 pixels, two trials of a generator with 4 channels.
TINY = {
    "procedure.trials": 2,
    "procedure.generator_rate": 1e-2,
    "select_every": 1,
    "select_epochs": 2,
    "recipe.epochs": 3,
    "recipe.learning_rate": 1e-2,
    "images_per_class": 30,
    "repeats": 2,
    "generator_width": 4,
    "width": 4,
}
OWN: dict[str, dict[str, object]] = {
    "mnist": {},
    "cifar10": {},
    "imagenet2": {"image_size": 16},
    "epsilon": {"epsilons": (0.0, 0.3)},
    "share": {"shares": (0.0, 0.5, 1.0)},
    "transfer": {"classifiers": ("original", "half", "random forest", "support vector machine")},
    "transfer_cifar10": {"classifiers": ("original", "half")},
    "transfer_imagenet2": {
        "image_size": 16,
        "classifiers": ("original", "support vector machine"),
    },
    "label_map": {"image_size": 16},
    "defences": {},
    "switches": {
        "image_size": 16,
        "switches": (
            "paper",
            "selected on the test images",
            "last trial, not selected",
            "trajectory stored (Algorithm 1)",
            "no batch normalisation",
        ),
    },
}
ATTACKS = ("mnist", "cifar10", "imagenet2")


def configure(name: str, **options: object) -> Any:
    given = {**TINY, **OWN[name], **options}
    return EXPERIMENTS[f"deep_confuse/{name}"].configure(profile="quick", **given)


@dataclass(frozen=True)
class Laboratory:
    """One store for all the tests here: what two experiments share is trained once."""

    store: Store

    @property
    def context(self) -> Context:
        return Context(store=self.store, device="cpu")

    def record(self, name: str, **options: object) -> Record:
        config = configure(name, **options)
        return run(EXPERIMENTS[f"deep_confuse/{name}"], config, store=self.store, device="cpu")

    def count(self, kind: str) -> int:
        return len(list(self.store.cache.glob(f"{kind}/*.json")))


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory) -> Laboratory:
    return Laboratory(Store(frozen=None, cache=tmp_path_factory.mktemp("cache")))


@pytest.fixture
def nothing_learned(no_training, monkeypatch) -> None:
    """Make every training of a network or of a generator a failure of the test."""

    def learn(*_: object, **__: object) -> None:
        raise AssertionError("a generator was learned")

    monkeypatch.setattr(steps, "fit", learn)
    monkeypatch.setattr(steps, "fit_generator", learn)


def by_seed(record: Record, value: Callable[[dict], float], **wanted: object) -> dict[int, float]:
    """A number of each of the trials that have the wanted settings, by their seeds."""
    return {
        trial["seed"]: value(trial)
        for trial in record.metrics["trials"]
        if all(trial[name] == setting for name, setting in wanted.items())
    }


def is_summary(found: dict, values: list[float]) -> bool:
    deviation = pytest.approx(statistics.stdev(values)) if len(values) > 1 else None
    return found["mean"] == pytest.approx(statistics.fmean(values)) and (
        found["deviation"] == deviation
    )


# Trials ---------------------------------------------------------------------------------------


def test_every_deep_confuse_experiment_is_looked_at_here():
    names = {name for name in EXPERIMENTS if name.startswith("deep_confuse/")}
    assert names == {f"deep_confuse/{name}" for name in OWN}


@pytest.mark.parametrize("name", OWN)
def test_there_is_a_trial_for_each_classifier_of_each_generator(name):
    config = configure(name, generators=3, repeats=2)
    units = list(EXPERIMENTS[f"deep_confuse/{name}"].units(config))
    assert len({tuple(sorted(unit.items(), key=str)) for unit in units}) == len(units)
    groups: dict[tuple[object, ...], list[dict]] = {}
    for unit in units:
        about = {key: value for key, value in unit.items() if key not in ("generator", "seed")}
        groups.setdefault(tuple(about.items()), []).append(unit)
    for about, group in groups.items():
        # Without a generator there is nothing to repeat for each.
        plain = dict(about).get("epsilon") == 0.0 or dict(about).get("kind") == "clean"
        # And without anything drawn, nothing to repeat for each classifier.
        fixed = dict(about).get("classifier") == "support vector machine"
        assert len(group) == (2 if plain else 3 if fixed else 6), about
        assert len({unit["seed"] for unit in group}) == len(group)
        assert len({unit["generator"] for unit in group}) == (1 if plain else 3)


# Records --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attacks_accuracies_are_means_over_its_trials(name, laboratory):
    record = laboratory.record(name)
    trials = record.metrics["trials"]
    assert [(trial["generator"], trial["seed"]) for trial in trials] == [(0, 0), (0, 1)]
    found = record.metrics["accuracy"]
    assert len(found) == 11
    for path, summary in found.items():
        kind, what = path.split(".")
        assert is_summary(summary, [trial[kind][what] for trial in trials]), path
    for trial in trials:
        for kind in ("clean", "perturbed"):
            assert len(trial[kind]["train"]) == len(trial[kind]["test"]) == 3
            assert trial[kind]["test"][-1] == trial[kind]["accuracy"]
        assert 0 < trial["largest_change"] <= 0.3 * 255
        assert len(trial["learning"]["loss"]) == 2
        assert [check["trial"] for check in trial["learning"]["checks"]] == [1, 2]
        assert trial["clean"]["accuracy"] != trial["perturbed"]["accuracy"]


@pytest.mark.parametrize(
    ("name", "keys"), [("epsilon", ("epsilon",)), ("share", ("kind", "epsilon", "share"))]
)
def test_a_row_of_a_strength_is_the_mean_of_its_own_trials(name, keys, laboratory):
    metrics = laboratory.record(name).metrics
    for row in metrics["rows"]:
        own = [t for t in metrics["trials"] if all(t[key] == row[key] for key in keys)]
        assert row["runs"] == len(own) == 2
        assert is_summary(row, [trial["accuracy"] for trial in own])
    seen = {tuple(trial[key] for key in keys) for trial in metrics["trials"]}
    assert len(metrics["rows"]) == len(seen)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("transfer", "classifier"),
        ("transfer_cifar10", "classifier"),
        ("transfer_imagenet2", "classifier"),
        ("defences", "defence"),
    ],
)
def test_a_row_of_a_victim_is_the_mean_of_its_own_trials(name, key, laboratory):
    metrics = laboratory.record(name).metrics
    config = configure(name)
    assert [row[key] for row in metrics["rows"]] == list(getattr(config, f"{key}s"))
    for row in metrics["rows"]:
        own = [trial for trial in metrics["trials"] if trial[key] == row[key]]
        once = row[key] == "support vector machine"  # nothing in it is drawn
        assert row["runs"] == len(own) == (1 if once else 2)
        for kind in ("clean", "perturbed"):
            summary = {"mean": row[kind], "deviation": row[f"{kind}_deviation"]}
            assert is_summary(summary, [trial[kind] for trial in own])


def test_a_row_of_a_switch_is_the_mean_of_its_own_trials(laboratory):
    metrics = laboratory.record("switches").metrics
    assert [row["switch"] for row in metrics["rows"]] == list(OWN["switches"]["switches"])
    for row in metrics["rows"]:
        own = [trial for trial in metrics["trials"] if trial["switch"] == row["switch"]]
        assert row["runs"] == len(own) == 2
        for kind in ("clean", "perturbed"):
            for how in ("accuracy", "batch_statistics"):
                assert is_summary(row[f"{kind}.{how}"], [trial[kind][how] for trial in own])


def test_a_label_map_records_rates_are_read_off_its_confusion_matrices(laboratory):
    record, config = laboratory.record("label_map"), configure("label_map")
    test = load("digits", split="test")
    for trial in record.metrics["trials"]:
        counts = np.array(trial["confusion"])
        assert counts.sum(1).tolist() == test.y.bincount().tolist()
        assert trial["accuracy"] == pytest.approx(counts.trace() / len(test))
        hits = sum(counts[label, wanted] for label, wanted in enumerate(config.label_map))
        assert trial["hit_rate"] == pytest.approx(hits / len(test))
    assert [row["kind"] for row in record.metrics["rows"]] == [
        "clean",
        "any wrong label",
        "label map",
    ]
    for row in record.metrics["rows"]:
        own = [t for t in record.metrics["trials"] if t["kind"] == row["kind"]]
        for name in ("accuracy", "hit_rate"):
            summary = {"mean": row[name], "deviation": row[f"{name}_deviation"]}
            assert is_summary(summary, [trial[name] for trial in own])
        shares = np.mean([np.array(t["confusion"]) for t in own], axis=0)
        assert np.allclose(row["confusion"], shares / shares.sum(1, keepdims=True))
        assert np.allclose(np.sum(row["confusion"], axis=1), 1)


def test_only_the_label_specific_generator_depends_on_the_label_map(laboratory):
    laboratory.record("label_map")
    generators, networks = laboratory.count("generators"), laboratory.count("networks")
    laboratory.record("label_map", label_map=(1, 0, 3, 2, 5, 4, 7, 6, 9, 8), repeats=1)
    assert laboratory.count("generators") == generators + 1
    assert laboratory.count("networks") == networks + 1


@pytest.mark.parametrize("name", OWN)
def test_a_record_made_again_from_what_is_in_the_cache_is_the_same(name, laboratory, request):
    first = laboratory.record(name)
    request.getfixturevalue("nothing_learned")
    arrays = first.arrays
    trials = [
        path
        for path in laboratory.store.cache.glob("trials/*.json")
        if json.loads(path.read_text())["spec"]["experiment"] == first.experiment
    ]
    # Of the finished trials, and then of the networks and generators alone.
    for gone in ([], trials):
        for path in (first.path, *gone):
            path.unlink()
        again = laboratory.record(name)
        assert again.digest == first.digest
        assert again.metrics == first.metrics
        assert all(torch.equal(again.arrays[key], value) for key, value in arrays.items())
        assert again.provenance["data_checksum"] == load("digits").first_per_class(30).checksum


def test_a_record_made_anew_is_the_same(laboratory, store):
    first = laboratory.record("mnist")
    config = configure("mnist")
    again = run(EXPERIMENTS["deep_confuse/mnist"], config, store=store, device="cpu")
    assert again.path != first.path
    assert again.digest == first.digest


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
    switches = laboratory.record("switches")
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
    switches = laboratory.record("switches")
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
def test_off_the_papers_scale_the_released_code_changes_how_a_generator_is_selected_only(
    name, profile, laboratory
):
    experiment = EXPERIMENTS[f"deep_confuse/{name}"]
    ours, theirs = (
        as_json(experiment.configure(profile=profile, variant=variant))
        for variant in ("paper", "released")
    )
    changed = {key for key in ours if ours[key] != theirs[key]}
    assert changed <= {"variant", "selection"}
    if profile == "quick":
        config = experiment.configure(profile=profile, variant="released", dataset="digits")
        experiment.check(config, next(iter(experiment.units(config))), laboratory.context)


def test_the_released_switch_trains_as_the_code_does():
    """Adam at a constant rate of 0.01 for two epochs, on pixels as they are."""
    config = with_options(configure("switches"), SWITCHES["released"])
    recipe = config.recipe
    assert (recipe.optimizer, recipe.learning_rate, recipe.epochs) == ("adam", 0.01, 2)
    assert (recipe.schedule, recipe.warmup, config.standardise) == ("constant", 0.0, "none")


def test_the_released_generator_and_all_of_the_released_code_can_be_switched_on(laboratory):
    chosen = ("released network", "released generator", "released")
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


def test_the_victims_measures_are_tried_on_one_generator_and_the_images_it_made(laboratory):
    generators = laboratory.count("generators")
    assert generators
    laboratory.record("defences")
    laboratory.record("transfer")
    assert laboratory.count("generators") == generators


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


# Random labels --------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("share", [0.1, 0.6, 1.0])
def test_random_labels_change_as_many_labels_as_chance_has_it(share, classes, make_images):
    images = make_images(6000, classes=classes, channels=1, size=(2, 2))
    changed = random_labels(images, share, seed=3)
    assert torch.equal(changed.x, images.x)
    drawn = round(share * 6000)
    other = 1 - 1 / classes  # a drawn label is the image's own once in as many as there are
    moved = changed.y != images.y
    assert int(moved.sum()) == pytest.approx(
        drawn * other, abs=4 * (drawn * other * (1 - other)) ** 0.5
    )
    # The new labels are drawn evenly.
    counts = changed.y[moved].bincount(minlength=classes)
    expected = int(moved.sum()) / classes
    assert (counts - expected).abs().max() < 5 * expected**0.5


def test_random_labels_of_no_images_change_nothing_and_repeat_by_seed(make_images):
    images = make_images(200, classes=5, channels=1, size=(2, 2))
    assert torch.equal(random_labels(images, 0.0, seed=1).y, images.y)
    before = images.y.clone()
    first, second, other = (random_labels(images, 0.5, seed=seed).y for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(images.y, before)


# Noise ----------------------------------------------------------------------------------------


def loud(images, epsilon: float, scale: float = 1e5):
    """A generator whose noise reaches both ends of its range."""
    generator = create_generator("autoencoder", like=images, epsilon=epsilon, seed=1, width=2)
    for module in generator.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        generator(images.x.float() / 255)  # as if it had been learned on these images
        for parameter in generator.body.decoder[-1].parameters():
            parameter.mul_(scale)
    return generator.eval()


@pytest.mark.parametrize("epsilon", [0.032, 0.3, 8 / 255])
@pytest.mark.parametrize("scale", [1.0, 1e5])
def test_unrounded_noise_is_the_rounded_one_up_to_the_rounding(make_images, epsilon, scale):
    images = make_images(20, size=(16, 16))
    generator = loud(images, epsilon, scale)
    noisy, _ = craft(images, generator).apply(images)
    transform = float_noise(generator, checksum=noisy.checksum)
    clean = images.x.float() / 255
    unrounded = transform.apply(torch.nn.Identity(), clean, images.y)
    assert torch.equal(unrounded, (clean + generator(clean).detach()).clamp(0, 1))
    apart = (unrounded * 255 - noisy.x.float()).abs()
    assert 0 < apart.max() < 1
    # More than half a level only where rounding would have left the ball.
    inside = (noisy.x.int() - images.x.int()).abs() < int(255 * epsilon + 1e-9)
    assert apart[inside].max() <= 0.5 + 1e-3
    assert not unrounded.requires_grad


def test_rounding_is_all_that_unrounded_noise_changes_of_a_training(laboratory):
    """The network on unrounded noise standardises by what it sees, as the rounded one's does."""
    record = laboratory.record("mnist")
    config, context = configure("mnist"), laboratory.context
    data, cost = begin(config, context)
    learned = learned_generator(config, data, 0, context, cost)
    noisy, _ = craft(data.train, learned.generator).apply(data.train)
    networks = laboratory.count("networks")
    transform = float_noise(learned.generator, checksum=noisy.checksum)
    network, _ = train_on(config, data.train, 0, context, cost, "", transform=transform, like=noisy)
    assert laboratory.count("networks") == networks, "the record's own network is in the cache"
    seen = noisy.x.double() / 255
    assert float(network.mean) == pytest.approx(float(seen.mean()), rel=1e-4)
    assert float(network.deviation) == pytest.approx(float(seen.std()), rel=1e-3)
    found = record.metrics["trials"][0]["unrounded"]["accuracy"]
    assert found == evaluate(network, data.test)


def test_unrounded_noise_of_another_generator_is_another_training(make_images):
    images = make_images(4, size=(16, 16))
    generator = loud(images, 0.3)
    first, second = (float_noise(generator, checksum=text).about for text in ("abc", "def"))
    assert first != second


def test_a_network_is_shown_the_noise_as_it_is_and_in_eval_mode(make_images):
    """Computed once more, image by image, with values below zero and nothing scaled."""
    images = make_images(24, size=(16, 16))
    generator = loud(images, 0.3, scale=1.0)
    network = create("two_layer_cnn_bn", like=images, seed=3)
    recipe = EXPERIMENTS["deep_confuse/mnist"].configure(profile="quick").recipe
    fit(network, images, recipe, seed=0)
    right = 0
    with torch.no_grad():
        network.eval()
        for x, y in zip(images.x, images.y, strict=True):
            noise = generator(x[None].float() / 255)
            assert noise.min() < 0
            right += int(network(noise).argmax() == y)
    network.train()
    assert 0 < right < 24
    assert accuracy_on_noise(network, generator, images) == right / 24
    assert network.training


def test_noise_alone_is_black_at_minus_epsilon_and_white_at_epsilon(make_images):
    images = make_images(20, size=(16, 16))
    generator = loud(images, 0.2)
    shown = noise_images(generator, images)
    assert shown.x.dtype == torch.uint8
    assert torch.equal(shown.y, images.y)
    with torch.no_grad():
        noise = generator(images.x.float() / 255)
    assert (shown.x.min(), shown.x.max()) == (0, 255)
    assert (noise[shown.x == 0] < -0.199).all()
    assert (noise[shown.x == 255] > 0.199).all()
    quiet = loud(images, 0.2, scale=1.0)
    with torch.no_grad():
        noise = quiet(images.x.float() / 255)
    back = (noise_images(quiet, images).x.double() / 127.5 - 1) * 0.2
    assert (back - noise).abs().max() <= 0.2 / 255 + 1e-6  # half a level
    silent = loud(images, 0.2, scale=0.0)
    assert set(noise_images(silent, images).x.unique().tolist()) <= {127, 128}


# Pictures and components ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTACKS)
def test_the_pictures_are_one_image_of_each_class_its_noise_and_their_sum(name, laboratory):
    arrays = laboratory.record(name).arrays
    train = load("digits").first_per_class(30)
    assert arrays["0.images.labels"].tolist() == list(range(10))
    clean = arrays["0.images.clean"]
    for label, image in enumerate(clean):
        assert torch.equal(image, train.x[train.indices_of(label)[0]])
    perturbed = arrays["0.images.perturbed"].double()
    noise = (arrays["0.images.noise"].double() / 127.5 - 1) * 0.3 * 255
    # Half a level by each of three roundings: to whole values, of the noise, at the bound.
    expected = (clean + noise).clamp(0, 255)
    assert (perturbed - expected).abs().max() <= 0.5 + 0.3 + 0.5
    assert (perturbed - clean).abs().max() > 2
    assert not any(key.startswith("1.") for key in arrays)


def last_hidden(network, x: Tensor) -> np.ndarray:
    """The 500 units before the logits, a layer at a time."""
    body = network.body.eval()
    with torch.no_grad():
        maps = body.convolutions((x.float() / 255 - network.mean) / network.deviation)
        return body.hidden(maps.flatten(1)).double().numpy()


def test_components_are_projections_onto_the_training_features_singular_vectors(laboratory):
    arrays = laboratory.record("mnist").arrays
    config, context = configure("mnist"), laboratory.context
    data, cost = begin(config, context)
    learned = learned_generator(config, data, 0, context, cost)
    noisy, _ = craft(data.train, learned.generator).apply(data.train)
    networks = laboratory.count("networks")
    network, _ = train_on(config, noisy, 0, context, cost, "", test=data.test)
    assert laboratory.count("networks") == networks, "the record's own network is in the cache"
    rows = {}
    for kind, images in (("train", noisy), ("test", data.test)):
        order = sorted(range(len(images)), key=lambda row, images=images: int(images.y[row]))
        rows[kind] = (last_hidden(network, images.x[order]), images.y[order])
        assert torch.equal(arrays[f"0.components.{kind}_labels"], rows[kind][1])
    centre = rows["train"][0].mean(0)
    _, values, vectors = np.linalg.svd(rows["train"][0] - centre, full_matrices=False)
    for kind, (found, _) in rows.items():
        expected = (found - centre) @ vectors[:2].T
        shown = arrays[f"0.components.{kind}"].double().numpy()
        signs = np.sign((shown * expected).sum(0))
        assert np.allclose(shown, signs * expected, atol=1e-4 * values[0])
    # The spread along them is the singular values', the first the larger.
    spread = np.linalg.norm(arrays["0.components.train"].double().numpy(), axis=0)
    assert spread == pytest.approx(values[:2], rel=1e-4)


def test_some_of_each_class_are_its_first_images_or_all_there_are(make_images):
    images = make_images(40, classes=3)
    counts = images.y.bincount().tolist()
    rows = some_of_each_class(images, max(counts) - 1)
    expected = [
        row
        for label in range(3)
        for row in [k for k in range(40) if images.y[k] == label][: max(counts) - 1]
    ]
    assert rows.tolist() == expected
    assert len(rows) < 40


# Splits ---------------------------------------------------------------------------------------


@pytest.fixture
def distinct(make_images, monkeypatch):
    """A data set in which no two images are the same, in the place of digits."""
    images = make_images(400, classes=4, channels=1, size=(16, 16))
    assert len({image.numpy().tobytes() for image in images.x}) == 400
    test = make_images(80, classes=4, channels=1, size=(16, 16), seed=1)
    sets = {"train": images, "test": test}
    monkeypatch.setattr(Context, "load", lambda self, name, split, **_: sets[split])
    return images


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("share", [0.1, 0.4])
def test_held_out_images_are_in_nothing_that_the_generator_learns_from(
    share, seed, distinct, store
):
    config = configure(
        "mnist", validation=share, seed=seed, images_per_class=60, learning_images_per_class=20
    )
    data = load_data(config, Context(store=store, device="cpu"))

    def names(images):
        return [image.numpy().tobytes() for image in images.x]

    train, part, held_out, learning = (
        names(getattr(data, name)) for name in ("train", "part", "held_out", "learning")
    )
    assert train == names(distinct.first_per_class(60))
    assert not set(held_out) & set(part)
    assert not set(held_out) & set(learning)
    assert sorted(held_out + part) == sorted(train)
    assert set(learning) <= set(part)
    assert data.held_out.y.bincount().tolist() == [round(share * 60)] * 4
    assert data.learning.y.bincount().tolist() == [20] * 4
    for label in range(4):
        own = [k for k in range(len(part)) if data.part.y[k] == label]
        assert set(names(data.learning)) >= {part[k] for k in own[:20]}
    labels = dict(zip(train, data.train.y.tolist(), strict=True))
    for images in (data.part, data.held_out, data.learning):
        assert [labels[image] for image in names(images)] == images.y.tolist()


def test_the_configurations_seed_decides_who_is_held_out(distinct, store):
    context = Context(store=store, device="cpu")
    first, again, other = (
        load_data(configure("mnist", seed=seed, images_per_class=60), context).held_out.checksum
        for seed in (0, 0, 1)
    )
    assert first == again != other


# Selection ------------------------------------------------------------------------------------


def select(laboratory: Laboratory, selection: str, **options: object):
    config = configure("mnist", selection=selection, **options)
    data, cost = begin(config, laboratory.context)
    return config, data, learned_generator(config, data, 0, laboratory.context, cost)


def test_three_ways_of_selection_share_one_learning_and_take_another_generator_of_it(
    store, monkeypatch
):
    """Scores as if the first trial were best by held-out images, the second by the test's."""
    courses = {"validation": [0.3, 0.5, 0.4], "test": [0.6, 0.2, 0.4]}
    scores = iter(pair[number] for number in range(3) for pair in courses.values())
    with monkeypatch.context() as patched:
        patched.setattr(steps, "_score", lambda *_: next(scores))
        patched.setattr(steps, "fit", lambda *_, **__: None)
        found = {
            name: select(Laboratory(store), name, **{"procedure.trials": 3})[2]
            for name in ("validation", "test", "last")
        }
    assert len(list(store.cache.glob("generators/*.json"))) == 1
    for learned in found.values():
        assert learned.course["checks"] == [
            {"trial": number + 1, **{name: course[number] for name, course in courses.items()}}
            for number in range(3)
        ]
    for trials, name in ((1, "validation"), (2, "test"), (3, "last")):
        # The first trials of a longer learning are a shorter one.
        _, _, shorter = select(Laboratory(store), "last", **{"procedure.trials": trials})
        expected = shorter.generator.state_dict()
        state = found[name].generator.state_dict()
        assert all(torch.equal(state[key], value) for key, value in expected.items()), name
    assert len(list(store.cache.glob("generators/*.json"))) == 3


@pytest.mark.parametrize("label_map", [None, (1, 2, 3, 4, 5, 6, 7, 8, 9, 0)])
def test_the_selected_generator_is_one_with_the_lowest_score_of_the_course(label_map, laboratory):
    """Training on the images of ``part`` with its noise, once more, gives the score again."""
    for selection in ("validation", "test", "last"):
        options = {"procedure.label_map": label_map} if label_map else {}
        config, data, learned = select(laboratory, selection, **options)
        checks = learned.course["checks"]
        scores = [check["validation" if selection == "last" else selection] for check in checks]
        noisy, _ = craft(data.part, learned.generator).apply(data.part)
        network = create(config.model, like=data.part, seed=0, width=4)
        fit(network, noisy, replace(config.recipe, epochs=2), seed=0)
        images = data.test if selection == "test" else data.held_out
        with torch.no_grad():
            found = network(images.x / 255).argmax(1)
        if label_map:
            score = float((found != torch.tensor(label_map)[images.y]).double().mean())
        else:
            score = float((found == images.y).double().mean())
        assert score == pytest.approx(scores[-1] if selection == "last" else min(scores))


def test_whatever_changes_the_learning_is_another_generator_and_nothing_else_is(store, monkeypatch):
    monkeypatch.setattr(steps, "fit", lambda *_, **__: None)
    settings: tuple[dict[str, object], ...] = (
        {},
        {"procedure.surrogate_rate": 0.05},
        {"epsilon": 0.2},
        {"validation": 0.2},
        {"surrogate": "two_layer_cnn"},
        {"generator_width": 2},
        {"select_epochs": 3},
        {"recipe.learning_rate": 2e-2},  # what candidates are judged by, too
        {"images_per_class": 29},
        {"standardise": "none"},
        {"select_every": 2},
    )
    for number, options in enumerate(settings, start=1):
        select(Laboratory(store), "last", **{"procedure.trials": 1, **options})
        assert len(list(store.cache.glob("generators/*.json"))) == number, options
    for options in ({"repeats": 5}, {"recipe.epochs": 9}, {"selection": "test"}):
        select(Laboratory(store), **{"selection": "last", "procedure.trials": 1, **options})
        assert len(list(store.cache.glob("generators/*.json"))) == len(settings), options


# Requests that cannot be met ------------------------------------------------------------------

#: Each has a way of its own to go through its trials before the first training.
KINDS = ("mnist", "epsilon", "share", "transfer", "label_map", "defences", "switches")
REFUSED: list[tuple[tuple[str, ...], dict[str, object], str]] = [
    (("mnist", "transfer"), {"epsilon": 0.0}, r"epsilon must lie in \(0, 1\].*not 0\.0"),
    (("mnist", "label_map"), {"epsilon": -0.1}, r"epsilon must lie in \(0, 1\].*not -0\.1"),
    (("defences", "switches"), {"epsilon": 1.5}, r"epsilon must lie in \(0, 1\].*not 1\.5"),
    (("epsilon", "share"), {"epsilons": (0.3, -0.1)}, r"must lie in \(0, 1\].*not -0\.1"),
    (("epsilon", "share"), {"epsilons": (0.3, 1.5)}, r"must lie in \(0, 1\].*not 1\.5"),
    (("share",), {"epsilons": (0.0,)}, r"epsilon.* must lie in \(0, 1\]"),
    (("epsilon", "share"), {"epsilons": (0.3, 0.3)}, "epsilons names something twice"),
    (("label_map",), {"label_map": (1, 0)}, "needs 10 entries, not 2"),
    (("label_map",), {"label_map": (*range(1, 10), 10)}, "class 9 to 10; .* are 0 to 9"),
    (("label_map",), {"label_map": (-1, *range(9))}, "class 0 to -1; .* are 0 to 9"),
    (("label_map",), {"label_map": tuple(range(10))}, "every class to itself"),
    (("mnist",), {"procedure.label_map": (1, 0)}, "needs 10 entries, not 2"),
    (
        ("mnist", "epsilon"),
        {"generator": "released_mnist", "image_size": 20},
        r"'released_mnist' .*\(1, 16, 16\).*\(1, 20, 20\)",
    ),
    (
        ("switches",),
        {"switches": ("paper", "released generator"), "image_size": 20},
        r"'released_mnist' .*\(1, 16, 16\).*\(1, 20, 20\)",
    ),
    (("mnist", "cifar10"), {"model": "lenet"}, "unknown model 'lenet'; known: .*two_layer_cnn"),
    (("mnist", "defences"), {"surrogate": "lenet"}, "unknown model 'lenet'; known: .*two_layer"),
    (("mnist", "share"), {"generator": "gan"}, "unknown generator 'gan'; known: autoencoder"),
    (("transfer",), {"classifiers": ("original", "svm")}, "'svm'; known: .*support vector"),
    (("switches",), {"switches": ("paper", "amsgrad")}, "'amsgrad'; known: paper, .*released"),
    (("defences",), {"defences": ("none", "dropout")}, "'dropout'; known: none, crops"),
    (("transfer",), {"classifiers": ("half", "half")}, "classifiers names something twice"),
    (("switches",), {"switches": ("paper", "paper")}, "switches names something twice"),
    (("defences",), {"defences": ("none", "none")}, "defences names something twice"),
    (("share",), {"shares": (0.5, 0.5)}, "shares names something twice"),
    (KINDS, {"validation": 0.0}, r"share between 0 and 1, not 0\.0"),
    (("mnist",), {"validation": 1.0}, r"share between 0 and 1, not 1\.0"),
    # Of 30 images of a class none would be held out, or none be left.
    (("mnist",), {"validation": 0.01}, "validation|held out"),
    (("mnist",), {"validation": 0.99}, "validation|held out"),
    (("share",), {"shares": (0.5, 1.2)}, r"share must lie in \[0, 1\], not 1\.2"),
    (("share",), {"shares": (0.5, -0.2)}, r"share must lie in \[0, 1\], not -0\.2"),
    (("defences",), {"attack_steps": 0}, "attack_steps must be at least 1, not 0"),
    (("defences",), {"share": 1.2}, r"share must lie in \(0, 1\], not 1\.2"),
    (("defences",), {"share": 0.0}, r"share must lie in \(0, 1\], not 0\.0"),
    (KINDS, {"repeats": 0}, "no trials|at least 1"),
    (("mnist", "label_map"), {"generators": 0}, "no trials|at least 1"),
    (KINDS, {"select_every": 0}, "select_every must be at least 1, not 0"),
    (("mnist", "transfer_cifar10"), {"images_per_class": 5000}, "not the 0 .* 5000 asked for"),
    (("mnist",), {"learning_images_per_class": 29}, "not the 0 .* 29 asked for"),
    (("mnist",), {"width": 0}, "at least 1 channel wide, not 0"),
    (("mnist",), {"generator_width": 0}, "at least 1 channel wide, not 0"),
    (("mnist", "defences"), {"recipe.crop_padding": 16}, "crop_padding of 16 pixels is too much"),
    (("mnist",), {"image_size": 2}, "two_layer_cnn_bn cannot take images of"),
    (("mnist",), {"procedure.trials": 0}, "trials must be at least 1, not 0"),
    (("mnist",), {"dataset": "digit"}, "known: digits, mnist"),
    (("defences",), {"model": "resnet8"}, "known last hidden layer 'resnet8'; known: two_layer"),
    (("mnist",), {"width": 0}, "at least 1 channel wide, not 0"),
]


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        pytest.param(name, options, told, id=f"{name}-{options}")
        for names, options, told in REFUSED
        for name in names
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_trained(
    name, options, told, store, nothing_learned, untouched
):
    def attempt():
        config = configure(name, **options)
        run(EXPERIMENTS[f"deep_confuse/{name}"], config, store=store, device="cpu")

    with pytest.raises(PoisonkitError, match=f"(?s){told}"):
        attempt()
    assert not list(store.cache.rglob("networks"))
    assert not list(store.cache.rglob("generators"))
    assert not list(store.cache.rglob("*.json"))


@pytest.mark.parametrize("selection", ["best", "train"])
def test_an_unknown_selection_lists_the_known_ones(selection):
    with pytest.raises(PoisonkitError, match="one of validation, test, last"):
        configure("mnist", selection=selection)
