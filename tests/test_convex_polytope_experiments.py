"""The Convex Polytope experiments: what their records hold, and what they refuse."""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from poisonkit.attacks import polytope
from poisonkit.data import load
from poisonkit.errors import PoisonkitError
from poisonkit.experiments import EXPERIMENTS, run
from poisonkit.experiments.convex_polytope import (
    end_to_end,
    limits,
    steps,
    switches,
    transfer,
    victims,
)
from poisonkit.experiments.convex_polytope.data import Data, begin, load_data, taps_of
from poisonkit.experiments.convex_polytope.setting import S1, S2
from poisonkit.experiments.convex_polytope.steps import Poisons, crafted, substitutes, victim
from poisonkit.experiments.convex_polytope.victims import FrozenVictim, attack_frozen
from poisonkit.experiments.networks import Context, Cost
from poisonkit.experiments.settings import as_json
from poisonkit.fine_tuning import fit_linear
from poisonkit.images import ImageSet
from poisonkit.models import Classifier, create, features
from poisonkit.statistics import wilson
from poisonkit.store import Record, Store
from poisonkit.training import fit

#: As quick as can be: 200 digits, networks trained for an epoch, two targets, three steps.
TINY: dict[str, object] = {
    "pretraining_per_class": 20,
    "fine_tuning_per_class": 10,
    "targets": 2,
    "targets_at_once": 2,
    "substitutes": ("small_cnn", "resnet8"),
    "dropouts": (0.2,),
    "victims": ("small_cnn", "preact_resnet8"),
    "pretraining.epochs": 1,
    "procedure.iterations": 3,
    "fine_tuning.epochs": 5,
}
OWN: dict[str, dict[str, object]] = {
    "transfer": {},
    "overlap": {"overlaps": (0.0, 1.0)},
    "end_to_end": {"whole_network.epochs": 2, "tested": 1},
    "randomised": {"watch_every": 2},
    "limits": {"epsilons": (0.1, 0.3), "counts": (2, 5)},
    "switches": {},
}


def configure(name: str, **options: object) -> Any:
    given = {**TINY, **OWN[name], **options}
    return EXPERIMENTS[f"convex_polytope/{name}"].configure(profile="quick", **given)


@dataclass(frozen=True)
class Laboratory:
    """One store for all the tests here: what two experiments share is made once."""

    store: Store

    @property
    def context(self) -> Context:
        return Context(store=self.store, device="cpu")

    def record(self, name: str, **options: object) -> Record:
        config = configure(name, **options)
        return run(EXPERIMENTS[f"convex_polytope/{name}"], config, store=self.store, device="cpu")

    def count(self, kind: str) -> int:
        return len(list(self.store.cache.glob(f"{kind}/*.json")))

    def poisons(self, name: str = "transfer", *, first: int = 0, **options: object) -> Poisons:
        """What is crafted in the last layer with the configuration's own procedure."""
        config = configure(name, **options)
        data, cost = begin(config, self.context)
        nets = substitutes(config, data.pretraining, self.context, cost)
        return crafted(config, data, nets, config.procedure, first, self.context, cost)


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory) -> Laboratory:
    return Laboratory(Store(frozen=None, cache=tmp_path_factory.mktemp("cache")))


@pytest.fixture
def nothing_crafted(monkeypatch) -> None:
    def craft(*_: object, **__: object) -> None:
        raise AssertionError("poisons were crafted")

    monkeypatch.setattr(polytope, "craft", craft)


@pytest.fixture
def nothing_made(no_training, nothing_crafted, monkeypatch) -> None:
    """Make every training and every crafting a failure of the test."""

    def fine_tune(*_: object, **__: object) -> None:
        raise AssertionError("a victim was fine-tuned")

    monkeypatch.setattr(end_to_end, "fit", fine_tune)
    monkeypatch.setattr(victims, "fit_linear", fine_tune)


def into_linear(network: Classifier, x: Tensor) -> Tensor:
    """What the linear layer is given for uint8 images, seen at its entrance."""
    seen: list[Tensor] = []
    handle = network.body.linear.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        network.eval()(x.float() / 255)
    handle.remove()
    return seen[0]


def with_layer(network: Classifier, weight: Tensor, bias: Tensor) -> Classifier:
    """The whole network with another last layer."""
    own = copy.deepcopy(network).eval()
    with torch.no_grad():
        own.body.linear.weight.copy_(weight)
        own.body.linear.bias.copy_(bias)
    return own


def answers(network: Classifier, x: Tensor) -> list[int]:
    with torch.no_grad():
        return network.eval()(x.float() / 255).argmax(1).tolist()


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
SIX = {"senet18", "resnet50", "resnext29_2x64d", "dpn92", "mobilenet_v2", "googlenet"}
EIGHT = SIX | {"resnet18", "densenet121"}
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


