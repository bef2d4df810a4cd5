"""The MetaPoison experiments: what each is run with, and the same record once more."""

import json
from dataclasses import replace

import pytest
import torch
from laboratory import stand_in_for_cifar10
from metapoison_laboratory import OWN, MetaPoisonLaboratory, configure, forbid_making

from poisonkit.experiments import EXPERIMENTS, run
from poisonkit.experiments.metapoison import switches, variations
from poisonkit.experiments.metapoison.pairs import begin
from poisonkit.experiments.networks import Context
from poisonkit.experiments.settings import as_json, with_options
from poisonkit.store import Json


@pytest.fixture(scope="module")
def laboratory(caches) -> MetaPoisonLaboratory:
    return MetaPoisonLaboratory.below(caches)


@pytest.fixture
def nothing_made(no_training, monkeypatch) -> None:
    """Make every training and every crafting a failure of the test."""
    forbid_making(monkeypatch)


CHAPTER = [name for name in EXPERIMENTS if name.startswith("metapoison/")]


def test_every_experiment_of_the_chapter_is_looked_at_here():
    assert [f"metapoison/{name}" for name in OWN] == CHAPTER


# Profiles and variants ------------------------------------------------------------------------


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("profile", ["quick", "small", "paper"])
def test_every_profile_and_variant_can_be_run_on_its_data(
    name, variant, profile, store, nothing_made, monkeypatch
):
    """Its classes, networks and colours exist; real CIFAR-10 is not needed to see that."""
    experiment = EXPERIMENTS[f"metapoison/{name}"]
    config = experiment.configure(profile=profile, variant=variant)
    if config.dataset == "cifar10":
        few = {"images_per_class": 3, "poisons": 3, "budgets": (1, 3), "tested_per_class": 2}
        config = replace(config, **{key: few[key] for key in few if hasattr(config, key)})
        sets = {"train": stand_in_for_cifar10(3, seed=3), "test": stand_in_for_cifar10(4, seed=4)}
        monkeypatch.setattr(Context, "load", lambda self, name, split, **_: sets[split])
    units = experiment.units(config)
    assert len({json.dumps(unit, sort_keys=True) for unit in units}) == len(units) > 0
    kinds: dict[object, Json] = {}
    for unit in units:
        kind = {key: value for key, value in unit.items() if key not in ("pair", "victim", "step")}
        kinds.setdefault(None if "target" in kind else str(kind), unit)
    for unit in kinds.values():
        experiment.check(config, unit, Context(store=store, device="cpu"))
        if name in ("switches", "scenarios", "training", "budget"):
            colour = config.procedure.colour or "colours" in unit.get("switch", "")
            assert config.dataset == "cifar10" or not colour


# Changes and switches -------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["quick", "small", "paper"])
def test_each_change_of_the_training_is_what_its_name_says(profile):
    experiment = EXPERIMENTS["metapoison/training"]
    changes = ("batches and rate doubled", "no momentum", "momentum", "regularised")
    config = experiment.configure(profile=profile, changes=("as expected", *changes))
    plain = as_json(config)
    found = {}
    for unit in experiment.units(config):
        own = as_json(variations._trained_otherwise(config, unit))
        changed = {key: value for key, value in own.items() if value != plain[key]}
        if "recipe" in changed:
            changed["recipe"] = {
                key: value for key, value in own["recipe"].items() if value != plain["recipe"][key]
            }
        found[unit["change"]] = changed
    assert found.pop("as expected") == found.pop("momentum") == {}
    doubled = {"batch_size": 2 * plain["recipe"]["batch_size"], "learning_rate": 0.2}
    assert found.pop("batches and rate doubled") == {"recipe": doubled}
    assert found.pop("no momentum") == {"recipe": {"momentum": 0.0}}
    regular = {"weight_decay": 4e-4, "crop_padding": 4, "flip": True}
    if profile == "quick":
        regular = {"weight_decay": 4e-4, "crop_padding": 1}
    assert found.pop("regularised") == {"recipe": regular}
    assert set(found) == set(config.networks)
    for name, changed in found.items():
        assert changed["model"] == name != config.model
        assert changed.get("surrogate") in (None, config.model)
        assert set(changed) <= {"model", "surrogate", "width"}


