"""The steps of the MetaPoison trials: the draw, the crafting, the victims, and what is read off."""

import copy
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poisonkit.attacks import metapoison
from poisonkit.errors import PoisonkitError
from poisonkit.experiments import EXPERIMENTS
from poisonkit.experiments.metapoison.mechanism import (
    distances_by_layer,
    layers_of,
    plane_of,
    pull,
    weight_path,
)
from poisonkit.experiments.metapoison.pairs import Data, Pair, begin, draw_pair
from poisonkit.experiments.metapoison.setting import MetaConfig
from poisonkit.experiments.metapoison.steps import (
    Poisons,
    crafted,
    kept_steps,
    key_weights,
    last_representation,
    target_logits,
    train_victim,
    unrounded,
)
from poisonkit.experiments.networks import Context
from poisonkit.images import ImageSet
from poisonkit.models import Classifier, create, features
from poisonkit.store import Store
from poisonkit.training import Sampler, fit

#: As quick as can be: 120 digits of 8 x 8 pixels, two surrogates, five crafting steps.
TINY: dict[str, object] = {
    "images_per_class": 12,
    "poison_class": "3",
    "target_class": "9",
    "poisons": 8,
    "pairs": 2,
    "targets": 2,
    "width": 2,
    "procedure.steps": 5,
    "procedure.drops": (),
    "procedure.surrogates": 2,
    "procedure.batch_size": 40,
    "kept_every": 2,
    "victims": 2,
    "recipe.batch_size": 40,
    "recipe.epochs": 3,
    "tested_per_class": 5,
}


def configure(**options: object) -> MetaConfig:
    return EXPERIMENTS["metapoison/victims"].configure(profile="quick", **{**TINY, **options})


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    store = Store(frozen=None, cache=tmp_path_factory.mktemp("cache"))
    return Context(store=store, device="cpu")


def poisons_of(context: Context, number: int = 0, **options: object) -> Poisons:
    config = configure(**options)
    data, pair, cost = begin(config, number, context)
    return crafted(config, data, pair, context, cost)


def network_of(config: MetaConfig, data: Data, seed: int) -> Classifier:
    return create(config.model, like=data.train, seed=seed, width=config.width)


# The pair -------------------------------------------------------------------------------------


@pytest.fixture
def world(make_images) -> tuple[ImageSet, ImageSet]:
    options = {"classes": 5, "channels": 1, "size": (4, 4)}
    return make_images(100, seed=1, **options), make_images(90, seed=2, **options)


def draw(world: tuple[ImageSet, ImageSet], number: int = 0, **options: Any) -> Pair:
    return draw_pair(MetaConfig(**{"poisons": 4, **options}), *world, number)


def described(pair: Pair) -> tuple[object, ...]:
    return pair.rows, pair.numbers, pair.poison_label, pair.wanted


def classes_of(pair: Pair) -> tuple[int, int]:
    return pair.poison_label, int(pair.targets.y[0])


def test_a_pair_depends_on_the_seed_and_its_number_alone(world):
    found = {
        (seed, number): described(draw(world, number, seed=seed))
        for seed in range(3)
        for number in range(10)
    }
    for (seed, number), pair in found.items():
        assert described(draw(world, number, seed=seed, pairs=99, victims=5)) == pair
    assert len(set(found.values())) > 25


def test_every_two_classes_are_as_likely(world):
    found = Counter(classes_of(draw(world, number)) for number in range(1000))
    assert set(found) == {(a, b) for a in range(5) for b in range(5) if a != b}
    # 50 of each are expected, with a standard deviation of 7.
    assert 25 < min(found.values()) <= max(found.values()) < 75


@pytest.mark.parametrize("given", ["poison_class", "target_class"])
def test_the_class_that_is_not_given_is_any_other_one(world, given):
    pairs = [draw(world, number, **{given: "class 2"}) for number in range(400)]
    place = ("poison_class", "target_class").index(given)
    assert {classes_of(pair)[place] for pair in pairs} == {2}
    others = Counter(classes_of(pair)[1 - place] for pair in pairs)
    assert set(others) == {0, 1, 3, 4}
    assert 60 < min(others.values()) <= max(others.values()) < 140