def stand_in_for_cifar10(per_class: int) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    count = 10 * per_class
    x = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    return ImageSet(x=x, y=torch.arange(count) % 10, class_names=tuple(names), name="stand-in")


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
        images = stand_in_for_cifar10(2 + 50 + 50)
        monkeypatch.setattr(Context, "load", lambda *_, **__: images)
    monkeypatch.setattr("poisonkit.experiments.convex_polytope.data.create", create_once)
    units = experiment.units(config)
    # One of each kind of layer; and the last, which has the most poisons.
    kinds = {unit.get("attack"): unit for unit in units} | {"last": units[-1]}
    for unit in kinds.values():
        experiment.check(config, unit, Context(store=store, device="cpu"))
    if name == "limits":
        assert units[-1]["poisons"] == max(unit["poisons"] for unit in units)


# The split of section 4 -----------------------------------------------------------------------


@pytest.fixture
def distinct(make_images, monkeypatch) -> ImageSet:
    """A data set in which no two images are the same, in the place of digits."""
    images = make_images(400, classes=4, channels=1, size=(16, 16), seed=11)
    assert len({image.numpy().tobytes() for image in images.x}) == 400
    test = make_images(40, classes=4, channels=1, size=(16, 16), seed=12)
    sets = {"train": images, "test": test}
    monkeypatch.setattr(Context, "load", lambda self, name, split, **_: sets[split])
    return images


FAKE: dict[str, object] = {"poison_class": "class 2", "target_class": "class 1"}


def names_of(images: ImageSet) -> list[bytes]:
    return [image.numpy().tobytes() for image in images.x]


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


# Networks -------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch) -> list[dict[str, Any]]:
    """Collect which trained networks are asked for; fresh ones stand in for them."""
    calls: list[dict[str, Any]] = []

    def fresh(context, images, recipe, *, model, seed, label, cost, **options):
        calls.append({"model": model, "seed": seed, "images": images.checksum, **options})
        return create(model, like=images, seed=seed, **options).eval()

    monkeypatch.setattr(steps, "trained_network", fresh)
    return calls


@pytest.mark.parametrize("seed", [0, 5])
def test_no_two_networks_start_from_the_same_seed(seed, store, asked):
    config = configure(
        "transfer", seed=seed, dropouts=(0.0, 0.2, 0.3), victims=("small_cnn", "resnet8")
    )
    context = Context(store=store, device="cpu")
    data, cost = begin(config, context)
    nets = substitutes(config, data.pretraining, context, cost)
    count = len(asked)
    victims = [victim(config, data, name, context, cost) for name in config.victims]
    assert count == len(nets) == 2 * 3
    seeds = [call["seed"] for call in asked[:count]]
    assert len(set(seeds)) == count
    # The victims' are their own for every seed that could be given for the repeats.
    assert not set(seeds) & {call["seed"] + repeat for call in asked[count:] for repeat in range(9)}
    assert "dropout" not in asked[-1]
    rates = [call.get("dropout", 0.0) for call in asked[:count]]
    assert rates == [0.0, 0.2, 0.3] * 2
    for one, rate in zip(nets, rates, strict=True):
        found = {m.p for m in one.network.modules() if isinstance(m, nn.Dropout)}
        assert found == ({rate} if rate else set())
    for network in victims:
        assert not any(isinstance(m, nn.Dropout) for m in network.modules())
    same = dict(victims[0].named_parameters())
    assert not torch.equal(same["body.linear.weight"], nets[0].network.body.linear.weight)


def test_where_a_trial_begins_to_train_changes_the_order_only(store, asked):
    config = configure("transfer", dropouts=(0.2, 0.3))
    context = Context(store=store, device="cpu")
    data, cost = begin(config, context)
    orders, digests = [], []
    for begin_at in range(4):
        asked.clear()
        nets = substitutes(config, data.pretraining, context, cost, begin_at=begin_at)
        orders.append([(call["model"], call["seed"], call["dropout"]) for call in asked])
        digests.append([one.network.body.linear.weight for one in nets])
    for begin_at, order in enumerate(orders):
        assert order == orders[0][begin_at:] + orders[0][:begin_at]
        assert all(map(torch.equal, digests[begin_at], digests[0]))


# Layers ---------------------------------------------------------------------------------------

OURS = ("small_cnn", "compact_cnn", "resnet8", "preact_resnet8", "densenet22")
#: Stages of the published networks, each ending before the next halving of the resolution.
STAGES = {
    "senet18": 4,
    "resnet50": 4,
    "resnext29_2x64d": 3,
    "dpn92": 4,
    "mobilenet_v2": 4,
    "googlenet": 3,
    "resnet18": 4,
    "densenet121": 4,
    **dict.fromkeys(OURS, 3),
}


@pytest.fixture(scope="module")
def small_networks() -> dict[str, tuple[Classifier, ImageSet]]:
    """One of each architecture, of a few channels, and images for it."""
    pictures, digits = stand_in_for_cifar10(1), load("digits").first_per_class(1)
    found = {}
    for name in STAGES:
        images = pictures if name in EIGHT else digits
        options = {} if name.endswith("resnet8") else {"width": 4}
        found[name] = (create(name, like=images, seed=0, **options).eval(), images)
    return found