def test_each_switch_changes_the_crafting_as_it_says_and_nothing_else():
    experiment = EXPERIMENTS["metapoison/switches"]
    config = experiment.configure(switches=tuple(switches.SWITCHES))
    plain = as_json(config)
    found = {}
    for unit in experiment.units(config):
        own = as_json(switches._switched(config, unit))
        found[unit["switch"]] = {
            key: value
            for key, value in own["procedure"].items()
            if key not in plain["procedure"] or value != plain["procedure"][key]
        }
        if unit["switch"] == "released":
            recipe = {"momentum": 0.0, "warmup": 0.025, "milestones": [0.5, 0.75]}
            assert {key: own["recipe"][key] for key in recipe} == recipe
            own["recipe"] |= {key: plain["recipe"][key] for key in recipe}
        if unit["switch"] in ("released", "poisons not rounded"):
            assert own.pop("rounded") is False
        assert {**own, "procedure": plain["procedure"]} == plain
    assert found == {
        "paper": {},
        "margin loss": {"objective": "margin"},
        "loss of all unrolled steps": {"losses": "all"},
        "smaller change, and of colours": {
            "epsilon": 8 / 255,
            "colour": 0.04,
        },
        "first batch's poisons in all steps": {"later": "first"},
        "range of pixels may be left": {"clipped": False},
        "poisons not rounded": {},
        "released": {
            "objective": "margin",
            "losses": "all",
            "later": "first",
            "clipped": False,
            "epsilon": 8 / 255,
            "colour": 0.04,
            "momentum": 0.0,
        },
        "poisons changed after every batch": {"update": "batch"},
        "target normalised as in use": {"normalised_with": "averages"},
        "surrogates trained on poisons": {"trajectory": "poisoned"},
        "surrogates trained on clean images": {},  # the paper's
        "one unrolled step": {"unroll": 1},
        "two unrolled steps": {},  # the paper's
        "sign of the gradient": {"optimizer": "sign"},
    }


def test_the_released_variant_is_what_the_authors_code_does():
    """Its defaults, as its parser has them, on the [0, 1] scale."""
    found = as_json(EXPERIMENTS["metapoison/victims"].configure(variant="released"))
    assert found["model"] == "five_block_cnn"
    assert found["rounded"] is False
    assert found["procedure"] == {
        "epsilon": 8 / 255,
        "colour": 0.04,
        "smoothness": 1.0,
        "steps": 61,
        "unroll": 2,
        "surrogates": 24,
        "stagger": 1,
        "surrogate_rate": 0.1,
        "warmup_epochs": 5,
        "momentum": 0.0,
        "batch_size": 125,
        "trajectory": "clean",
        "losses": "all",
        "recompute": False,
        "objective": "margin",
        "optimizer": "adam",
        "learning_rate": 200 / 255,
        "drops": [20 / 61, 40 / 61],
        "start": "noise",
        "later": "first",
        "clipped": False,
    }
    procedure = EXPERIMENTS["metapoison/victims"].configure(variant="released").procedure
    rates = [255 * procedure.rate_at(step) for step in (4, 19, 20, 39, 40, 60)]
    assert rates == pytest.approx([200, 200, 20, 20, 2, 2])
    recipe = found["recipe"]
    assert recipe["epochs"] == 200
    assert recipe["optimizer"] == "sgd"
    assert (recipe["learning_rate"], recipe["batch_size"]) == (0.1, 125)
    assert (recipe["momentum"], recipe["weight_decay"]) == (0, 0)
    assert (recipe["crop_padding"], recipe["flip"]) == (0, False)
    # Five epochs to warm up, drops after 100 and 150 of them.
    assert 200 * recipe["warmup"] == 5
    assert [200 * mark for mark in recipe["milestones"]] == [100, 150]


