"""What victims do to their batches: normal noise, and bounded attacks on their own network."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poisonkit.augmentation import add_gaussian_noise, attack_linf, random_resized_crops


@pytest.fixture
def network() -> nn.Module:
    """A network with all that could be disturbed: running averages, dropout, mixed modes."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = nn.Sequential(
            nn.Conv2d(2, 5, 3, padding=1),
            nn.BatchNorm2d(5),
            nn.Tanh(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(5 * 36, 4),
        )
    network[3].eval()
    return network


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(16, 2, 6, 6, generator=generator)
    x[0], x[1] = 0.0, 1.0
    return x, torch.randint(0, 4, (16,), generator=generator)


def loss_on(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """The loss in eval mode, written out; the network comes back as it was."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    with torch.no_grad():
        logits = network(x).double()
    for module, training in modes.items():
        module.training = training
    return float((logits.exp().sum(1).log() - logits[torch.arange(len(y)), y]).mean())


# Noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("deviation", [0.01, 0.1])
def test_gaussian_noise_has_the_deviation_asked_for(deviation):
    torch.manual_seed(0)
    x, y = torch.full((50, 3, 20, 20), 0.5), torch.zeros(50, dtype=torch.int64)
    noise = add_gaussian_noise(nn.Identity(), x, y, deviation=deviation) - x
    count = noise.numel()
    # Four standard errors of the mean, the deviation and the share within one deviation.
    assert abs(noise.mean()) < 4 * deviation / math.sqrt(count)
    assert float(noise.std()) == pytest.approx(deviation, rel=4 / math.sqrt(2 * count))
    within = float((noise.abs() < deviation).double().mean())
    expected = math.erf(1 / math.sqrt(2))
    assert within == pytest.approx(expected, abs=4 * math.sqrt(expected / count))


def test_gaussian_noise_is_clipped_to_the_range_of_images():
    torch.manual_seed(0)
    y = torch.zeros(50, dtype=torch.int64)
    for end in (0.0, 1.0):
        x = torch.full((50, 3, 20, 20), end)
        noisy = add_gaussian_noise(nn.Identity(), x, y, deviation=0.2)
        assert 0 <= noisy.min() < noisy.max() <= 1
        # Half of the values would have left the range.
        stayed = float((noisy == end).double().mean())
        assert stayed == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(x.numel()))


def test_gaussian_noise_leaves_the_images_given_alone_and_repeats_by_seed(batch):
    x, y = batch
    before, found = x.clone(), []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(add_gaussian_noise(nn.Identity(), x, y, deviation=0.1))
    assert torch.equal(x, before)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


# Attacks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("rate", [0.25, 3.0])
def test_an_attack_stays_within_epsilon_and_the_range_of_images(network, batch, epsilon, rate):
    x, y = batch
    torch.manual_seed(0)
    moved = attack_linf(network, x, y, epsilon=epsilon, steps=3, rate=rate * epsilon)
    rounding = 1e-6
    assert (moved - x).abs().max() <= epsilon + rounding
    assert (moved - x).abs().max() > 0.9 * epsilon
    assert 0 <= moved.min() < moved.max() <= 1
    assert not moved.requires_grad


@pytest.mark.parametrize("seed", range(5))
def test_an_attack_raises_the_loss_more_than_its_random_start_does(network, batch, seed):
    x, y = batch
    losses = []
    for steps in (0, 7):
        torch.manual_seed(seed)
        moved = attack_linf(network, x, y, epsilon=0.1, steps=steps, rate=0.025)
        losses.append(loss_on(network, moved, y))
    assert losses[1] > max(losses[0], loss_on(network, x, y)) + 0.1


@pytest.mark.parametrize("has_gradients", [False, True])
def test_an_attack_leaves_the_network_and_the_images_as_they_were(network, batch, has_gradients):
    x, y = batch
    if has_gradients:
        F.cross_entropy(network(x), y).backward()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    assert len(set(modes)) == 2
    gradients = [None if p.grad is None else p.grad.clone() for p in network.parameters()]
    images = x.clone()
    attack_linf(network, x, y, epsilon=0.1, steps=2, rate=0.05)
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert [module.training for module in network.modules()] == modes
    for parameter, before in zip(network.parameters(), gradients, strict=True):
        assert parameter.requires_grad
        if before is None:
            assert parameter.grad is None
        else:
            assert torch.equal(parameter.grad, before)
    assert torch.equal(x, images)
    assert not x.requires_grad


def test_the_seed_decides_an_attack(network, batch):
    x, y = batch
    found = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        found.append(attack_linf(network, x, y, epsilon=0.1, steps=2, rate=0.03))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_without_steps_an_attack_is_a_point_drawn_evenly_from_the_ball():
    torch.manual_seed(0)
    x, y = torch.full((50, 3, 20, 20), 0.5), torch.zeros(50, dtype=torch.int64)
    moved = attack_linf(nn.Flatten(), x, y, epsilon=0.1, steps=0, rate=0.1) - x
    count = moved.numel()
    assert moved.abs().max() <= 0.1 + 1e-6
    assert abs(moved.mean()) < 4 * 0.1 / math.sqrt(3 * count)
    for share in (0.25, 0.5, 0.75):
        inside = float((moved.abs() < share * 0.1).double().mean())
        assert inside == pytest.approx(share, abs=4 * 0.5 / math.sqrt(count))


def linear(seed: int, classes: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(72, classes))


def test_one_step_on_a_linear_model_is_the_sign_step_in_closed_form(batch):
    x, y = batch
    model = linear(7, classes=4)
    torch.manual_seed(8)
    moved = attack_linf(model, x, y, epsilon=0.1, steps=1, rate=0.04)
    torch.manual_seed(8)
    start = (x + 0.1 * (2 * torch.rand(x.shape) - 1)).clamp(0, 1)
    weight, bias = model[1].weight.detach().double(), model[1].bias.detach().double()
    # The slope of the cross-entropy by the logits is softmax less one-hot.
    logits = start.flatten(1).double() @ weight.T + bias
    by_logits = logits.softmax(1) - F.one_hot(y, 4)
    signs = (by_logits @ weight).sign().view_as(x)
    expected = torch.minimum(torch.maximum(start + 0.04 * signs, x - 0.1), x + 0.1).clamp(0, 1)
    assert (signs == 0).sum() == 0
    assert torch.allclose(moved.double(), expected.double(), atol=1e-6)


def test_on_a_linear_model_with_two_classes_enough_steps_reach_the_worst_corner(batch):
    x, y = batch[0], batch[1] % 2
    model = linear(9, classes=2)
    moved = attack_linf(model, x, y, epsilon=0.1, steps=9, rate=0.03)
    difference = model[1].weight.detach()[1] - model[1].weight.detach()[0]
    towards = torch.where(y[:, None] == 0, difference, -difference).sign().view_as(x)
    assert torch.allclose(moved, (x + 0.1 * towards).clamp(0, 1), atol=1e-6)


# Crops ----------------------------------------------------------------------------------------


def ramps(count: int, size: int) -> torch.Tensor:
    """Images whose three channels are the column, the line, and a constant, as shares of 1."""
    along = (torch.arange(size) + 0.5) / size
    columns, lines = along.expand(size, size), along[:, None].expand(size, size)
    image = torch.stack([columns, lines, torch.full((size, size), 0.4)])
    return image.expand(count, 3, size, size).contiguous()


def test_a_crop_is_a_part_of_the_image_enlarged_to_its_size():
    size = 48
    found = random_resized_crops(ramps(200, size), seed=3)
    assert found.shape == (200, 3, size, size)
    torch.testing.assert_close(found[:, 2], torch.full_like(found[:, 2], 0.4))
    inner = slice(size // 8, -size // 8)  # at the edges interpolation has no neighbours
    width = found[:, 0].diff(dim=2)[:, inner, inner].mean((1, 2)) * size
    height = found[:, 1].diff(dim=1)[:, inner, inner].mean((1, 2)) * size
    # Straight ramps: no part is mirrored, and each is seen at one scale.
    assert float(found[:, 0].diff(dim=2).min()) > -1e-5
    assert float(found[:, 0].diff(dim=1).abs().max()) < 1e-5
    area, shape = width * height, width / height
    assert 0.06 < float(area.min()) < 0.2
    assert 0.8 < float(area.max()) <= 1.01
    assert 0.7 < float(shape.min()) < 0.85
    assert 1.2 < float(shape.max()) < 1.4
    middles = found[:, :2].mean((2, 3))
    assert float(middles.min()) < 0.35
    assert float(middles.max()) > 0.65


def test_a_crop_is_decided_by_its_seed_alone():
    x = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    state = torch.get_rng_state()
    first, again, other = (random_resized_crops(x, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert 0 <= float(first.min()) <= float(first.max()) <= 1