@pytest.mark.parametrize("name", STAGES)
def test_the_last_layer_is_what_enters_the_linear_layer(name, small_networks):
    network, images = small_networks[name]
    [tap] = taps_of(network, name, "last")
    found = features(network, images.x, tap)
    assert torch.allclose(found, into_linear(network, images.x).flatten(1), atol=1e-5)


@pytest.mark.parametrize("name", STAGES)
def test_several_layers_are_one_of_each_resolution_and_the_last_layer(name, small_networks):
    network, images = small_networks[name]
    taps = taps_of(network, name, "several")
    assert len(taps) == STAGES[name]
    assert taps[-1:] == taps_of(network, name, "last")
    sizes = []
    for tap in taps[:-1]:
        outputs: list[Tensor] = []
        handle = network.module_at(tap).register_forward_hook(lambda *a, o=outputs: o.append(a[2]))
        with torch.no_grad():
            network(images.x[:1] / 255)
        handle.remove()
        sizes.append(outputs[0].shape[-1])
    assert sizes == sorted(set(sizes), reverse=True)
    assert min(sizes) > 1


@pytest.mark.parametrize("name", ["resnet18", *S2])
def test_the_released_layers_are_the_last_but_one_unit_of_the_last_stage_and_the_pooled_one(
    name, small_networks
):
    network, images = small_networks[name]
    unit, pooled = taps_of(network, name, "released")
    stage = [part for part in network.body._modules if part.startswith("stage")][-1]
    units = [
        key
        for key, part in network.body.get_submodule(stage).named_children()
        if any(isinstance(module, nn.Conv2d) for module in part.modules())
    ]
    assert unit == f"{stage}.{units[-2]}"
    assert (pooled,) == taps_of(network, name, "last")
    # The one has pixels, the other none.
    per_image = features(network, images.x, unit).shape[1]
    assert per_image > features(network, images.x, unit, pool="mean").shape[1]


@pytest.mark.parametrize("name", ["googlenet", "mobilenet_v2", "densenet121", "resnet8"])
def test_networks_that_the_released_code_cannot_surround_are_named(name, small_networks):
    with pytest.raises(PoisonkitError, match=rf"released code '{name}'; known: .*resnet50"):
        taps_of(small_networks[name][0], name, "released")


# Crafted poisons ------------------------------------------------------------------------------


def test_poisons_are_crafted_once_for_all_experiments_that_ask_for_them(laboratory, request):
    whole = laboratory.record("transfer", objectives=("polytope",))
    count = laboratory.count("poisons")
    assert count >= 1
    request.getfixturevalue("nothing_crafted")
    as_described = laboratory.record("switches", switches=("as described",))
    own = laboratory.record("limits", epsilons=(0.3,), counts=(5,))
    last = laboratory.record("end_to_end", attacks=("last layer",))
    overlap = laboratory.record("overlap", overlaps=(1.0,), pretraining_per_class=20)
    assert laboratory.count("poisons") == count
    [expected] = [trial["victims"] for trial in whole.metrics["trials"]]
    for record in (as_described, own, overlap):
        [trial] = record.metrics["trials"]
        for one, other in zip(trial["victims"], expected, strict=True):
            assert {key: one[key] for key in other} == other
    losses = {tuple(trial["loss"]) for trial in last.metrics["trials"]}
    assert losses == {tuple(whole.metrics["trials"][0]["loss"])}


def test_poisons_that_are_read_back_are_those_that_were_crafted(laboratory, nothing_crafted):
    config = configure("transfer")
    data, _ = begin(config, laboratory.context)
    first, again = laboratory.poisons(), laboratory.poisons()
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.rounded, again.rounded)
    for poison in again.poisons:
        assert 0 < int(poison.verify(data.fine_tuning, targets=data.targets.x).max()) <= 76
    # Half a level by rounding, or none where that would have left the ball.
    assert (first.images * 255 - first.rounded).abs().max() <= 0.5 + 1e-3
    assert first.losses.shape == (3, 2)


def test_whatever_changes_the_crafting_is_another_set_of_poisons_and_nothing_else_is(laboratory):
    laboratory.poisons()
    count = laboratory.count("poisons")
    changes: tuple[dict[str, object], ...] = (
        {"procedure.iterations": 2},
        {"procedure.epsilon": 0.2},
        {"procedure.dropout": False},
        {"procedure.objective": "bullseye"},
        {"seed": 1},
        {"poisons": 4},
        {"targets": 1},
        {"fine_tuning_per_class": 9},
        {"substitutes": ("small_cnn",)},
        {"dropouts": (0.3,)},
        {"pretraining.learning_rate": 2e-3},
    )
    for number, options in enumerate(changes, start=count + 1):
        laboratory.poisons(**options)
        assert laboratory.count("poisons") == number, options
    for options in (
        {"stream": True},
        {"victims": ("resnet8",)},
        {"fine_tuning.epochs": 9},
        {"objectives": ("polytope",)},
    ):
        laboratory.poisons(**options)
        assert laboratory.count("poisons") == count + len(changes), options