def test_targets_are_test_images_and_poisons_the_first_of_their_class(world):
    train, test = world
    of_class = Counter(test.y.tolist())
    seen = set()
    for number in range(200):
        pair = draw(world, number, targets=3, poisons=7)
        own = [k for k, label in enumerate(train.y.tolist()) if label == pair.poison_label]
        assert list(pair.rows) == own[:7]
        assert len(set(pair.numbers)) == 3
        assert torch.equal(pair.targets.x, test.x[list(pair.numbers)])
        assert set(test.y[list(pair.numbers)].tolist()) == set(pair.targets.y.tolist())
        assert len(set(pair.targets.y.tolist())) == 1
        assert pair.wanted == pair.poison_label != int(pair.targets.y[0])
        seen |= set(pair.numbers)
    # Any test image may be a target, not only the first ones.
    assert len(seen) > 0.95 * sum(of_class.values())


def test_all_attacks_of_a_pair_have_the_same_first_target_and_poisons(world):
    for number in range(20):
        usual = draw(world, number)
        for other in (draw(world, number, third_party=True), draw(world, number, targets=2)):
            assert other.rows == usual.rows
            assert other.numbers[0] == usual.numbers[0]


def test_a_third_party_is_neither_class_and_any_of_the_others(world):
    pairs = [draw(world, number, third_party=True) for number in range(300)]
    assert all(pair.wanted not in classes_of(pair) for pair in pairs)
    assert len({(*classes_of(pair), pair.wanted) for pair in pairs}) > 50  # of 60
    plain = [draw(world, number) for number in range(300)]
    assert [classes_of(pair) for pair in pairs] == [classes_of(pair) for pair in plain]


def test_a_wanted_class_and_a_target_that_are_given_are_taken(world):
    _, test = world
    of_class = [k for k, label in enumerate(test.y.tolist()) if label == 1]
    for target in (0, 5, len(of_class) - 1):
        pair = draw(world, 3, target_class="class 1", target=target, wanted_class="class 4")
        assert pair.numbers == (of_class[target],)
        assert torch.equal(pair.targets.x, test.x[of_class[target : target + 1]])
        assert pair.wanted == 4


def test_networks_see_the_first_training_images_and_are_tested_on_the_first_test_images(context):
    data, pair, _ = begin(configure(), 1, context)
    for name, found, count in (("train", data.train, 12), ("test", data.test, 5)):
        whole = context.load("digits", name, image_size=8)
        seen: Counter[int] = Counter()
        rows = []
        for row, label in enumerate(whole.y.tolist()):
            seen[label] += 1
            rows += [row] if seen[label] <= count else []
        assert torch.equal(found.x, whole.x[rows])
        assert torch.equal(found.y, whole.y[rows])
    everything = context.load("digits", "test", image_size=8)
    assert torch.equal(pair.targets.x, everything.x[list(pair.numbers)])


# Crafted poisons ------------------------------------------------------------------------------


def test_poisons_are_those_of_the_attack_itself_and_are_crafted_once(context, monkeypatch):
    config = configure(third_party=True, seed=3)
    data, pair, cost = begin(config, 1, context)
    found = crafted(config, data, pair, context, cost)
    own = metapoison.craft(
        data.train,
        pair.targets,
        [pair.wanted] * 2,
        rows=pair.rows,
        surrogate=lambda seed: network_of(config, data, seed),
        procedure=config.procedure,
        seed=3,
        keep_every=2,
    )
    monkeypatch.setattr(metapoison, "craft", None)
    for poisons in (found, crafted(config, data, pair, context, cost)):
        assert torch.equal(poisons.images, own.images)
        assert torch.equal(poisons.unaffected, own.unaffected)
        assert torch.equal(poisons.unrolled, own.unrolled)
        assert torch.equal(poisons.last.images, own.poison.images)
        for one, other in zip(poisons.course, own.course, strict=True):
            assert torch.equal(one.images, other.images)
            assert one.rows.tolist() == list(pair.rows)
            # Whoever finds them in the store finds what was promised.
            assert int(one.verify(data.train, targets=pair.targets.x).max()) <= 102


