"""Convolution that is differentiated twice: torch's own, and finite differences."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from poisonkit.attacks.convolutions import Convolution, use_asked_derivatives
from poisonkit.attacks.unrolled import meta_gradient, prepare
from poisonkit.models import create

LAYERS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False},
    {"kernel_size": (1, 2), "stride": (2, 1)},
    {"kernel_size": 2, "dilation": 2, "groups": 2},
]


def _layer(options: dict[str, Any]) -> tuple[nn.Conv2d, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Conv2d(2, 4, **options).double()
        return layer, torch.randn(3, 2, 5, 4, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_both_derivatives_agree_with_finite_differences(options):
    layer, x = _layer(options)
    own = Convolution(layer)
    names = [name for name, _ in own.named_parameters()]

    def of(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(own, dict(zip(names, values, strict=True)), (x,)).sin()

    inputs = (x, *(value.detach().clone().requires_grad_() for value in own.parameters()))
    assert torch.autograd.gradcheck(of, inputs)
    assert torch.autograd.gradgradcheck(of, inputs)


@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_the_second_derivative_is_the_one_that_torch_puts_together(options):
    layer, x = _layer(options)
    found = []
    for module in (layer, Convolution(layer)):
        inputs = [x, *layer.parameters()]
        first = torch.autograd.grad(module(x).exp().mean(), inputs, create_graph=True)
        total = sum((slope**3).sum() for slope in first)
        found.append([*first, *torch.autograd.grad(total, inputs)])
    for expected, own in zip(*found, strict=True):
        torch.testing.assert_close(own, expected)


class LargestKernel(TorchDispatchMode):
    """Watches how large the kernels are that anything is convolved with."""

    side = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.side = max(self.side, *args[1].shape[2:])
        return func(*args, **(kwargs or {}))


def test_a_meta_gradient_takes_no_kernel_larger_than_the_layers(make_images):
    """And it is the one that torch's own convolution gives."""
    images = make_images(6, size=(16, 16))
    network = create("small_cnn", like=images, seed=0).double()
    prepare(network)
    asked = copy.deepcopy(network)
    use_asked_derivatives(asked)
    assert any(isinstance(module, Convolution) for module in asked.modules())
    theta = dict(asked.named_parameters())
    assert list(theta) == [name for name, _ in network.named_parameters()]
    x = images.x.double() / 255
    noisy = (x + 0.1 * x.sin()).clamp(0, 1)
    expected = meta_gradient(network, theta, noisy, images.y, x, images.y, rate=0.1)
    with LargestKernel() as watched:
        found = meta_gradient(asked, theta, noisy, images.y, x, images.y, rate=0.1)
    torch.testing.assert_close(found, expected)
    assert 1 <= watched.side <= 5


def test_convolutions_that_pad_otherwise_are_left_alone():
    network = nn.Sequential(
        nn.Conv2d(1, 1, 3, padding="same"), nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")
    )
    use_asked_derivatives(network)
    assert all(type(module) is nn.Conv2d for module in network)


def test_on_a_cpu_networks_that_are_unrolled_keep_torchs_convolutions(make_images):
    network = create("small_cnn", like=make_images(6), seed=0)
    prepare(network)
    assert not any(isinstance(module, Convolution) for module in network.modules())


@pytest.mark.gpu
def test_on_a_gpu_the_meta_gradient_is_that_of_the_cpu(make_images):
    images = make_images(32, size=(16, 16))
    slopes = []
    for device in ("cpu", "cuda"):
        network = create("small_cnn", like=images.to(device), seed=0).double()
        prepare(network)
        theta = dict(network.named_parameters())
        x, y = images.x.to(device).double() / 255, images.y.to(device)
        _, slope = meta_gradient(network, theta, x.square(), y, x, y, rate=0.1)
        slopes.append(slope.cpu())
    torch.testing.assert_close(*slopes)
