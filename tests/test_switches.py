"""Each difference between the paper and the released code is switched by itself."""

import math

import pytest
import torch

from poisonkit.errors import PoisonkitError
from poisonkit.experiments import EXPERIMENTS, run
from poisonkit.experiments.networks import Context
from poisonkit.experiments.settings import as_json
from poisonkit.experiments.spectral_signatures import switches
from poisonkit.experiments.spectral_signatures.setting import RELEASED
from poisonkit.experiments.spectral_signatures.steps import filter_images, poisoned_data
from poisonkit.experiments.spectral_signatures.switches import SWITCHES

SWITCHING = EXPERIMENTS["spectral_signatures/switches"]
TINY = {"trials": 1, "recipe.epochs": 1, "images_per_class": 60}

RELEASED_FILTER = {"centred": False, "removal": "percentile", "labels": "target"}
#: What the authors' code does otherwise than the paper's text, one difference each.
DIFFERENCES = {
    "paper": {},
    "uncentred": {"centred": False},
    "percentile": {"removal": "percentile"},
    "known": {"removal": "known"},
    "target label": {"labels": "target"},
    "pooled": {"pool": "mean"},
    "replaced": {"placement": "replaced"},
    "bytes": {"standardise": "bytes"},
    "layer": {"tap": "group3.2"},
    "released, paper's data": {**RELEASED_FILTER, "tap": "group3.2"},
    "released": {
        **RELEASED_FILTER,
        "tap": "group3.2",
        "placement": "replaced",
        "standardise": "bytes",
    },
}


@pytest.fixture
def handed_over(monkeypatch):
    """The settings with which Table 2's procedure is called, by switch."""
    monkeypatch.setattr(switches, "removal_trial", lambda config, *_: as_json(config))

    def handed_over(config):
        units = SWITCHING.units(config)
        return {unit["switch"]: SWITCHING.trial(config, unit, None) for unit in units}

    return handed_over


def differences(found: dict, base: dict) -> dict:
    return {name: value for name, value in found.items() if value != base[name]}


# Switches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["quick", "small", "paper"])
def test_each_switch_differs_from_the_paper_in_what_it_names_and_nothing_else(profile, handed_over):
    config = SWITCHING.configure(profile=profile)
    found = handed_over(config)
    assert found["paper"] == as_json(config)
    other_layer = {"quick": "block2", "small": "stage3.0", "paper": "group3.2"}[profile]
    assert list(found) == list(DIFFERENCES)
    for name, expected in DIFFERENCES.items():
        expected = expected | ({"tap": other_layer} if "tap" in expected else {})
        assert differences(found[name], found["paper"]) == expected


def test_all_switches_together_are_the_released_code_but_for_its_own_attack(handed_over):
    found = handed_over(SWITCHING.configure())
    attack = {"pairs", "shares", "pattern", "position", "colour"}
    expected = {name: value for name, value in RELEASED.items() if name not in attack}
    assert differences(found["released"], found["paper"]) == expected
    shared = differences(found["released, paper's data"], found["paper"])
    assert shared.items() < expected.items()
    assert set(expected) - set(shared) == {"placement", "standardise"}


def test_a_unit_is_one_switch_on_one_attack():
    config = SWITCHING.configure(trials=2)
    units = SWITCHING.units(config)
    assert len(units) == len(SWITCHES) * 2
    for unit in units:
        assert (unit["source"], unit["target"], unit["share"]) == ("airplane", "bird", 0.10)
    assert {unit["seed"] for unit in units} == {0, 1}


@pytest.fixture
def removed(store):
    """How many images of each label a setting removes, whatever the features are."""

    def removed(**options):
        config = SWITCHING.configure(profile="quick", **options)
        unit = SWITCHING.units(config)[0]
        data = poisoned_data(config, unit, Context(store=store, device="cpu"))
        generator = torch.Generator().manual_seed(8)
        found = filter_images(config, torch.randn(len(data.train), 7, generator=generator), data)
        assert int((~found.keep).sum()) == sum(found.removed_per_label.values())
        return found.removed_per_label, data

    return removed


def test_known_removes_just_epsilon_of_each_label_and_the_paper_half_as_many_again(removed):
    found, data = removed(removal="known")
    assert found == dict.fromkeys(range(10), data.count)
    found, _ = removed()
    assert found == dict.fromkeys(range(10), math.ceil(1.5 * data.count))
    # Whatever the factor says: with "known" it does not count.
    assert removed(removal="known", factor=3.0)[0] == dict.fromkeys(range(10), data.count)


def test_target_label_removes_from_the_poisoned_label_only(removed):
    found, data = removed(labels="target")
    assert found == {9: math.ceil(1.5 * data.count)}


def test_the_percentile_removes_its_share_of_each_label_whatever_epsilon_is(removed):
    for share in (0.05, 0.2):
        found, data = removed(removal="percentile", shares=(share,))
        for label, count in found.items():
            size = len(data.train.indices_of(label))
            # No score occurs twice; numpy's percentile lies between two of them.
            assert count == size - 1 - math.floor(0.85 * (size - 1))


def test_rows_come_switch_by_switch_with_what_each_removed(store):
    names = ("target label", "paper", "known")
    config = SWITCHING.configure(profile="quick", switches=names, **TINY)
    record = run(SWITCHING, config, store=store, device="cpu")
    assert [row["switch"] for row in record.metrics["rows"]] == list(names)
    one, paper, known = record.metrics["trials"]
    assert one["poisons"] == 6
    assert (one["removed"], one["removed_from_target"]) == (9, 9)
    assert (paper["removed"], paper["removed_from_target"]) == (90, 9)
    assert (known["removed"], known["removed_from_target"]) == (60, 6)
    # The network before filtering is the same, and so are its scores.
    assert one["hits_before"] == paper["hits_before"] == known["hits_before"]
    scores = [record.arrays[f"{index}.scores"] for index in range(3)]
    assert torch.equal(scores[0], scores[1])
    assert torch.equal(scores[1], scores[2])


@pytest.mark.parametrize(
    ("switches", "told"),
    [
        (("paper", "centred"), "switch 'centred'; known: paper, uncentred, percent"),
        ((), "no trials"),
    ],
)
def test_unknown_switches_list_the_known_ones(switches, told, store, no_training):
    config = SWITCHING.configure(profile="quick", switches=switches, **TINY)
    with pytest.raises(PoisonkitError, match=told):
        run(SWITCHING, config, store=store, device="cpu")