def test_surrogates_are_the_named_network_where_it_is_not_the_victims(context):
    config = configure(surrogate="five_block_cnn")
    data, pair, cost = begin(config, 0, context)
    found = crafted(config, data, pair, context, cost)
    own = metapoison.craft(
        data.train,
        pair.targets,
        [pair.wanted] * 2,
        rows=pair.rows,
        surrogate=lambda seed: create("five_block_cnn", like=data.train, seed=seed, width=2),
        procedure=config.procedure,
        seed=0,
    )
    assert torch.equal(found.images, own.images)
    assert not torch.equal(found.images, poisons_of(context).images)


def test_what_changes_the_crafting_is_another_set_of_poisons_and_nothing_else_is(context):
    def count() -> int:
        return len(list(context.store.cache.glob("poisons/*.json")))

    one_step = {"procedure.steps": 1}
    poisons_of(context, **one_step)
    before = count()
    changes: tuple[dict[str, object], ...] = (
        {"procedure.unroll": 2},
        {"procedure.epsilon": 0.2},
        {"procedure.trajectory": "clean"},
        {"seed": 1},
        {"poisons": 7},
        {"targets": 1},
        {"wanted_class": "5"},
        {"images_per_class": 13},
        {"width": 3},
        {"surrogate": "resnet8"},
        {"standardise": "none"},
        {"kept_every": 3},
    )
    for number, options in enumerate(changes, start=before + 1):
        poisons_of(context, **one_step, **options)
        assert count() == number, options
    for options in (
        {"victims": 9},
        {"recipe.epochs": 9},
        {"model": "resnet8", "surrogate": "small_cnn"},
        {"surrogate": "small_cnn"},
        {"tested_per_class": 2},
        {"pairs": 5},
    ):
        poisons_of(context, **one_step, **options)
        assert count() == before + len(changes), options


@pytest.mark.parametrize(("steps", "every"), [(5, 2), (4, 2), (3, 1), (2, 10)])
def test_the_poisons_kept_after_some_steps_are_those_of_a_crafting_of_so_many(
    steps, every, context
):
    options = {"procedure.steps": steps, "kept_every": every}
    kept = kept_steps(configure(**options))
    course = poisons_of(context, **options).course
    assert (kept[0], kept[-1]) == (0, steps)
    assert kept == sorted(set(kept))
    for after, poison in zip(kept, course, strict=True):
        if after:
            # Without drops, the first steps are the same however many are to follow.
            shorter = poisons_of(context, **{"procedure.steps": after}).last
            assert torch.equal(poison.images, shorter.images)
    assert not torch.equal(course[0].images, course[-1].images)


def test_the_crafting_starts_from_noise_within_the_bound_or_from_the_images_themselves(context):
    data, pair, _ = begin(configure(), 0, context)
    bases = data.train.x[list(pair.rows)].short()
    start = poisons_of(context).course[0].images.short()
    # Where neither black nor white cuts the noise off, it is uniform within 0.4.
    inner = (bases >= 102) & (bases <= 153)
    change = (start - bases)[inner].double()
    assert len(change) > 35
    assert -102 <= change.min() < -80
    assert 80 < change.max() <= 102
    assert abs(change.mean()) < 4 * 59 / len(change) ** 0.5
    other = poisons_of(context, **{"procedure.unroll": 2}).course[0].images.short()
    assert torch.equal(start, other)
    still = poisons_of(context, **{"procedure.start": "zero"}).course[0].images.short()
    assert torch.equal(still, bases)


# Victims --------------------------------------------------------------------------------------


def by_its_own_batch(network: Classifier, x: Tensor) -> Tensor:
    """Logits of a copy in training mode; it has no dropout."""
    own = copy.deepcopy(network).train()
    with torch.no_grad():
        return own(x.float() / 255)


