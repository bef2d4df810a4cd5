"""Weights and features on the way to the target (Figures 6a and b)."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from metapoison_laboratory import (
    MetaPoisonLaboratory,
    chances,
    configure,
    is_of,
    victim,
    with_poisons,
)
from torch import Tensor

from poisonkit.experiments.metapoison.mechanism import (
    distances_by_layer,
    pull,
    weight_path,
    with_random_signs,
)
from poisonkit.experiments.metapoison.pairs import Data, Pair
from poisonkit.experiments.networks import Cost
from poisonkit.images import ImageSet
from poisonkit.models import create
from poisonkit.store import Json


@pytest.fixture(scope="module")
def laboratory(caches) -> MetaPoisonLaboratory:
    return MetaPoisonLaboratory.below(caches)


@pytest.fixture(scope="module")
def looked_into(laboratory) -> tuple[Any, Json, dict[str, Tensor], Data, Pair, ImageSet]:
    config, record = configure("mechanism"), laboratory.record("mechanism")
    data, pair, poisons = laboratory.attack(config)
    [trial] = record.metrics["trials"]
    arrays = {name.removeprefix("0."): value for name, value in record.arrays.items()}
    whole = with_poisons(data, pair.rows, poisons.last.images)
    assert record.metrics["explained"] == [sum(trial["explained"])]
    return config, trial, arrays, data, pair, whole


def test_both_paths_start_at_the_same_weights_and_keep_their_distances_in_the_plane(
    looked_into, laboratory
):
    config, trial, arrays, data, _, whole = looked_into
    clean, poisoned = (
        weight_path(config, images, 0, laboratory.context, Cost()) for images in (data.train, whole)
    )
    assert torch.equal(arrays["path.clean"][0], arrays["path.poisoned"][0])
    assert torch.equal(clean[0], poisoned[0])
    assert len(arrays["path.clean"]) == len(arrays["path.poisoned"]) == 5
    points = torch.cat([clean, poisoned]).double().numpy()
    left, values, _ = np.linalg.svd(points - points.mean(0), full_matrices=False)
    assert trial["explained"] == pytest.approx((values**2 / (values**2).sum())[:2].tolist())
    seen = left[:, :2] * values[:2]
    found = torch.cat([arrays["path.clean"], arrays["path.poisoned"]]).numpy()
    for one, other in ((seen, found), (seen[:5], arrays["path.clean"].numpy())):
        gaps = [np.linalg.norm(x[:, None] - x[None], axis=2) for x in (one, other)]
        assert gaps[1] == pytest.approx(gaps[0], rel=1e-4, abs=1e-5)


def test_a_path_is_gone_once_however_many_pairs_and_runs_ask_for_it(looked_into, laboratory):
    """Poisoned ones are each pair's own, the clean one is shared."""
    config, _, _, data, _, whole = looked_into
    gone = laboratory.count("paths")
    assert gone >= 3  # clean, poisoned, and with random signs
    cost = Cost()
    path = weight_path(config, data.train, 0, laboratory.context, cost)
    assert laboratory.count("paths") == gone
    assert not torch.equal(path, weight_path(config, whole, 0, laboratory.context, cost))
    assert laboratory.count("paths") == gone
    # What going it took is counted all the same.
    seconds = cost.as_json()["seconds"]
    assert len(seconds) == 3
    assert sum(seconds.values()) > seconds[""]
    weight_path(config, data.train, 99, laboratory.context, cost)
    assert laboratory.count("paths") == gone + 1


def test_arrows_stand_on_the_clean_path_and_are_the_pull_in_the_plane(looked_into, laboratory):
    config, _, arrays, data, _, whole = looked_into
    path = weight_path(config, data.train, 0, laboratory.context, Cost())
    rows = [0, 2, 4]  # three of five places, the first and the last among them
    assert torch.equal(arrays["arrows.at"], arrays["path.clean"][rows])
    network = create("small_cnn", like=data.train, seed=1, width=2)
    pulls = [pull(network, path[row], data.train, whole).double() for row in rows]
    other = weight_path(config, whole, 0, laboratory.context, Cost())
    points = torch.cat([path, other]).double().numpy()
    _, _, axes = np.linalg.svd(points - points.mean(0), full_matrices=False)
    for row, arrow, own in zip(rows, arrays["arrows.to"], pulls, strict=True):
        expected = axes[:2] @ own.numpy()
        assert np.abs(arrow.numpy()) == pytest.approx(np.abs(expected), rel=1e-3, abs=1e-5)
        # In the same direction: it has the same component along a step of the path.
        step = points[4] - points[0]
        along = (arrays["path.clean"][4] - arrays["path.clean"][0]).numpy()
        inside = axes[:2].T @ (axes[:2] @ step)
        assert arrow.numpy() @ along == pytest.approx(own.numpy() @ inside, rel=1e-3, abs=1e-4), row


