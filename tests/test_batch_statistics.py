"""Batch normalisation that is differentiated twice: torch's own, and finite differences."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from poisonkit.attacks.batch_statistics import BatchStatistics, use_batch_statistics
from poisonkit.models import create
from poisonkit.models.published import PUBLISHED


def _layer(channels, generator):
    layer = nn.BatchNorm2d(channels).double()
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2, generator=generator)
        layer.bias.uniform_(-1, 1, generator=generator)
    return layer


def _inputs(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layer = _layer(shape[1], generator)
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    return layer, x.requires_grad_()


@pytest.mark.parametrize("shape", [(4, 3, 2, 3), (6, 2, 1, 1), (3, 1, 4, 4)])
def test_both_derivatives_agree_with_finite_differences(shape):
    layer, x = _inputs(shape)
    own = BatchStatistics(layer)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()

    def of(x, weight, bias):
        return functional_call(own, {"weight": weight, "bias": bias}, (x,)).sin()

    inputs = (x, weight.requires_grad_(), bias.requires_grad_())
    assert torch.autograd.gradcheck(of, inputs)
    assert torch.autograd.gradgradcheck(of, inputs)


@pytest.mark.parametrize("seed", range(3))
def test_the_second_derivative_is_the_one_that_torch_puts_together(seed):
    layer, x = _inputs((5, 4, 3, 3), seed)
    found = []
    for module in (layer, BatchStatistics(layer)):
        parameters = [x, layer.weight, layer.bias]
        first = torch.autograd.grad(module(x).exp().mean(), parameters, create_graph=True)
        total = sum((slope**3).sum() for slope in first)
        found.append([*first, *torch.autograd.grad(total, parameters)])
    for expected, own in zip(*found, strict=True):
        torch.testing.assert_close(own, expected)


def test_the_layout_of_the_input_does_not_matter():
    layer, x = _inputs((5, 4, 3, 3))
    slopes = []
    for memory in (torch.contiguous_format, torch.channels_last):
        own = x.detach().contiguous(memory_format=memory).requires_grad_()
        [first] = torch.autograd.grad(
            BatchStatistics(layer)(own).exp().mean(), [own], create_graph=True
        )
        slopes.append(torch.autograd.grad((first**3).sum(), own)[0])
    torch.testing.assert_close(*slopes)


def test_a_network_keeps_its_parameters_and_answers_as_in_training(make_images):
    images = make_images(50)
    network, other = (create("small_cnn", like=images, seed=0) for _ in range(2))
    use_batch_statistics(network)
    other.train()
    x = images.x.float() / 255
    names = [[name for name, _ in own.named_parameters()] for own in (network, other)]
    assert names[0] == names[1]
    torch.testing.assert_close(network(x), other(x))
    assert not [name for name, _ in network.named_buffers() if "running" in name]


@pytest.mark.parametrize("name", [*PUBLISHED])
def test_every_published_network_answers_as_in_training(name, make_images):
    """DPN92's normalisation has its activation in the same part."""
    images = make_images(8, size=(32, 32))
    network, other = (create(name, like=images, seed=0, width=4) for _ in range(2))
    for one in (network, other):
        for part in one.modules():
            if isinstance(part, nn.modules.dropout._DropoutNd):
                part.p = 0.0
    use_batch_statistics(network)
    x = images.x.float() / 255
    torch.testing.assert_close(network(x), other.train()(x), atol=1e-4, rtol=1e-4)


def test_normalisation_without_a_weight_keeps_no_averages_either():
    network = nn.Sequential(nn.BatchNorm2d(3, affine=False))
    use_batch_statistics(network)
    before = network[0].running_mean.clone()
    network(torch.randn(4, 3, 2, 2))
    assert torch.equal(network[0].running_mean, before)