def test_each_block_has_the_targets_of_its_numbers(laboratory):
    config = configure("transfer", targets=3, targets_at_once=2)
    data, _ = begin(config, laboratory.context)
    first, second = (
        laboratory.poisons(first=number, targets=3, targets_at_once=2) for number in (0, 2)
    )
    assert names_of(first.targets) == names_of(data.targets)[:2]
    assert names_of(second.targets) == names_of(data.targets)[2:]
    assert len(second.images) == len(second.poisons) == 1


# Victims --------------------------------------------------------------------------------------


@pytest.fixture
def frozen(store):
    """A random network, its data, and random poisons for three targets."""
    config = configure("transfer", targets=3)
    data = load_data(config, Context(store=store, device="cpu"))
    network = create("small_cnn", like=data.pretraining, seed=4).eval()
    generator = torch.Generator().manual_seed(5)
    shape = (3, 5, *data.fine_tuning.x.shape[1:])
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return FrozenVictim(config, data, network, "hidden"), config, data, network, images


def poisoned(data: Data, images: Tensor) -> ImageSet:
    """The fine-tuning images with one set of poisons in the place of the bases."""
    x = data.fine_tuning.x.clone()
    for row, image in zip(data.rows, images, strict=True):
        x[row] = image
    return replace(data.fine_tuning, x=x)


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


# Figures 7 and 8: end to end ------------------------------------------------------------------


def test_end_to_end_victims_change_every_layer_but_no_running_average(
    laboratory, store, monkeypatch
):
    seen = []

    def watched(network, images, *arguments, **options):
        before = {key: value.clone() for key, value in network.state_dict().items()}
        found = fit(network, images, *arguments, **options)
        seen.append((before, network.state_dict(), images))
        return found

    monkeypatch.setattr(end_to_end, "fit", watched)
    options = {"attacks": ("last layer",), "victims": ("preact_resnet8",)}
    config = configure("end_to_end", **options, **{"whole_network.epochs": 1})
    laboratory.record("end_to_end", **options, **{"whole_network.epochs": 1})
    data, cost = begin(config, laboratory.context)
    network = victim(config, data, "preact_resnet8", laboratory.context, cost)
    assert len(seen) == 1 + 2  # without poisons, and with those of each target
    checksums = [images.checksum for _, _, images in seen]
    assert checksums[0] == data.fine_tuning.checksum
    assert len(set(checksums)) == 3
    for before, after, images in seen:
        for key, value in network.state_dict().items():
            assert torch.equal(before[key], value), "each starts from the pre-trained network"
            statistic = any(word in key for word in ("running", "num_batches", "mean", "deviation"))
            assert torch.equal(after[key], value) is statistic, key
        changed = (images.x != data.fine_tuning.x).flatten(1).any(1).nonzero().flatten().tolist()
        assert changed == ([] if images.checksum == checksums[0] else list(data.rows))


def test_the_victim_without_poisons_is_the_same_for_every_attack(laboratory):
    record, config = laboratory.record("end_to_end"), configure("end_to_end")
    data, cost = begin(config, laboratory.context)
    for name in config.victims:
        own = [e for t in record.metrics["trials"] for e in t["victims"] if e["victim"] == name]
        assert len(own) == 2
        assert own[0]["clean"] == own[1]["clean"]
        assert own[0]["clean_accuracy"] == own[1]["clean_accuracy"]
        network = copy.deepcopy(victim(config, data, name, laboratory.context, cost))
        fit(
            network,
            data.fine_tuning,
            config.whole_network,
            seed=config.seed,
            statistics="running",
        )
        assert own[0]["clean"] == answers(network, data.targets.x)
        right = np.array(answers(network, data.test.x)) == data.test.y.numpy()
        assert own[0]["clean_accuracy"] == pytest.approx(right.mean())


def test_each_target_is_asked_of_the_victim_that_had_its_own_poisons(laboratory):
    options = {"attacks": ("last layer",), "victims": ("small_cnn",)}
    record, config = (
        laboratory.record("end_to_end", **options),
        configure("end_to_end", **options),
    )
    data, cost = begin(config, laboratory.context)
    poisons = laboratory.poisons("end_to_end", **options)
    [[entry]] = [trial["victims"] for trial in record.metrics["trials"]]
    assert len(entry["accuracy"]) == 1  # the first target only, as `tested` says
    for number, images in enumerate(poisons.rounded):
        network = copy.deepcopy(victim(config, data, "small_cnn", laboratory.context, cost))
        own = poisoned(data, images)
        fit(network, own, config.whole_network, seed=config.seed, statistics="running")
        assert entry["predictions"][number] == answers(network, data.targets.x)[number]
        right = np.array(answers(network, images)) == 9
        assert entry["fitted"][number] == pytest.approx(right.mean())
        if number == 0:
            right = np.array(answers(network, data.test.x)) == data.test.y.numpy()
            assert entry["accuracy"] == pytest.approx([right.mean()])