def test_the_way_from_the_clean_path_is_measured_in_all_weights(looked_into, laboratory):
    """Beside it that of the poisons' changes with random signs."""
    config, trial, arrays, data, pair, whole = looked_into
    poison = laboratory.attack(config)[2].last
    signs = with_random_signs(poison, data.train, seed=config.seed + pair.number)
    other = with_poisons(data, pair.rows, signs.images)
    assert not torch.equal(other.x, whole.x)
    clean, poisoned, changed = (
        weight_path(config, images, 0, laboratory.context, Cost()).double().numpy()
        for images in (data.train, whole, other)
    )
    unit = np.linalg.norm(clean[-1] - clean[0])
    for name, path in (("poisoned", poisoned), ("signs", changed)):
        expected = [np.linalg.norm(a - b) / unit for a, b in zip(path, clean, strict=True)]
        assert trial["apart"][name] == pytest.approx(expected)
        assert trial["apart"][name][0] == 0 < trial["apart"][name][-1]
    assert set(trial["apart"]) == {"poisoned", "signs"}
    assert len(arrays["path.signs"]) == len(arrays["path.clean"])


def test_random_signs_keep_the_size_of_every_change(looked_into, laboratory):
    """Half of the signs turn; where only one way stays within the image's range, none."""
    config, _, _, data, pair, _ = looked_into
    poison = laboratory.attack(config)[2].last
    x = data.train.x.clone()
    room = torch.randint(60, 196, x.shape, generator=torch.Generator().manual_seed(5))
    x[list(pair.rows)] = room[list(pair.rows)].to(torch.uint8)
    x[pair.rows[0]] = 0
    images = replace(data.train, x=x)
    change = torch.randint(1, 60, poison.images.shape, generator=torch.Generator().manual_seed(6))
    before = x[poison.rows].long()
    made = replace(poison, images=(before + change).to(torch.uint8))
    turned = with_random_signs(made, images, seed=7)
    found = turned.images.long() - before
    assert torch.equal(found.abs(), change)
    assert torch.equal(found[0], change[0])
    assert float((found[1:] < 0).double().mean()) == pytest.approx(0.5, abs=0.05)
    assert torch.equal(turned.rows, poison.rows)
    assert not torch.equal(turned.images, with_random_signs(made, images, seed=8).images)


def test_a_look_at_weights_and_features_says_what_became_of_the_target(looked_into):
    config, trial, _, data, pair, whole = looked_into
    is_of(trial, victim(config, whole, 0), pair, data)
    clean = chances(victim(config, data.train, 0), pair.targets.x)
    assert trial["clean"]["predictions"] == [str(clean[0].argmax())]


def test_distances_are_of_bases_poisons_and_collided_images_in_the_two_networks(looked_into):
    config, trial, _, data, pair, whole = looked_into
    networks = {"clean": victim(config, data.train, 0), "victim": victim(config, whole, 0)}
    images = {"bases": data.train.x[list(pair.rows)], "poisons": whole.x[list(pair.rows)]}
    assert trial["layers"] == ["block1", "block2", "block3", "hidden"]
    for name, network in networks.items():
        for kind, x in images.items():
            expected = distances_by_layer(network, x, pair.targets)
            assert trial["distances"][f"{kind} in {name}"] == pytest.approx(expected, rel=1e-4)
    assert set(trial["distances"]) == {
        *(f"{kind} in {name}" for kind in images for name in networks),
        "collided in clean",
    }
    # What collides does so in the last representation.
    first = images["bases"][:4]
    before = distances_by_layer(networks["clean"], first, pair.targets)[-1]
    assert trial["distances"]["collided in clean"][-1] < 0.9 * before
