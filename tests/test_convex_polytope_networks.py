"""The substitutes and victims of the Convex Polytope experiments, and the layers taken of them."""

from typing import Any

import pytest
import torch
from convex_polytope_laboratory import EIGHT, configure, into_linear
from laboratory import stand_in_for_cifar10
from torch import Tensor, nn

from poisonkit.data import load
from poisonkit.errors import PoisonkitError
from poisonkit.experiments.convex_polytope import steps
from poisonkit.experiments.convex_polytope.data import begin, taps_of
from poisonkit.experiments.convex_polytope.setting import S2
from poisonkit.experiments.convex_polytope.steps import substitutes, victim
from poisonkit.experiments.networks import Context
from poisonkit.images import ImageSet
from poisonkit.models import Classifier, create, features

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
    pictures, digits = stand_in_for_cifar10(1, seed=0), load("digits").first_per_class(1)
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