def test_of_each_victims_answers_the_one_to_its_own_target_counts(laboratory, monkeypatch):
    """Victims that answer with their own number, and the target's, in the order of training."""
    trained = []

    def fine_tuned(config, data, network, images, tested, *_):
        trained.append(images.checksum)
        number = len(trained) - 1
        answers = [100 * number + target for target in range(len(data.targets))]
        return {"predictions": answers, "accuracy": number if tested else None, "fitted": 1.0}

    monkeypatch.setattr(end_to_end, "_fine_tuned", fine_tuned)
    options = {"targets": 5, "targets_at_once": 3, "tested": 4, "attacks": ("last layer",)}
    config = configure("end_to_end", **options, victims=("small_cnn",))
    experiment = EXPERIMENTS["convex_polytope/end_to_end"]
    for unit, targets in zip(experiment.units(config), ([0, 1, 2], [3, 4]), strict=True):
        trained.clear()
        numbers, _ = experiment.trial(config, unit, laboratory.context)
        [entry] = numbers["victims"]
        # Victim 0 has no poisons; each of the others has those of one target.
        assert len(trained) == len(set(trained)) == 1 + len(targets)
        assert entry["clean"] == targets
        assert entry["predictions"] == [100 * (k + 1) + target for k, target in enumerate(targets)]
        assert entry["clean_accuracy"] == 0
        assert entry["accuracy"] == [k + 1 for k, target in enumerate(targets) if target < 4]


def test_poisons_in_all_layers_are_crafted_with_all_of_them(laboratory, monkeypatch):
    given = []

    def watched(train, nets, *arguments, procedure, **options):
        given.append(([one.taps for one in nets], procedure))
        return craft(train, nets, *arguments, procedure=procedure, **options)

    craft = polytope.craft
    monkeypatch.setattr(polytope, "craft", watched)
    # Another rate of the crafting, so that nothing of it is in the store.
    attacks = ("last layer", "all stages", "two layers", "two layers, as released")
    options = {
        "attacks": attacks,
        "substitutes": ("resnet14",),
        "victims": ("small_cnn",),
        "procedure.iterations": 1,
        "whole_network.epochs": 1,
    }
    record = laboratory.record("end_to_end", **options)
    assert [row["attack"] for row in record.metrics["rows"]] == list(attacks)
    assert [taps for taps, _ in given] == [
        [("pool",)],
        [("group1", "group2", "pool")],
        [("group3.0", "pool")],
        [("group3.0", "pool")],
    ]
    assert [procedure.pooled for _, procedure in given] == ["polytope"] * 3 + ["released"]


# Figure 3 -------------------------------------------------------------------------------------


def test_objectives_are_watched_at_the_same_steps_with_dropout_and_without(laboratory):
    options = {"procedure.iterations": 5, "watch_every": 2}
    record = laboratory.record("randomised", **options)
    config = configure("randomised", **options)
    data, cost = begin(config, laboratory.context)
    bases = data.fine_tuning.x[list(data.rows)]
    start: dict[str, Tensor] = {}
    for number, trial in enumerate(record.metrics["trials"]):
        watched = record.arrays[f"{number}.watched"]
        # Before steps 0, 2 and 4, and after the last; of two networks and two targets.
        assert watched.shape == (4, 2, 2)
        assert record.arrays[f"{number}.losses"].shape == (3, 2)
        first = start.setdefault(trial["objective"], watched[0])
        assert torch.equal(first, watched[0]), "nothing has been changed yet"
        assert not torch.equal(watched[0], watched[-1])
        for place, name in enumerate(config.victims):
            assert trial["last"][name] == pytest.approx(watched[-1, place].tolist())
            if trial["objective"] == "collision":
                network = victim(config, data, name, laboratory.context, cost)
                p, t = into_linear(network, bases), into_linear(network, data.targets.x)
                p, t = p.flatten(1).double(), t.flatten(1).double()
                expected = [float(((p - aim) ** 2).sum() / (aim @ aim)) for aim in t]
                assert first[place].tolist() == pytest.approx(expected, rel=1e-4)
    with_dropout, without = (
        record.arrays[
            f"{[(t['objective'], t['dropout']) for t in record.metrics['trials']].index(kind)}"
            ".losses"
        ]
        for kind in (("polytope", True), ("polytope", False))
    )
    assert not torch.equal(with_dropout, without)


def test_a_row_of_figure_3_pairs_the_same_targets_with_dropout_and_without(laboratory):
    metrics = laboratory.record("randomised", targets=3, targets_at_once=2).metrics
    assert len(metrics["rows"]) == 2 * 2
    for row in metrics["rows"]:
        ends: dict[bool, dict[int, float]] = {True: {}, False: {}}
        for trial in metrics["trials"]:
            if trial["objective"] == row["objective"]:
                for place, value in enumerate(trial["last"][row["victim"]]):
                    ends[trial["dropout"]][trial["first"] + place] = value
        assert sorted(ends[True]) == sorted(ends[False]) == [0, 1, 2]
        assert row["targets"] == 3
        assert row["lower"] == sum(ends[True][k] < ends[False][k] for k in range(3))
        assert row["with"] == pytest.approx(np.mean(list(ends[True].values())))
        assert row["without"] == pytest.approx(np.mean(list(ends[False].values())))


