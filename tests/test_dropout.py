"""Dropout within a network's units, as Convex Polytope's substitutes have it."""

import pytest
import torch
from torch import nn
from torchvision.models.googlenet import Inception

from poisonkit.attacks.unrolled import prepare
from poisonkit.errors import PoisonkitError
from poisonkit.models import create

#: Units and convolutions in each, so that dropout goes between the convolutions.
BETWEEN = {
    "resnet18": 8 * 1,
    "resnet50": 16 * 2,
    "senet18": 8 * 1,
    "resnext29_2x64d": 9 * 2,
    "dpn92": 30 * 2,
    # Its first unit has no convolution that widens.
    "mobilenet_v2": 1 + 16 * 2,
    "densenet121": 58 * 1,
    "googlenet": 9,
    "resnet8": 3,
    "preact_resnet8": 3,
    "small_cnn": 2,
    "compact_cnn": 3,
}


def dropouts(network: nn.Module) -> list[nn.Dropout]:
    return [module for module in network.modules() if isinstance(module, nn.Dropout)]


def narrow(name: str) -> dict[str, int]:
    return {"width": 8} if not name.endswith("cnn") else {"width": 4}


@pytest.mark.parametrize("name", BETWEEN)
def test_there_is_one_between_every_two_convolutions_of_a_unit(name, make_images):
    network = create(name, like=make_images(4, size=(16, 16)), seed=0, dropout=0.2, **narrow(name))
    assert [module.p for module in dropouts(network)] == [0.2] * BETWEEN[name]


@pytest.mark.parametrize("name", BETWEEN)
def test_without_it_the_network_is_what_it_would_be_with_it_turned_off(name, make_images):
    images = make_images(6, size=(16, 16))
    plain, with_dropout = (
        create(name, like=images, seed=3, dropout=rate, **narrow(name)) for rate in (0.0, 0.3)
    )
    assert not dropouts(plain)
    x = images.x.float() / 255
    with torch.no_grad():
        for network in (plain, with_dropout):
            network.train()
            for module in dropouts(network):
                module.eval()
        assert torch.equal(plain(x), with_dropout(x))


@pytest.mark.parametrize("name", BETWEEN)
def test_it_changes_what_the_network_answers_and_keeps_the_mean(name, make_images):
    images = make_images(3, size=(16, 16))
    network = create(name, like=images, seed=0, dropout=0.25, **narrow(name)).eval()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    first = dropouts(network)[0]
    first.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    for module in dropouts(network):
        module.train()
    torch.manual_seed(0)
    with torch.no_grad():
        one, other = network(images.x / 255), network(images.x / 255)
    assert not torch.equal(one, other)
    before, after = seen[0]
    kept = after != 0
    # Each value for itself, and those kept are scaled by 1 / (1 - p) (section 3.6).
    assert torch.allclose(after[kept], before[kept] / 0.75)
    share = float((kept & (before != 0)).sum() / (before != 0).sum())
    assert share == pytest.approx(0.75, abs=0.08)


def test_googlenets_comes_after_each_of_its_units(make_images):
    network = create("googlenet", like=make_images(4, size=(16, 16)), seed=0, dropout=0.2, width=8)
    units = [
        module
        for module in network.modules()
        if isinstance(module, nn.Sequential) and isinstance(module[0], Inception)
    ]
    followed = [unit for unit in units if len(unit) == 2 and isinstance(unit[1], nn.Dropout)]
    assert len(followed) == 9


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_a_rate_that_is_no_probability_is_refused(rate, make_images):
    with pytest.raises(PoisonkitError, match=r"dropout rate must lie in \[0, 1\)"):
        create("resnet8", like=make_images(4), seed=0, dropout=rate)


def test_steps_through_it_are_not_unrolled(make_images):
    """Computed again, a step would be another one; and nobody seeds what it draws."""
    images = make_images(4, size=(32, 32))
    prepare(create("resnet18", like=images, seed=0, width=4))
    with pytest.raises(PoisonkitError, match=r"dropout .* cannot be unrolled"):
        prepare(create("resnet18", like=images, seed=0, width=4, dropout=0.2))


def test_a_network_without_units_is_named(make_images):
    with pytest.raises(PoisonkitError, match="two_layer_cnn has no place for dropout"):
        create("two_layer_cnn", like=make_images(4, size=(16, 16)), seed=0, dropout=0.2)
