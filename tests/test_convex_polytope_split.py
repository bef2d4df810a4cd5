"""Which images train, fine-tune and are targets, and which of them both sides have (Figure 6)."""

import pytest
from convex_polytope_laboratory import (
    FAKE,
    configure,
    distinct_images,
    forbid_crafting,
    forbid_fine_tuning,
    names_of,
)

from poisonkit.data import load
from poisonkit.errors import PoisonkitError
from poisonkit.experiments import EXPERIMENTS, run
from poisonkit.experiments.convex_polytope import transfer
from poisonkit.experiments.convex_polytope.data import load_data
from poisonkit.experiments.networks import Context
from poisonkit.images import ImageSet


@pytest.fixture
def nothing_made(no_training, monkeypatch) -> None:
    """Make every training and every crafting a failure of the test."""
    forbid_crafting(monkeypatch)
    forbid_fine_tuning(monkeypatch)


@pytest.fixture
def distinct(make_images, monkeypatch) -> ImageSet:
    return distinct_images(make_images, monkeypatch)


# The split of section 4 -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "pool", "fine", "poisons", "targets"),
    [(40, 40, 10, 5, 12), (17, 40, 7, 3, 30), (1, 1, 6, 6, 1), (50, 60, 2, 2, 5)],
)
def test_the_first_train_the_next_fine_tune_and_the_ones_after_are_targets(
    first, pool, fine, poisons, targets, distinct, store
):
    config = configure(
        "transfer",
        **FAKE,
        pretraining_per_class=first,
        pool_from=pool,
        fine_tuning_per_class=fine,
        poisons=poisons,
        targets=targets,
    )
    data = load_data(config, Context(store=store, device="cpu"))
    own: dict[int, list[bytes]] = {label: [] for label in range(4)}
    for name, label in zip(names_of(distinct), distinct.y.tolist(), strict=True):
        own[label].append(name)
    parts = {name: names_of(getattr(data, name)) for name in ("pretraining", "fine_tuning")}
    aims = names_of(data.targets)
    assert set(parts["pretraining"]) == {name for names in own.values() for name in names[:first]}
    assert set(parts["fine_tuning"]) == {
        name for names in own.values() for name in names[pool : pool + fine]
    }
    assert aims == own[1][pool + fine : pool + fine + targets]
    assert len(parts["pretraining"]) == 4 * first
    assert len(parts["fine_tuning"]) == 4 * fine
    assert [parts["fine_tuning"][row] for row in data.rows] == own[2][pool : pool + poisons]
    assert data.poison_label == 2
    assert data.targets.y.tolist() == [1] * targets
    # No image plays two parts.
    everyone = [*parts["pretraining"], *parts["fine_tuning"], *aims]
    assert len(set(everyone)) == len(everyone)


def test_the_accuracy_is_measured_on_all_official_test_images(store):
    data = load_data(configure("transfer"), Context(store=store, device="cpu"))
    assert data.test.checksum == load("digits", split="test").checksum


def test_a_target_that_is_in_the_fine_tuning_set_twice_over_is_refused(
    distinct, store, nothing_made
):
    """A data set may hold an image twice, once under the target's number."""
    options = {**FAKE, "pretraining_per_class": 20, "pool_from": 20, "targets": 3}
    config = configure("transfer", **options)
    own = distinct.indices_of(1)
    # Fine-tuning has the 20th to the 29th; the second target is the 31st.
    distinct.x[own[31]] = distinct.x[own[25]]
    with pytest.raises(PoisonkitError, match=r"target 1 is training image \d+"):
        run(EXPERIMENTS["convex_polytope/transfer"], config, store=store, device="cpu")


# Figure 6 -------------------------------------------------------------------------------------


class Trained(Exception):
    """Raised in the place of the substitutes' training."""


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_an_overlap_is_the_share_of_images_that_both_sides_have(
    share, distinct, store, monkeypatch
):
    per_class, given = 20, []

    def stop(config, images, *_, **__):
        given.append(images)
        raise Trained

    monkeypatch.setattr(transfer, "substitutes", stop)
    experiment = EXPERIMENTS["convex_polytope/overlap"]
    options = {"pretraining_per_class": per_class, "pool_from": 40, "overlaps": (share,)}
    config = configure("overlap", **FAKE, **options)
    [unit] = experiment.units(config)
    context = Context(store=store, device="cpu")
    with pytest.raises(Trained):
        experiment.trial(config, unit, context)
    data = load_data(config, context)
    [images] = given
    assert images.y.bincount().tolist() == [per_class] * 4
    victims = names_of(data.pretraining)
    common = [name in victims for name in names_of(images)]
    for label in range(4):
        own = [c for c, y in zip(common, images.y.tolist(), strict=True) if y == label]
        assert sum(own) == round(share * per_class)
    # And none of those that come later.
    assert not set(names_of(images)) & {*names_of(data.fine_tuning), *names_of(data.targets)}
