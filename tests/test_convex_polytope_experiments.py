"""The Convex Polytope experiments: the papers' settings, their trials, the same record again."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from convex_polytope_laboratory import (
    EIGHT,
    OWN,
    SIX,
    ConvexPolytopeLaboratory,
    configure,
    forbid_crafting,
    forbid_fine_tuning,
)
from laboratory import stand_in_for_cifar10

from poisonkit.experiments import EXPERIMENTS, run
from poisonkit.experiments.convex_polytope import end_to_end
from poisonkit.experiments.convex_polytope.data import load_data
from poisonkit.experiments.convex_polytope.setting import S1, S2
from poisonkit.experiments.networks import Context
from poisonkit.experiments.settings import as_json
from poisonkit.images import ImageSet
from poisonkit.models import Classifier, create


@pytest.fixture(scope="module")
def laboratory(caches) -> ConvexPolytopeLaboratory:
    return ConvexPolytopeLaboratory.below(caches)


@pytest.fixture
def nothing_made(no_training, monkeypatch) -> None:
    """Make every training and every crafting a failure of the test."""
    forbid_crafting(monkeypatch)
    forbid_fine_tuning(monkeypatch)


# Configurations -------------------------------------------------------------------------------

#: Section 4, and the released code where it is silent.
STATED = {
    "dataset": "cifar10",
    "poison_class": "ship",
    "target_class": "frog",
    "pretraining_per_class": 4800,
    "pool_from": 4800,
    "fine_tuning_per_class": 50,
    "poisons": 5,
    "targets": 50,
    "dropouts": [0.2, 0.25, 0.3],
    "width": 64,
}
STATED_PARTS = {
    "procedure": {
        "epsilon": 0.1,
        "iterations": 4000,
        "learning_rate": 0.04,
        "dropout": True,
        "target_mask": "once",
        "pooled": "polytope",
    },
    "pretraining": {
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "batch_size": 128,
        "epochs": 300,
        "milestones": [0.5, 0.75],
        "crop_padding": 4,
        "flip": True,
    },
    "fine_tuning": {
        "optimizer": "adam",
        "learning_rate": 0.1,
        "weight_decay": 0.0,
        "batch_size": 64,
        "epochs": 60,
        "milestones": [0.5, 0.75],  # epochs 30 and 45
    },
}
CHAPTER = [name for name in EXPERIMENTS if name.startswith("convex_polytope/")]


def test_every_experiment_of_the_chapter_on_images_is_looked_at_here():
    assert set(CHAPTER) - {"convex_polytope/proposition"} == {f"convex_polytope/{n}" for n in OWN}


@pytest.mark.parametrize("name", OWN)
def test_the_defaults_are_the_papers_values(name):
    settings = as_json(EXPERIMENTS[f"convex_polytope/{name}"].configure())
    expected = dict(STATED)
    if name == "overlap":
        # Two sets of training images without any in common: a half of the images each.
        expected["pretraining_per_class"] = 2400
    assert {key: settings[key] for key in expected} == expected
    for part, values in STATED_PARTS.items():
        assert {key: settings[part][key] for key in values} == values
    few = name in ("overlap", "end_to_end")
    assert set(settings["substitutes"]) == (SIX - {"mobilenet_v2", "googlenet"} if few else SIX)
    unseen = {"resnet18", "densenet121"}
    assert set(settings["victims"]) == (unseen if name == "randomised" else EIGHT)


def test_end_to_end_victims_learn_at_the_released_codes_rate_with_its_weight_decay():
    recipe = as_json(EXPERIMENTS["convex_polytope/end_to_end"].configure())["whole_network"]
    stated = {"optimizer": "adam", "learning_rate": 1e-4, "weight_decay": 5e-4, "epochs": 60}
    assert {key: recipe[key] for key in stated} == stated
    assert (recipe["crop_padding"], recipe["flip"]) == (0, False)


def test_the_released_variant_crafts_with_four_architectures_and_two_layers():
    released = {
        name: EXPERIMENTS[f"convex_polytope/{name}"].configure(variant="released")
        for name in ("transfer", "end_to_end")
    }
    for config in released.values():
        assert set(config.substitutes) == SIX - {"mobilenet_v2", "googlenet"}
        assert config.dropouts == (0.2, 0.25, 0.3)
        assert config.head == "pretrained"
        assert config.procedure == EXPERIMENTS["convex_polytope/transfer"].configure().procedure
    assert released["end_to_end"].attacks == ("last layer", "two layers, as released")
    assert released["end_to_end"].statistics == "running"


def test_the_two_sets_of_substitutes_are_the_papers():
    assert set(S1) == SIX
    assert set(S1) - set(S2) == {"mobilenet_v2", "googlenet"}


# Trials ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "profile", "variant"),
    [
        (name, profile, variant)
        for name in OWN
        for profile in ("quick", "small", "paper")
        for variant in EXPERIMENTS[f"convex_polytope/{name}"].variants
    ],
)
def test_every_target_is_attacked_once_in_every_way(name, profile, variant):
    experiment = EXPERIMENTS[f"convex_polytope/{name}"]
    config = experiment.configure(profile=profile, variant=variant, targets=7, targets_at_once=3)
    ways: dict[str, list[int]] = {}
    for unit in experiment.units(config):
        way = json.dumps({k: v for k, v in unit.items() if k != "first"}, sort_keys=True)
        covered = range(unit["first"], min(unit["first"] + 3, 7))
        ways.setdefault(way, []).extend(covered)
    assert ways
    for way, covered in ways.items():
        assert sorted(covered) == list(range(7)), way
    per_way = {
        "transfer": ("objectives",),
        "overlap": ("overlaps",),
        "end_to_end": ("attacks", "victims"),
        "randomised": ("objectives",),
        "switches": ("switches",),
    }
    if name in per_way:
        expected = math.prod(len(getattr(config, option)) for option in per_way[name])
        assert len(ways) == expected * (2 if name == "randomised" else 1)


@pytest.mark.parametrize("profile", ["quick", "small", "paper"])
def test_limits_vary_the_bound_and_the_number_of_poisons_one_at_a_time(profile):
    experiment = EXPERIMENTS["convex_polytope/limits"]
    config = experiment.configure(profile=profile)
    pairs = {(unit["epsilon"], unit["poisons"]) for unit in experiment.units(config)}
    own = (config.procedure.epsilon, config.poisons)
    assert own in pairs
    assert all(pair[0] == own[0] or pair[1] == own[1] for pair in pairs)
    assert {epsilon for epsilon, count in pairs if count == own[1]} >= set(config.epsilons)
    assert {count for epsilon, count in pairs if epsilon == own[0]} >= set(config.counts)


@pytest.fixture(scope="module")
def create_once() -> Callable[..., Classifier]:
    """As ``create``, for networks that nobody changes: building one takes longer than asking it."""
    built: dict[object, Classifier] = {}

    def remembered(name: str, *, like: ImageSet, **options: Any) -> Classifier:
        key = (name, like.channels, like.image_size, *sorted(options.items()))
        if key not in built:
            built[key] = create(name, like=like, **options)
        return built[key]

    return remembered


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        (name, variant)
        for name in OWN
        for variant in EXPERIMENTS[f"convex_polytope/{name}"].variants
    ],
)
@pytest.mark.parametrize("profile", ["quick", "small", "paper"])
def test_every_profile_and_variant_can_be_run_on_its_data(
    name, profile, variant, store, nothing_made, create_once, monkeypatch
):
    """Its classes, networks and layers exist; real CIFAR-10 is not needed to see that."""
    experiment = EXPERIMENTS[f"convex_polytope/{name}"]
    config = experiment.configure(profile=profile, variant=variant)
    if config.dataset == "cifar10":
        # A few channels have the layers of many; a few images the order of 5,000.
        few = {"pretraining_per_class": 1, "pool_from": 2, "width": 4}
        config = replace(config, **few)
        images = stand_in_for_cifar10(2 + 50 + 50, seed=0)
        monkeypatch.setattr(Context, "load", lambda *_, **__: images)
    monkeypatch.setattr("poisonkit.experiments.convex_polytope.data.create", create_once)
    units = experiment.units(config)
    # One of each kind of layer; and the last, which has the most poisons.
    kinds = {unit.get("attack"): unit for unit in units} | {"last": units[-1]}
    for unit in kinds.values():
        experiment.check(config, unit, Context(store=store, device="cpu"))
    if name == "limits":
        assert units[-1]["poisons"] == max(unit["poisons"] for unit in units)


# Records --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OWN)
def test_a_record_made_again_from_what_is_in_the_cache_is_the_same(
    name, laboratory, request, monkeypatch
):
    first = laboratory.record(name)
    arrays = first.arrays
    request.getfixturevalue("no_training")
    forbid_crafting(monkeypatch)
    # Whole networks are not fine-tuned again; linear layers are, at no cost to speak of.
    monkeypatch.setattr(end_to_end, "fit", None)
    trials = [
        path
        for path in laboratory.store.cache.glob("trials/*.json")
        if json.loads(path.read_text())["spec"]["experiment"] == first.experiment
    ]
    assert trials
    for gone in ([], trials):
        for path in (first.path, *gone):
            path.unlink()
        again = laboratory.record(name)
        assert again.digest == first.digest
        assert again.metrics == first.metrics
        assert again.arrays.keys() == arrays.keys()
        assert all(torch.equal(again.arrays[key], value) for key, value in arrays.items())
        data = load_data(configure(name), laboratory.context)
        assert again.provenance["data_checksum"] == data.pretraining.checksum


def test_a_record_made_anew_is_the_same(laboratory, store):
    options = {"objectives": ("polytope",), "victims": ("small_cnn",)}
    first = laboratory.record("transfer", **options)
    config = configure("transfer", **options)
    again = run(EXPERIMENTS["convex_polytope/transfer"], config, store=store, device="cpu")
    assert again.path != first.path
    assert again.digest == first.digest
