"""The Spectral Signatures experiments start from what the paper and its authors' code state."""

import math
from dataclasses import replace

import pytest
import torch

from poisonkit.errors import PoisonkitError, look_up
from poisonkit.experiments import EXPERIMENTS, networks
from poisonkit.experiments.networks import Context
from poisonkit.experiments.settings import as_json
from poisonkit.experiments.spectral_signatures import SpectralConfig
from poisonkit.experiments.spectral_signatures.steps import poisoned_data
from poisonkit.images import ImageSet

REMOVAL = EXPERIMENTS["spectral_signatures/removal"]
#: All that poison images and train networks on them: all but Lemma 3.1 in numbers.
SPECTRAL = {
    name.removeprefix("spectral_signatures/"): experiment
    for name, experiment in EXPERIMENTS.items()
    if issubclass(experiment.config, SpectralConfig)
}

#: The paper's section 4 and supplement, and the authors' configuration where it is silent.
STATED = {
    "dataset": "cifar10",
    "images_per_class": None,
    "merged": [],
    "shares": [0.05, 0.10],
    "placement": "added",
    "model": "preact_resnet32",
    "tap": "group3.3",  # the second to last of five residual units
    "pool": "flatten",
    "centred": True,
    "removal": "factor",
    "factor": 1.5,
    "labels": "all",
}
#: Where an experiment does not take all that the paper took, or more than that.
OWN = {
    "signature": {"shares": [0.10]},
    "switches": {"shares": [0.10]},
    "subpopulations": {"merged": ["cat", "dog"]},
    "limits": {"shares": [0.002, 0.005, 0.01, 0.02, 0.05, 0.10, 0.20]},
    "trace": {"shares": [0.10], "placement": "replaced"},
}
STATED_RECIPE = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "batch_size": 128,
    "learning_rate": 0.1,
    "schedule": "steps",
    "milestones": [0.375, 0.75],  # 30,000 and 60,000 of 80,000 steps
    "weight_decay": 2e-4,
    "crop_padding": 2,
    "flip": True,
}
#: The authors' configuration: its attack, and what it does otherwise than the paper's text.
RELEASED_ATTACK = {
    "pairs": [["truck", "deer"]],
    "shares": [0.1],
    "pattern": "pixel",
    "position": [11, 16],
    "colour": [101, 0, 25],
}
RELEASED = {
    "placement": "replaced",
    "standardise": "bytes",
    "tap": "group3.2",  # what enters the fourth of five units
    "centred": False,
    "removal": "percentile",
    "percentile": 85.0,
    "labels": "target",
}


# Configurations -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECTRAL)
def test_the_defaults_are_the_papers_values(name):
    settings = as_json(SPECTRAL[name].configure())
    expected = STATED | OWN.get(name, {})
    assert {name: settings[name] for name in expected} == expected
    assert {name: settings["recipe"][name] for name in STATED_RECIPE} == STATED_RECIPE
    steps = math.ceil(50_000 / 128) * settings["recipe"]["epochs"]
    assert abs(steps - 80_000) <= 391 / 2


def test_table_2_has_the_papers_eight_pairs():
    # Section 4.2 lists cat to dog, but Table 2 prints a second row for the target cat.
    pairs = REMOVAL.configure().pairs
    assert len(set(pairs)) == 8
    hand_picked = {("airplane", "bird"), ("automobile", "cat"), ("dog", "cat"), ("horse", "deer")}
    at_random = {("automobile", "dog"), ("ship", "frog"), ("truck", "bird"), ("cat", "horse")}
    assert set(pairs) == hand_picked | at_random


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("signature", RELEASED | RELEASED_ATTACK),
        ("removal", RELEASED | RELEASED_ATTACK),
        # On their own classes and triggers:
        ("subpopulations", RELEASED),
        ("architectures", RELEASED),
    ],
)
def test_the_released_variant_sets_what_the_authors_code_does_and_nothing_else(name, expected):
    paper, released = (as_json(SPECTRAL[name].configure(variant=v)) for v in ("paper", "released"))
    assert {name: released[name] for name in expected} == expected
    changed = {name for name in paper if paper[name] != released[name]}
    assert changed - {"variant"} <= set(expected)