def in_eval_mode(network: Classifier, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(network).eval()(x.float() / 255)


def test_a_victim_is_a_network_trained_on_the_poisons_and_its_course_what_it_answers(context):
    config = configure(seed=2)
    data, pair, cost = begin(config, 0, context)
    poisons = crafted(config, data, pair, context, cost)
    images, _ = poisons.last.apply(data.train, targets=pair.targets.x)
    found, course = train_victim(config, data, images, pair, 1, context, cost)
    own = create("small_cnn", like=images, seed=2 + 5000 + 1, width=2)
    epochs = fit(own, images, config.recipe, seed=2 + 5000 + 1)
    state = found.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in own.state_dict().items())
    assert course["loss"] == [epoch.loss for epoch in epochs]
    order = torch.randperm(120, generator=torch.Generator().manual_seed(2))
    batch = torch.cat([images.x[order[:40]], pair.targets.x])
    answers = {"": in_eval_mode(own, pair.targets.x), "in_batch_": by_its_own_batch(own, batch)}
    losses = {}
    for way, logits in answers.items():
        rows = logits[-2:].double().numpy()
        chances = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
        losses[way] = -np.log(chances[:, pair.wanted]).mean()
        assert course[f"{way}target_loss"][-1] == pytest.approx(losses[way], rel=1e-5)
        assert course[f"{way}success"][-1] == (rows.argmax(1) == pair.wanted).mean()
        assert len(course[f"{way}target_loss"]) == len(course[f"{way}success"]) == 3
    assert abs(losses[""] - losses["in_batch_"]) > 1e-3
    right = in_eval_mode(own, data.test.x).argmax(1) == data.test.y
    assert course["test"][-1] == pytest.approx(float(right.double().mean()))
    assert len(course["test"]) == 3


def test_seeds_that_train_one_network_read_its_targets_in_batches_of_their_own(context):
    """Victim 1 of seed 0 is victim 0 of seed 1; the images beside the target are not the same."""
    config, other = configure(seed=0), configure(seed=1)
    data, pair, cost = begin(config, 0, context)
    network, course = train_victim(config, data, data.train, pair, 1, context, cost)
    again, found = train_victim(other, data, data.train, pair, 0, context, cost)
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert found["target_loss"] == course["target_loss"]
    for seed, own in ((0, course), (1, found)):
        order = torch.randperm(120, generator=torch.Generator().manual_seed(seed))
        batch = torch.cat([data.train.x[order[:40]], pair.targets.x])
        loss = F.cross_entropy(by_its_own_batch(network, batch)[-2:], torch.full((2,), pair.wanted))
        assert own["in_batch_target_loss"][-1] == pytest.approx(float(loss), rel=1e-5)
    assert found["in_batch_target_loss"] != course["in_batch_target_loss"]


def test_an_earlier_epoch_of_the_course_is_the_network_as_it_was_then(context):
    options = {"recipe.schedule": "constant"}
    config, shorter = configure(**options), configure(**options, **{"recipe.epochs": 2})
    data, pair, cost = begin(config, 0, context)
    _, long = train_victim(config, data, data.train, pair, 0, context, cost)
    _, short = train_victim(shorter, data, data.train, pair, 0, context, cost)
    for name in ("test", "target_loss", "success", "in_batch_target_loss", "in_batch_success"):
        assert long[name][:2] == short[name]
    assert long["target_loss"][2] not in short["target_loss"]


def test_following_several_pairs_is_following_each(context):
    config = configure()
    data, first, cost = begin(config, 0, context)
    second = begin(config, 1, context)[1]
    pairs = {"a_": first, "b_": second}
    network, both = train_victim(config, data, data.train, pairs, 0, context, cost)
    for prefix, pair in pairs.items():
        alone, course = train_victim(config, data, data.train, pair, 0, context, cost)
        for name in ("target_loss", "success", "in_batch_target_loss", "in_batch_success"):
            assert both[f"{prefix}{name}"] == course[name]
        assert torch.equal(alone.body.linear.weight, network.body.linear.weight)
    assert both["a_target_loss"] != both["b_target_loss"]


