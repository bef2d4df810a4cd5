"""Victims that train a new last layer, and what records say of them (Figures 4, 5 and 8)."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from convex_polytope_laboratory import (
    FAKE,
    ConvexPolytopeLaboratory,
    answers,
    configure,
    distinct_images,
    frozen_victim,
    into_linear,
    poisoned,
    with_layer,
)
from torch import Tensor, nn

from poisonkit.attacks import polytope
from poisonkit.experiments.convex_polytope import transfer, victims
from poisonkit.experiments.convex_polytope.data import Data, begin, load_data
from poisonkit.experiments.convex_polytope.steps import Poisons, victim
from poisonkit.experiments.convex_polytope.victims import FrozenVictim, attack_frozen
from poisonkit.experiments.networks import Context, Cost
from poisonkit.fine_tuning import fit_linear
from poisonkit.images import ImageSet
from poisonkit.models import Classifier
from poisonkit.statistics import wilson


@pytest.fixture(scope="module")
def laboratory(caches) -> ConvexPolytopeLaboratory:
    return ConvexPolytopeLaboratory.below(caches)


@pytest.fixture
def distinct(make_images, monkeypatch) -> ImageSet:
    return distinct_images(make_images, monkeypatch)


@pytest.fixture
def frozen(store) -> tuple[FrozenVictim, Any, Data, Classifier, Tensor]:
    return frozen_victim(store)


# Victims --------------------------------------------------------------------------------------


def test_a_poisoned_set_has_the_features_of_its_own_images(frozen):
    seen, _, data, network, images = frozen
    found = seen.poisoned_sets(images)
    for number in range(3):
        expected = into_linear(network, poisoned(data, images[number]).x)
        assert torch.allclose(found[number], expected, atol=1e-5)
    one = seen.poisoned_features(images)
    assert torch.allclose(one[1, 2], into_linear(network, images[1, 2:3])[0], atol=1e-5)
    assert torch.equal(one, seen.poisoned_features(images.float() / 255))


def test_each_layer_is_trained_as_if_its_poisons_were_the_only_ones(frozen):
    seen, config, data, network, images = frozen
    weight, bias = seen.fine_tune(images)
    assert len(weight) == 3
    for number in range(3):
        alone = fit_linear(
            into_linear(network, poisoned(data, images[number]).x),
            data.fine_tuning.y,
            network.body.linear,
            config.fine_tuning,
            seed=config.seed,
        )
        assert torch.allclose(weight[number], alone[0][0], atol=1e-3)
        assert torch.allclose(bias[number], alone[1][0], atol=1e-3)
    clean, _ = seen.fine_tune()
    assert clean.shape == (1, *network.body.linear.weight.shape)
    assert not torch.allclose(clean[0], weight[0], atol=1e-2)


def test_a_fresh_last_layer_knows_nothing_of_the_first_training(laboratory):
    config = configure("transfer")
    data, cost = begin(config, laboratory.context)
    state = torch.get_rng_state()
    usual, fresh = (
        victim(replace(config, head=head), data, "small_cnn", laboratory.context, cost)
        for head in ("pretrained", "fresh")
    )
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        layer = nn.Linear(usual.body.linear.in_features, usual.body.linear.out_features)
    for name, value in fresh.state_dict().items():
        kind = name.removeprefix("body.linear.")
        expected = usual.state_dict()[name] if kind == name else layer.state_dict()[kind]
        assert torch.equal(value, expected), name
    assert not torch.equal(usual.body.linear.weight, layer.weight)


def test_answers_are_those_of_the_whole_network_with_the_new_layer(frozen):
    seen, _, data, network, images = frozen
    for weight, bias in (seen.fine_tune(images), seen.fine_tune()):
        predicted, accuracies = (
            seen.predict(weight, bias, data.targets),
            seen.accuracies(weight, bias),
        )
        assert len(predicted) == 3
        assert len(accuracies) == len(weight)
        for number in range(3):
            own = with_layer(network, weight[number % len(weight)], bias[number % len(weight)])
            assert predicted[number] == answers(own, data.targets.x)[number]
        for number, accuracy in enumerate(accuracies):
            own = with_layer(network, weight[number], bias[number])
            right = np.array(answers(own, data.test.x)) == data.test.y.numpy()
            assert accuracy == pytest.approx(right.mean(), abs=1.5 / len(right))


def test_fine_tuning_leaves_the_network_as_it_was(frozen):
    seen, _, _, network, images = frozen
    before = {key: value.clone() for key, value in network.state_dict().items()}
    seen.fine_tune(images)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def poisons_made_of(images: Tensor, data: Data, targets: ImageSet) -> Poisons:
    found = polytope.poisons_of(images, data.fine_tuning, rows=data.rows, epsilon=1.0)
    empty = torch.empty(0)
    return Poisons(targets=targets, images=images, poisons=found, losses=empty, watched=empty)


def test_poisons_that_are_their_bases_change_nothing(laboratory):
    config = configure("transfer")
    data, cost = begin(config, laboratory.context)
    bases = data.fine_tuning.x[list(data.rows)].float() / 255
    same = poisons_made_of(bases.repeat(2, 1, 1, 1, 1), data, data.targets)
    found = attack_frozen(config, data, "small_cnn", same, laboratory.context, cost)
    assert found["predictions"] == found["unrounded"] == found["clean"]
    assert found["accuracy"] == pytest.approx([found["clean_accuracy"]] * 2, abs=0.003)


@pytest.mark.parametrize("seed", range(3))
def test_a_target_between_poisons_that_are_fitted_is_captured(seed, distinct, store, monkeypatch):
    """The features are the pixels; two poisons lie on two sides of the target, far from it."""
    options = {**FAKE, "pretraining_per_class": 20, "pool_from": 20, "poisons": 2, "targets": 6}
    config = configure("transfer", **options, **{"fine_tuning.epochs": 200})
    generator = torch.Generator().manual_seed(seed)
    for label in range(4):
        # Classes that differ: noise around pictures of their own.
        rows = distinct.indices_of(label)
        picture = torch.randint(80, 170, (1, 1, 16, 16), generator=generator)
        noise = torch.randint(-20, 21, (len(rows), 1, 16, 16), generator=generator)
        distinct.x[rows] = (picture + noise).to(torch.uint8)
    context = Context(store=store, device="cpu")
    data, cost = load_data(config, context), Cost()
    body = nn.Sequential()
    body.add_module("hidden", nn.Flatten())
    body.add_module("linear", nn.Linear(256, 4))
    network = Classifier(body, mean=torch.full((1,), 0.5), deviation=torch.ones(1)).eval()
    monkeypatch.setattr(victims, "victim", lambda *_: network)
    aside = torch.randint(-60, 61, data.targets.x.shape, generator=generator)
    pairs = torch.stack([data.targets.x + aside, data.targets.x - aside], 1)
    assert 0 <= pairs.min() <= pairs.max() <= 255
    poisons = poisons_made_of(pairs.float() / 255, data, data.targets)
    found = attack_frozen(config, data, "any", poisons, context, cost)
    assert found["clean"] == data.targets.y.tolist()
    seen = FrozenVictim(config, data, network, "hidden")
    weight, bias = seen.fine_tune(poisons.rounded)
    fitted = [
        set(answers(with_layer(network, weight[k], bias[k]), pairs[k])) == {data.poison_label}
        for k in range(6)
    ]
    assert sum(fitted) >= 4
    for number, prediction in enumerate(found["predictions"]):
        assert prediction == data.poison_label or not fitted[number]
    assert max(found["to_polytope"]) < 1e-6
    apart = (aside.double() / 255).flatten(1).square().sum(1)
    length = (data.targets.x.double() / 255 - 0.5).flatten(1).square().sum(1)
    assert found["to_poison"] == pytest.approx((apart / length).tolist(), rel=1e-4)


# Figures 4, 5 and 8 ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key"),
    [("transfer", "objective"), ("overlap", "overlap"), ("end_to_end", "attack")],
)
def test_a_row_counts_its_own_targets_over_all_blocks(name, key, laboratory):
    metrics = laboratory.record(name, targets=3, targets_at_once=2).metrics
    entries: dict[tuple[object, str], list[dict]] = {}
    for trial in metrics["trials"]:
        for entry in trial["victims"]:
            entries.setdefault((trial[key], entry["victim"]), []).append(entry)
    assert {(row[key], row["victim"]) for row in metrics["rows"]} == set(entries)
    label = metrics["trials"][0]["poison_label"]
    assert label == 9
    for row in metrics["rows"]:
        own = entries[row[key], row["victim"]]
        for found, of in (("rate", "predictions"), ("clean", "clean"), ("unrounded", "unrounded")):
            if of in own[0]:
                taken = [prediction for entry in own for prediction in entry[of]]
                assert len(taken) == row["targets"] == 3
                assert row[found] == pytest.approx(taken.count(label) / 3)
        assert (row["low"], row["high"]) == wilson(row["hits"], 3)
        accuracies = [accuracy for entry in own for accuracy in entry["accuracy"]]
        assert row["accuracy"] == pytest.approx(np.mean(accuracies))
        assert row["clean_accuracy"] == own[0]["clean_accuracy"]


def test_a_transfer_record_keeps_the_pictures_of_its_first_targets(laboratory):
    record, config = laboratory.record("transfer"), configure("transfer")
    data, _ = begin(config, laboratory.context)
    bases = data.fine_tuning.x[list(data.rows)]
    for number, trial in enumerate(record.metrics["trials"]):
        arrays = {
            key.removeprefix(f"{number}."): value
            for key, value in record.arrays.items()
            if key.startswith(f"{number}.")
        }
        assert torch.equal(arrays["bases"], bases)
        assert torch.equal(arrays["targets"], data.targets.x)
        change = arrays["poisons"].int() - bases.int()
        assert 0 < change.abs().max() <= int(0.3 * 255)
        assert trial["mean_change"] == pytest.approx(float(change.abs().double().mean()), rel=1e-5)
        for place, likeness in enumerate(trial["likeness"]):
            wanted = (data.targets.x[place].int() - bases.int()).double().flatten(1).numpy()
            moved = change[place].double().flatten(1).numpy()
            cosines = [
                float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
                for a, b in zip(moved, wanted, strict=True)
            ]
            assert likeness == pytest.approx(np.mean(cosines), abs=1e-4)


def test_likeness_is_1_on_the_way_to_the_target_0_aside_and_minus_1_away(laboratory):
    config = configure("transfer")
    data, _ = begin(config, laboratory.context)
    bases, targets = data.fine_tuning.x[list(data.rows)].float(), data.targets.x
    way = targets[:, None].float() - bases
    aside = torch.randn(way.shape, generator=torch.Generator().manual_seed(1))
    along = (aside * way).flatten(2).sum(-1) / way.square().flatten(2).sum(-1)
    aside -= along[..., None, None, None] * way
    for change, expected in ((0.3 * way, 1), (-0.2 * way, -1), (aside, 0), (0 * way, 0)):
        found = transfer.likeness(bases + change, data, targets)
        assert found == pytest.approx([expected] * len(targets), abs=1e-4)