@pytest.mark.parametrize("name", OWN)
def test_the_released_variant_leaves_out_what_an_experiment_cannot_do(name, laboratory):
    """Poisons that are not rounded are no pictures, and cannot be cropped or mirrored."""
    experiment = EXPERIMENTS[f"metapoison/{name}"]
    found = experiment.configure(variant="released")
    assert found.rounded == (name in ("crafting", "mechanism", "limits", "training"))
    config = configure(name, variant="released", **{"procedure.colour": 0.0})
    for unit in experiment.units(config):
        experiment.check(config, unit, laboratory.context)


def test_at_the_papers_scale_the_released_switch_is_the_variant_but_for_its_scale():
    experiment = EXPERIMENTS["metapoison/switches"]
    plain = experiment.configure(switches=("released",))
    own = switches._switched(plain, experiment.units(plain)[0])
    code = experiment.configure(variant="released", switches=("released",))
    scale = {
        "model": plain.model,
        "procedure.surrogates": plain.procedure.surrogates,
        "procedure.steps": plain.procedure.steps,
        "procedure.drops": plain.procedure.drops,
        "recipe.epochs": plain.recipe.epochs,
    }
    expected = as_json(with_options(code, scale)) | {"variant": "paper"}
    assert as_json(own) == expected
    assert code.model != plain.model
    assert code.procedure.surrogates != plain.procedure.surrogates


@pytest.mark.parametrize(("profile", "colours"), [("quick", 1), ("small", 3)])
def test_off_the_papers_scale_no_switch_is_what_the_profile_does_anyway(profile, colours):
    experiment = EXPERIMENTS["metapoison/switches"]
    config = experiment.configure(profile=profile)
    procedures = {}
    for unit in experiment.units(config):
        own = as_json(switches._switched(config, unit))
        procedure = own["procedure"] | {key: own[key] for key in own if key == "rounded"}
        if procedure["unroll"] == 1:
            procedure["losses"] = "last"  # it is all there is
        procedures[unit["switch"]] = json.dumps(procedure)
    assert procedures["paper"] == json.dumps(as_json(config)["procedure"])
    assert len(set(procedures.values())) == len(procedures) >= 5
    assert ("smaller change, and of colours" in procedures) == (colours == 3)
    assert ("released" in procedures) == (colours == 3)


# Records --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OWN)
def test_a_record_made_again_from_what_is_in_the_cache_is_the_same(name, laboratory, request):
    first = laboratory.record(name)
    arrays = first.arrays
    trials = [
        path
        for path in laboratory.store.cache.glob("trials/*.json")
        if json.loads(path.read_text())["spec"]["experiment"] == first.experiment
    ]
    assert trials
    if name != "mechanism":  # its paths are made anew
        request.getfixturevalue("nothing_made")
    for gone in ([], trials):
        for path in (first.path, *gone):
            path.unlink()
        again = laboratory.record(name)
        assert again.digest == first.digest
        assert again.metrics == first.metrics
        assert again.arrays.keys() == arrays.keys()
        assert all(torch.equal(again.arrays[key], value) for key, value in arrays.items())
    request.getfixturevalue("nothing_made")
    assert laboratory.record(name) == again
    data = begin(configure(name), 0, laboratory.context)[0]
    assert first.provenance["data_checksum"] == data.train.checksum


@pytest.mark.parametrize(
    ("name", "options"),
    [("crafting", {"victims": 1}), ("mechanism", {}), ("limits", {"pairs": 1, "victims": 1})],
)
def test_a_record_made_anew_is_the_same(name, options, laboratory, store):
    first = laboratory.record(name, **options)
    config = configure(name, **options)
    again = run(EXPERIMENTS[f"metapoison/{name}"], config, store=store, device="cpu")
    assert again.path != first.path
    assert again.digest == first.digest