def test_asking_a_network_about_targets_leaves_it_as_it_was(context):
    config = configure()
    data, pair, _ = begin(config, 0, context)
    network = network_of(config, data, 4).train()
    network(data.train.x[:50].float() / 255)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    beside = data.train.x[:30]
    eval_mode = in_eval_mode(network, pair.targets.x)
    batch = by_its_own_batch(network, torch.cat([beside, pair.targets.x]))
    assert torch.allclose(target_logits(network, pair.targets), eval_mode, atol=1e-6)
    assert torch.allclose(target_logits(network, pair.targets, beside), batch[30:], atol=1e-6)
    assert not torch.allclose(eval_mode, batch[30:], atol=1e-3)
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    "name", ["small_cnn", "compact_cnn", "five_block_cnn", "resnet8", "resnet14", "vgg11"]
)
def test_the_last_representation_is_what_enters_the_last_layer(name, make_images):
    images = make_images(4, size=(32, 32), seed=3)
    network = create(name, like=images, seed=1).eval()
    seen: list[Tensor] = []
    network.body.linear.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    found = features(network, images.x, last_representation(network))
    assert torch.equal(found, seen[0])


def test_a_network_without_a_layer_before_the_last_is_refused():
    body = nn.Sequential()
    body.add_module("stem", nn.Flatten())
    body.add_module("linear", nn.Linear(16, 2))
    network = Classifier(body, mean=torch.zeros(1), deviation=torch.ones(1))
    with pytest.raises(PoisonkitError, match=r"neither 'pool' nor 'hidden'.*'stem'"):
        last_representation(network)


# Poisons that are not rounded -----------------------------------------------------------------


@pytest.fixture
def mixture(make_images) -> tuple[ImageSet, Tensor, Tensor]:
    """Training images, rows of poisons among them, and what these were before rounding."""
    train = make_images(60, size=(5, 6), seed=7)
    rows = torch.randperm(60, generator=torch.Generator().manual_seed(8))[:14]
    jitter = torch.rand((14, 3, 5, 6), generator=torch.Generator().manual_seed(9)) - 0.5
    exact = ((train.x[rows].float() + 0.98 * jitter) / 255).clamp(0, 1)
    assert torch.equal((255 * exact).round().to(torch.uint8), train.x[rows])
    x = train.x.clone()
    # Close to a poison, but another image: one level more or less, or two values swapped.
    beside = [row for row in range(60) if row not in rows.tolist()][:2]
    x[beside] = x[rows[:2]]
    x[beside[0], 1, 2, 3] ^= 1
    swapped = x[beside[1]].flatten()
    assert swapped[4] != swapped[50]
    swapped[[4, 50]] = swapped[[50, 4]]
    return replace(train, x=x), rows, exact


@pytest.mark.parametrize("seed", range(3))
def test_poisons_are_replaced_by_their_floats_wherever_they_are_in_a_batch(seed, mixture):
    train, rows, exact = mixture
    apply = unrounded(train.x[rows], exact, train.checksum).apply
    expected = train.x.float() / 255
    expected[rows] = exact
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    for chosen in order.split(17):
        batch = train.x[chosen].float() / 255
        given = batch.clone(memory_format=torch.channels_last)
        found = apply(nn.Identity(), given, train.y[chosen])
        assert torch.equal(found, expected[chosen])
        assert torch.equal(given, batch)


@pytest.mark.parametrize("pixels", [64, 3 * 32 * 32, 3 * 224 * 224])
def test_the_keys_of_images_of_any_size_are_sums_without_rounding(pixels):
    weights = key_weights(pixels)
    assert torch.equal(weights, weights.round())
    assert len(weights.unique()) > 0.9 * pixels
    # The whitest image's key, in Python's integers, is one that float64 holds.
    assert 255 * sum(int(weight) for weight in weights) <= 2**53


