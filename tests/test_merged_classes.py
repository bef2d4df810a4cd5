"""Several classes made one: whose labels change, and what Table 3's attack on them counts."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch

from poisonkit.data import load
from poisonkit.errors import DataError, PoisonkitError
from poisonkit.experiments import EXPERIMENTS, run
from poisonkit.experiments.networks import Context
from poisonkit.experiments.spectral_signatures.steps import poisoned_data

SUBPOPULATIONS = EXPERIMENTS["spectral_signatures/subpopulations"]
TINY = {"trials": 1, "recipe.epochs": 1, "images_per_class": 60}


def names_of(images) -> list[str]:
    """The class of every image, by name."""
    return [images.class_names[label] for label in images.y.tolist()]


def every_merger(classes: int) -> list[tuple[int, ...]]:
    return [
        chosen
        for count in range(2, classes + 1)
        for chosen in itertools.permutations(range(classes), count)
    ]


# Merging ------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", every_merger(4), ids=str)
def test_merged_images_carry_the_new_name_and_all_others_keep_theirs(labels, make_images):
    images = make_images(80, classes=4)
    joined = {f"class {label}" for label in labels}
    found = images.merge([f"class {label}" for label in labels], into="pets")
    assert names_of(found) == ["pets" if n in joined else n for n in names_of(images)]
    place = min(labels)
    expected = list(images.class_names)
    expected[place] = "pets"
    assert found.class_names == tuple(n for n in expected if n not in joined)
    assert found.class_names[place] == "pets"
    assert found.y.dtype == torch.int64


def test_merging_leaves_images_and_the_set_it_came_from_as_they_are(make_images):
    images = make_images(50, classes=4)
    before = replace(images, x=images.x.clone(), y=images.y.clone())
    found = images.merge(["class 3", "class 0"], into="pets")
    assert torch.equal(found.x, before.x)
    assert found.name == images.name
    assert replace(images).checksum == before.checksum
    assert found.checksum != before.checksum


def test_the_merged_class_has_the_images_of_all_its_parts(make_images):
    images = make_images(90, classes=5)
    found = images.merge(["class 1", "class 4", "class 2"], into="some")
    parts = [images.indices_of(label) for label in (1, 2, 4)]
    assert torch.equal(found.indices_of(1), torch.cat(parts).sort().values)


def test_the_order_in_which_classes_are_named_and_naming_one_twice_change_nothing(make_images):
    images = make_images(50, classes=4)
    expected = images.merge(["class 1", "class 3"], into="pets")
    for names in (["class 3", "class 1"], ["class 1", "class 3", "class 1"]):
        assert images.merge(names, into="pets").checksum == expected.checksum


def test_the_new_class_may_be_called_like_one_of_its_parts(make_images):
    images = make_images(50, classes=3)
    found = images.merge(["class 0", "class 2"], into="class 2")
    assert found.class_names == ("class 2", "class 1")


@pytest.mark.parametrize(
    ("names", "into", "told"),
    [
        ([], "pets", r"at least two classes, not \[\]"),
        (["class 1"], "pets", r"at least two classes, not \['class 1'\]"),
        (["class 1", "class 1"], "pets", "at least two classes"),
        (["class 0", "class 1"], "class 2", "random images: there is a class 'class 2' already"),
    ],
)
def test_what_cannot_be_merged_is_refused(names, into, told, make_images):
    with pytest.raises(DataError, match=told):
        make_images().merge(names, into=into)


def test_merging_an_unknown_class_lists_those_that_there_are(make_images):
    told = "unknown class of random images 'dog'; known: class 0, class 1, class 2"
    with pytest.raises(PoisonkitError, match=told):
        make_images().merge(["class 0", "dog"], into="pets")


# The attack on a merged class ---------------------------------------------------------------


@pytest.fixture
def poisoned(store):
    """What the quick profile's attack makes of digits, by source, target and share."""

    def poisoned(source: str, target: str, share: float):
        config = SUBPOPULATIONS.configure(profile="quick")
        unit = {"source": source, "target": target, "share": share, "seed": 0}
        return poisoned_data(config, unit, Context(store=store, device="cpu"))

    return poisoned


@pytest.mark.parametrize("share", [0.05, 0.10])
def test_the_poison_share_of_a_merged_target_counts_the_images_of_all_its_parts(share, poisoned):
    digits = Counter(load("digits").y.tolist())
    data = poisoned("1", "4 or 7", share)
    assert data.count == round(share * (digits[4] + digits[7])) == int(data.mask.sum())
    assert data.count > round(share * max(digits[4], digits[7]))
    target = data.train.label_of("4 or 7")
    assert len(data.train.indices_of(target)) == digits[4] + digits[7] + data.count


def test_a_merged_source_gives_images_of_all_its_parts_to_the_attack_and_to_its_test(poisoned):
    digits, test = load("digits"), load("digits", split="test")
    data = poisoned("4 or 7", "1", 0.10)
    assert data.count == round(0.10 * len(digits.indices_of(1)))
    assert len(data.triggered) == len(test.indices_of(4)) + len(test.indices_of(7))
    # The trigger covers few pixels: the nearest clean image is the one that was stamped.
    stamped = data.train.x[data.mask].flatten(1).float()
    distance = torch.cdist(stamped, digits.x.flatten(1).float(), p=0)
    assert distance.min(1).values.max() <= 5
    assert set(digits.y[distance.argmin(1)].tolist()) == {4, 7}


def test_training_and_test_images_are_merged_alike(poisoned):
    data = poisoned("1", "4 or 7", 0.10)
    names = ("0", "1", "2", "3", "4 or 7", "5", "6", "8", "9")
    assert data.clean.class_names == data.train.class_names == data.test.class_names == names
    original = names_of(load("digits", split="test"))
    assert names_of(data.test) == ["4 or 7" if n in ("4", "7") else n for n in original]


def test_the_papers_pets_are_cats_and_dogs_in_either_direction():
    config = SUBPOPULATIONS.configure()
    assert set(config.merged) == {"cat", "dog"}
    assert set(config.pairs) == {("automobile", "pets"), ("pets", "automobile")}
    units = SUBPOPULATIONS.units(config)
    assert len(units) == 2 * 2 * 4  # directions, shares, backdoors
    assert len({unit["seed"] for unit in units}) == 4


def test_both_directions_become_rows_with_the_merged_classs_name(store):
    config = SUBPOPULATIONS.configure(profile="quick", **TINY)
    record = run(SUBPOPULATIONS, config, store=store, device="cpu")
    rows = record.metrics["rows"]
    assert [(row["source"], row["target"]) for row in rows] == [("1", "4 or 7"), ("4 or 7", "1")]
    # 60 images of each digit: the merged class has 120, the other 60.
    assert [row["poisons"] for row in rows] == [12, 6]
    test = load("digits", split="test")
    parts = [len(test.indices_of(digit)) for digit in (1, 4, 7)]
    for trial, images in zip(record.metrics["trials"], (parts[0], sum(parts[1:])), strict=True):
        assert trial["triggered_images"] == images
        assert trial["removed"] == 9 * trial["removed_from_target"]