# Beyond the paper: limits and switches --------------------------------------------------------


def removed_by_hand(points: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Who of one class lies farthest along the top singular vector, and all scores."""
    centred = points - points.mean(0)
    score = (centred @ np.linalg.svd(centred, full_matrices=False)[2][0]) ** 2
    return np.argsort(-score)[:count], score


@pytest.mark.parametrize("count", [2, 5])
def test_the_filter_is_told_the_number_of_poisons_and_takes_half_as_many_again(count, laboratory):
    options = {"epsilons": (0.3,), "counts": (2, 5)}
    record, config = laboratory.record("limits", **options), configure("limits", **options)
    [trial] = [t for t in record.metrics["trials"] if (t["epsilon"], t["poisons"]) == (0.3, count)]
    data, cost = begin(replace(config, poisons=count), laboratory.context)
    poisons = laboratory.poisons("limits", **options, poisons=count)
    for entry in trial["victims"]:
        network = victim(config, data, entry["victim"], laboratory.context, cost)
        assert entry["removed"] == math.ceil(1.5 * count)
        for number, images in enumerate(poisons.rounded):
            whole = poisoned(data, images)
            points = into_linear(network, whole.x).flatten(1).double().numpy()
            kept = np.ones(len(whole), dtype=bool)
            for label in range(10):
                rows = np.flatnonzero(whole.y.numpy() == label)
                out, score = removed_by_hand(points[rows], entry["removed"])
                kept[rows[out]] = False
                if label == 9:
                    bad = np.isin(rows, data.rows)
                    pairs = [(a, b) for a in score[bad] for b in score[~bad]]
                    above = sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)
                    assert entry["auroc"][number] == pytest.approx(above, abs=1e-6)
            assert entry["left"][number] == kept[list(data.rows)].sum()


def test_without_the_poisons_the_victims_answer_does_not_depend_on_them(frozen, monkeypatch):
    """Where the filter finds every poison, any others would have done no more."""
    _, config, data, network, images = frozen
    longer = replace(config, fine_tuning=replace(config.fine_tuning, epochs=60))
    seen = FrozenVictim(longer, data, network, "hidden")
    found = []
    # The targets' own pictures, as poisons, would take every target along.
    copies = data.targets.x[:, None].expand_as(images)
    taken = seen.predict(*seen.fine_tune(copies), data.targets)
    assert taken == [data.poison_label] * 3
    for given in (images, copies):
        with monkeypatch.context() as patched:
            patched.setattr(limits, "spectral_filter", finds_all(data))
            found.append(limits._filtered(seen, given, data, data.targets))
    assert found[0]["left"] == found[1]["left"] == [0, 0, 0]
    assert found[0]["filtered"] == found[1]["filtered"] != taken
    assert found[0]["auroc"] == [1.0] * 3


def finds_all(data: Data) -> Callable[..., Any]:
    def filtered(points, labels, *, suspected):
        assert suspected == len(data.rows)
        bad = torch.zeros(len(labels), dtype=torch.bool)
        bad[list(data.rows)] = True
        real = spectral_filter(points, labels, suspected=suspected)
        return replace(real, keep=~bad, scores=bad.float())

    spectral_filter = limits.spectral_filter
    return filtered


def test_a_row_of_the_limits_counts_all_victims_before_and_after_the_filter(laboratory):
    metrics = laboratory.record("limits").metrics
    assert len(metrics["rows"]) == 3  # (0.1, 5), (0.3, 5), (0.3, 2)
    for row in metrics["rows"]:
        [trial] = [
            t
            for t in metrics["trials"]
            if (t["epsilon"], t["poisons"]) == (row["epsilon"], row["poisons"])
        ]
        entries = trial["victims"]
        assert row["targets"] == row["filtered"]["targets"] == 2 * len(entries)
        assert row["hits"] == sum(entry["predictions"].count(9) for entry in entries)
        assert row["filtered"]["hits"] == sum(entry["filtered"].count(9) for entry in entries)
        left = [value for entry in entries for value in entry["left"]]
        assert row["left"] == pytest.approx(np.mean(left) / row["poisons"])
        assert row["auroc"] == pytest.approx(np.mean([e["auroc"] for e in entries]))


@pytest.mark.parametrize("profile", ["quick", "small", "paper"])
def test_each_switch_changes_the_crafting_in_a_way_of_its_own(profile):
    experiment = EXPERIMENTS["convex_polytope/switches"]
    config = experiment.configure(profile=profile, switches=tuple(switches.SWITCHES))
    found = {
        unit["switch"]: switches._resolved(config, unit)
        for unit in experiment.units(config)
        if unit["first"] == 0
    }
    assert found.pop("as described") == config
    procedures = {name: as_json(own)["procedure"] for name, own in found.items()}
    plain = as_json(config)["procedure"]
    changed = {
        name: {key: value for key, value in own.items() if value != plain[key]}
        for name, own in procedures.items()
    }
    quarter = plain["iterations"] // 4
    assert changed == {
        "target's dropout drawn anew": {"target_mask": "every"},
        "no dropout for the target": {"target_mask": "without"},
        "no dropout": {"dropout": False},
        "steps in pixels": {"unit": "pixels"},
        "steps in pixels, a fifth": {"unit": "pixels", "learning_rate": 0.04 / 5},
        "a quarter of the steps": {"iterations": quarter},
    }
    for own in found.values():
        assert replace(own, procedure=config.procedure) == config


def test_a_quarter_of_the_steps_of_the_paper_are_a_thousand_and_never_none():
    experiment = EXPERIMENTS["convex_polytope/switches"]
    unit = {"switch": "a quarter of the steps", "first": 0}
    assert switches._resolved(experiment.configure(), unit).procedure.iterations == 1000
    few = experiment.configure(**{"procedure.iterations": 3})
    assert switches._resolved(few, unit).procedure.iterations == 1


def test_a_row_of_a_switch_counts_all_victims_and_targets(laboratory):
    names = ("as described", "steps in pixels", "a quarter of the steps", "no dropout")
    metrics = laboratory.record("switches", switches=names).metrics
    assert [row["switch"] for row in metrics["rows"]] == list(names)
    for row, trial in zip(metrics["rows"], metrics["trials"], strict=True):
        assert trial["switch"] == row["switch"]
        entries = trial["victims"]
        assert row["targets"] == 2 * len(entries) == 4
        assert row["hits"] == sum(entry["predictions"].count(9) for entry in entries)
        assert row["unrounded"]["hits"] == sum(entry["unrounded"].count(9) for entry in entries)
        assert row["to_polytope"] == pytest.approx(np.mean([e["to_polytope"] for e in entries]))
        assert row["loss"] == pytest.approx(np.mean(trial["loss"]))
    # Ways to craft that lead to other poisons have other losses.
    assert len({row["loss"] for row in metrics["rows"]}) == len(names)


# Records --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OWN)
def test_a_record_made_again_from_what_is_in_the_cache_is_the_same(
    name, laboratory, request, monkeypatch
):
    first = laboratory.record(name)
    arrays = first.arrays
    request.getfixturevalue("no_training")
    request.getfixturevalue("nothing_crafted")
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


# Requests that cannot be met ------------------------------------------------------------------

ALL = tuple(OWN)
REFUSED: list[tuple[tuple[str, ...], dict[str, object], str]] = [
    (ALL, {"target_class": "9"}, "poisons and targets are both of class '9'"),
    (("transfer",), {"poison_class": "cat"}, "unknown class .*'cat'; known: 0, 1"),
    (("transfer", "switches", "randomised"), {"poisons": 1}, "at least 2 different poisons"),
    (("overlap", "end_to_end"), {"poisons": 1}, "polytope needs at least 2 different poisons"),
    (("limits",), {"counts": (5, 1)}, "a polytope needs at least 2 poisons, not 1"),
    (("limits",), {"poisons": 1}, "a polytope needs at least 2 poisons, not 1"),
    (("transfer", "overlap"), {"poisons": 0}, "0 poisons are asked for"),
    (("transfer", "end_to_end"), {"poisons": -1}, "-1 poisons are asked for"),
    (("transfer", "switches"), {"poisons": 11}, "11 poisons are asked for, of 10 images"),
    (("limits",), {"counts": (7,)}, "filter removes 11 images of each class, .* there are 10"),
    (("end_to_end",), {"attacks": ("two layers",)}, "'small_cnn'; known: .*resnet18"),
    (
        ("end_to_end",),
        {"attacks": ("last layer", "two layers, as released"), "substitutes": ("resnet8",)},
        "'resnet8'; known: .*resnet18",
    ),
    (ALL, {"victims": ("small_cnn", "lenet")}, "unknown model 'lenet'; known: .*small_cnn"),
    (ALL, {"substitutes": ("lenet",)}, "unknown model 'lenet'; known: .*small_cnn"),
    (("transfer", "limits"), {"targets": 100}, "images of class '3' after the first 110, not"),
    (("transfer",), {"targets": 0}, "no trials|not the 0 targets"),
    (("transfer", "end_to_end"), {"targets_at_once": 0}, "targets_at_once must be at least 1"),
    (("limits", "randomised"), {"targets_at_once": -2}, "targets_at_once must be at least 1"),
    (
        ("transfer", "limits", "switches", "end_to_end", "randomised"),
        {"pretraining_per_class": 101},
        "101 images of each class reach into the pool, which begins after 100",
    ),
    (("overlap",), {"pretraining_per_class": 51}, "need 102 images of each class before the pool"),
    (
        ("overlap",),
        {"pretraining_per_class": 101, "overlaps": (1.0,)},
        "need 101 images of each class before the pool",
    ),
    (("overlap",), {"overlaps": (0.0, 1.2)}, r"an overlap must lie in \[0, 1\], not 1\.2"),
    (("overlap",), {"overlaps": (-0.1, 1.0)}, r"an overlap must lie in \[0, 1\], not -0\.1"),
    (ALL, {"victims": ("small_cnn", "small_cnn")}, "victims names something twice"),
    (ALL, {"substitutes": ("resnet8", "resnet8")}, "substitutes names something twice"),
    (ALL, {"dropouts": (0.2, 0.2)}, "dropouts names something twice"),
    (("transfer",), {"objectives": ("polytope", "polytope")}, "objectives names something twice"),
    (("overlap",), {"overlaps": (0.5, 0.5)}, "overlaps names something twice"),
    (("end_to_end",), {"attacks": ("all stages",) * 2}, "attacks names something twice"),
    (("limits",), {"epsilons": (0.1, 0.1)}, "epsilons names something twice"),
    (("limits",), {"counts": (2, 2)}, "counts names something twice"),
    (("switches",), {"switches": ("no dropout",) * 2}, "switches names something twice"),
    (("switches",), {"switches": ("no dropout", "slow")}, "switch 'slow'; known: as described"),
    (("limits",), {"epsilons": (0.1, 0.0)}, r"a bound must lie in \(0, 1\], not 0\.0"),
    (("limits",), {"epsilons": (1.5,)}, r"a bound must lie in \(0, 1\], not 1\.5"),
    (ALL, {"dropouts": (0.2, -0.1)}, r"a dropout rate must lie in \[0, 1\), not -0\.1"),
    (("transfer", "overlap"), {"dropouts": (1.0,)}, r"must lie in \[0, 1\), not 1\.0"),
    (("transfer", "randomised"), {"dropouts": ()}, r"dropouts must not be \(\)"),
    (ALL, {"substitutes": ()}, "at least one substitute"),
    (ALL, {"victims": ()}, r"victims must not be \(\)|no trials"),
    (("transfer", "randomised"), {"objectives": ()}, "no trials"),
    (
        ("transfer", "randomised"),
        {"procedure.objective": "bullseye"},
        r"set objectives=\('bullseye',\) instead",
    ),
    (ALL, {"pretraining.crop_padding": 16}, "crop_padding of 16 pixels is too much"),
    (("end_to_end",), {"whole_network.crop_padding": 16}, "crop_padding of 16 pixels is too much"),
    (("randomised",), {"watch_every": 0}, "watch_every must be at least 1, not 0"),
    (("end_to_end",), {"tested": 0}, "tested must be at least 1, not 0"),
    (
        ("transfer", "randomised"),
        {"image_size": 2, "substitutes": ("resnet8", "densenet22"), "victims": ("resnet8",)},
        r"a substitute cannot take images of \(2, 2\) pixels",
    ),
    (
        ALL,
        {"image_size": 2, "substitutes": ("resnet8",), "victims": ("resnet8", "densenet22")},
        r"densenet22 cannot take images of \(2, 2\) pixels",
    ),
    (("transfer",), {"victims": ("two_layer_cnn",)}, "two_layer_cnn does not end in a linear"),
    (("transfer",), {"victims": ("densenet22",), "width": 0}, "at least 1 channel wide, not 0"),
    (("transfer", "overlap"), {"pretraining_per_class": 0}, "cannot take 0 images"),
    (("transfer",), {"fine_tuning_per_class": 0}, "cannot take 0 images"),
    (("transfer",), {"pool_from": 140}, "not the 140 . 10 asked for"),
    (("limits", "end_to_end"), {"dataset": "digit"}, "known: digits, mnist"),
]


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        pytest.param(name, options, told, id=f"{name}-{options}")
        for names, options, told in REFUSED
        for name in names
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_trained_or_crafted(
    name, options, told, store, nothing_made, untouched
):
    def attempt():
        config = configure(name, **options)
        run(EXPERIMENTS[f"convex_polytope/{name}"], config, store=store, device="cpu")

    with pytest.raises(PoisonkitError, match=f"(?s){told}"):
        attempt()
    assert not list(store.cache.rglob("*.json"))


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("end_to_end", {"attacks": ("first layer",)}, "last layer"),
        ("transfer", {"objectives": ("cube",)}, "polytope, collision"),
        ("transfer", {"procedure.epsilon": 0.0}, "epsilon must lie in"),
        ("transfer", {"procedure.iterations": 0}, "at least 1 iteration"),
        ("transfer", {"procedure.target_mask": "never"}, "once, every, without"),
    ],
)
def test_what_no_configuration_can_be_is_refused_with_what_it_can(name, options, told):
    with pytest.raises(PoisonkitError, match=told):
        configure(name, **options)