@pytest.mark.parametrize("name", ["limits", "switches", "lemma"])
def test_what_the_authors_published_no_code_for_has_no_released_variant(name):
    experiment = EXPERIMENTS[f"spectral_signatures/{name}"]
    with pytest.raises(PoisonkitError, match=r"unknown variant 'released'; known: paper$"):
        experiment.configure(variant="released")


def stand_in_for_cifar10(images_per_class: int = 50) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    count = 10 * images_per_class
    x = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    return ImageSet(x=x, y=torch.arange(count) % 10, class_names=tuple(names), name="stand-in")


class Training(Exception):
    """Raised in place of the first training: all before it has been accepted."""


def no_sooner(*_, **__):
    raise Training


@pytest.mark.parametrize(
    ("name", "profile", "variant"),
    [
        (name, profile, variant)
        for name, experiment in SPECTRAL.items()
        for profile in experiment.profiles
        for variant in experiment.variants
    ],
)
def test_every_profile_and_variant_can_be_run_on_its_data(
    name, profile, variant, store, monkeypatch
):
    """Its classes, its trigger and its layers exist; real CIFAR-10 is not needed to see that."""
    experiment = SPECTRAL[name]
    config = replace(experiment.configure(profile=profile, variant=variant), images_per_class=None)
    if config.dataset == "cifar10":
        # The least share of the limits is 0.2 %, which must be an image.
        images = stand_in_for_cifar10(500 if name == "limits" else 50)
        monkeypatch.setattr(Context, "load", lambda *_, **__: images)
    monkeypatch.setattr(networks, "fit", no_sooner)
    context = Context(store=store, device="cpu")
    tried = []
    for unit in experiment.units(config)[:: config.trials]:
        data = poisoned_data(config, unit, context)
        assert int(data.mask.sum()) == data.count > 0
        # What decides on network, layers and filter: a switch, another network, a shape.
        kind = [unit.get(key) for key in ("switch", "network", "pattern")]
        if kind not in tried:
            tried.append(kind)
            with pytest.raises(Training):
                experiment.trial(config, unit, context)
    assert as_json(config)["variant"] == variant
    assert config.centred == (variant == "paper")


def test_figure_2s_pairs_have_its_triggers_and_every_other_pair_draws_its_own(store, monkeypatch):
    monkeypatch.setattr(Context, "load", lambda *_, **__: stand_in_for_cifar10())
    config = REMOVAL.configure()
    context = Context(store=store, device="cpu")
    drawn = {}
    for unit in REMOVAL.units(config):
        if unit["share"] == 0.10:
            trigger = poisoned_data(config, unit, context).trigger
            drawn.setdefault((unit["source"], unit["target"]), []).append(trigger)
    assert {t.position for t in drawn.pop(("airplane", "bird"))} == {(26, 26)}
    assert {t.position for t in drawn.pop(("automobile", "cat"))} == {(16, 16)}
    others = [trigger for triggers in drawn.values() for trigger in triggers]
    assert len(set(others)) == len(others) == 18


def test_options_beat_variants_and_none_leaves_them_as_they_are():
    config = REMOVAL.configure(variant="released", percentile=None, tap="group3.3", seed="7")
    assert (config.percentile, config.tap, config.seed) == (85.0, "group3.3", 7)
    small = REMOVAL.configure(profile="small", images_per_class=50)
    assert small.images_per_class == 50
    assert REMOVAL.configure(profile="small", images_per_class="none").images_per_class is None
    assert REMOVAL.configure(profile="quick", **{"recipe.epochs": 2}).recipe.epochs == 2


def test_a_name_is_looked_up_and_an_unknown_one_lists_the_known_ones():
    known = {"text": 1, "code": 2}
    assert look_up("network", "code", known) == 2
    with pytest.raises(PoisonkitError, match="unknown network 'lenet'; known: text, code"):
        look_up("network", "lenet", known)


def test_unknown_profiles_variants_and_parameters_list_the_known_ones():
    for options, known in (
        ({"profile": "huge"}, "known: quick, small, paper"),
        ({"variant": "art"}, "known: paper, released"),
        ({"epsilon": 3}, r"known: profile, .*recipe\.epochs.*labels"),
        ({"removal": "median"}, "one of factor, percentile, known"),
        ({"recipe.optimizer": "lion"}, "one of sgd, adam"),
    ):
        with pytest.raises(PoisonkitError, match=known):
            REMOVAL.configure(**options)