def test_a_training_sees_every_poison_once_an_epoch_as_it_was_before_rounding(mixture):
    train, rows, exact = mixture
    apply = unrounded(train.x[rows], exact, train.checksum).apply
    recipe = configure(**{"recipe.batch_size": 16}).recipe
    sampler = Sampler(train, recipe, seed=5)
    for epoch in range(2):
        met, others = [], 0
        for x, y in sampler.epoch(epoch):
            for before, after in zip(x, apply(nn.Identity(), x, y), strict=True):
                own = [k for k in range(14) if torch.equal(exact[k], after)]
                met += own
                others += int(torch.equal(before, after))
        assert sorted(met) == list(range(14))
        assert others == 60 - 14


# Weights --------------------------------------------------------------------------------------


def principal(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All singular values, and the coordinates along the first two directions."""
    left, values, _ = np.linalg.svd(points - points.mean(0), full_matrices=False)
    return values, left[:, :2] * values[:2]


def gaps(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - points[None], axis=2)


def test_the_plane_is_that_of_the_two_largest_singular_values():
    generator = torch.Generator().manual_seed(1)
    paths = {
        "clean": torch.randn(5, 40, generator=generator).cumsum(0),
        "poisoned": torch.randn(7, 40, generator=generator).cumsum(0) + 3,
    }
    numbers, arrays = plane_of(paths)
    points = torch.cat([*paths.values()]).double().numpy()
    values, seen = principal(points)
    shares = values**2 / (values**2).sum()
    assert numbers["explained"] == pytest.approx(shares[:2].tolist())
    assert (len(arrays["path.clean"]), len(arrays["path.poisoned"])) == (5, 7)
    found = torch.cat([arrays["path.clean"], arrays["path.poisoned"]]).numpy()
    assert gaps(found) == pytest.approx(gaps(seen))
    axes = arrays["axes"].numpy()
    assert axes @ axes.T == pytest.approx(np.eye(2), abs=1e-9)
    assert (points - points.mean(0)) @ axes.T == pytest.approx(found)


def test_paths_that_lie_in_a_plane_keep_their_distances():
    generator = torch.Generator().manual_seed(2)
    plane = torch.randn(2, 30, generator=generator, dtype=torch.float64)
    paths = {
        name: torch.randn(count, 2, generator=generator, dtype=torch.float64) @ plane
        for name, count in (("clean", 4), ("poisoned", 3))
    }
    # Points elsewhere, which the plane is not laid through.
    paths["noise"] = 10 * torch.randn(2, plane.shape[1], generator=generator, dtype=torch.float64)
    numbers, arrays = plane_of(paths)
    assert sum(numbers["explained"]) == pytest.approx(1)
    whole = torch.cat([paths["clean"], paths["poisoned"]]).numpy()
    found = torch.cat([arrays["path.clean"], arrays["path.poisoned"]]).numpy()
    assert gaps(found) == pytest.approx(gaps(whole))
    beside = (paths["noise"] - torch.from_numpy(whole.mean(0))) @ arrays["axes"].T
    assert torch.allclose(arrays["path.noise"], beside)


def flat(network: nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten() for _, value in network.named_parameters()])


def test_a_path_leads_from_the_initial_weights_to_those_of_the_victim(context):
    config = configure(**{"recipe.schedule": "constant"})
    data, _, cost = begin(config, 0, context)
    path = weight_path(config, data.train, 1, context, cost)
    assert len(path) == 4
    assert torch.equal(path[0], flat(network_of(config, data, 5001)))
    victim, _ = train_victim(config, data, data.train, None, 1, context, cost)
    assert torch.equal(path[-1], flat(victim))
    own = network_of(config, data, 5001)
    fit(own, data.train, replace(config.recipe, epochs=1), seed=5001)
    assert torch.equal(path[1], flat(own))


@pytest.fixture
def two_sets(make_images) -> tuple[ImageSet, ImageSet]:
    """More images than there are in a batch, and the same with some of them changed."""
    clean = make_images(620, channels=1, seed=4)
    x = clean.x.clone()
    x[5:615:10] = make_images(61, channels=1, seed=5).x
    return clean, replace(clean, x=x)


def test_images_that_are_not_changed_do_not_pull(two_sets):
    clean, poisoned = two_sets
    network = create("small_cnn", like=clean, seed=1, width=2)
    weights = flat(network)
    same = pull(network, weights, clean, replace(clean, x=clean.x.clone()))
    assert float(same.abs().max()) < 1e-7
    assert float(pull(network, weights, clean, poisoned).norm()) > 1e-3
    # What changed first is what they are not pulled by.
    there = pull(network, weights, clean, poisoned)
    back = pull(network, weights, poisoned, clean)
    assert torch.allclose(there, -back, atol=1e-7)


def excess(network: Classifier, weights: Tensor, sets: tuple[ImageSet, ImageSet]) -> Tensor:
    """Loss on poisoned images beyond that on clean ones, in double precision."""
    own = copy.deepcopy(network).double().train()
    torch.nn.utils.vector_to_parameters(weights, own.parameters())
    totals = []
    with torch.no_grad():
        for images in sets:
            parts = [
                F.cross_entropy(own(x.double() / 255), y) * len(y)
                for x, y in ((images.x[:500], images.y[:500]), (images.x[500:], images.y[500:]))
            ]
            totals.append(torch.stack(parts).sum() / len(images))
    return totals[1] - totals[0]


def test_the_pull_is_the_slope_of_the_loss_that_poisons_add(two_sets):
    network = create("small_cnn", like=two_sets[0], seed=1, width=2)
    # Away from whatever weights the network has.
    generator = torch.Generator().manual_seed(6)
    weights = flat(network) + 0.05 * torch.randn(flat(network).shape, generator=generator)
    found = pull(network, weights, *two_sets).double()
    directions = [found / found.norm()] + [
        F.normalize(torch.randn(len(found), generator=generator, dtype=torch.float64), dim=0)
        for _ in range(3)
    ]
    for direction in directions:
        step = 1e-5 * direction
        rise = excess(network, weights.double() + step, two_sets)
        fall = excess(network, weights.double() - step, two_sets)
        slope = float(rise - fall) / 2e-5
        assert -float(found @ direction) == pytest.approx(slope, rel=0.02, abs=1e-4)
    assert float(found.norm()) > 0.01


# Features -------------------------------------------------------------------------------------


def test_distances_are_those_of_the_features_relative_to_the_targets_own(make_images):
    images = make_images(90, channels=1, seed=6)
    network = create("small_cnn", like=images, seed=2, width=3)
    network.train()(images.x.float() / 255)
    network.eval()
    targets, others = images.select(torch.tensor([3, 8])), images.x[20:45]
    body = network.body

    def forward(x: Tensor) -> dict[str, Tensor]:
        x = (x.float() / 255 - network.mean) / network.deviation
        found = {"block1": body.block1(x)}
        found["block2"] = body.block2(F.max_pool2d(found["block1"], 2))
        found["block3"] = body.block3(F.max_pool2d(found["block2"], 2))
        found["hidden"] = body.hidden(found["block3"].flatten(1))
        return {name: value.flatten(1) for name, value in found.items()}

    with torch.no_grad():
        aims, values = forward(targets.x), forward(others)
    assert layers_of(network) == list(aims)
    expected = [
        np.mean(
            [
                np.linalg.norm(row - aims[name][0].numpy()) / np.linalg.norm(aims[name][0].numpy())
                for row in values[name].numpy()
            ]
        )
        for name in aims
    ]
    found = distances_by_layer(network, others, targets)
    assert found == pytest.approx(expected, rel=1e-4)
    assert min(found) > 0.1
    assert distances_by_layer(network, targets.x[:1], targets) == pytest.approx([0] * 4, abs=1e-6)
    # The second target plays no part.
    assert distances_by_layer(network, others, targets.select(torch.tensor([0]))) == found
