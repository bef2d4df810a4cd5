"""What may be done to each batch before it is trained on: crops, noise, or attacks on it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poisonkit.models import evaluating


def random_resized_crops(x: Tensor, *, seed: int) -> Tensor:
    """Return a part of each image, 8 to 100 % of its area, at random, enlarged to its size.

    Parameters
    ----------
    x : float [B, C, H, W] in [0, 1], as the result is.
    seed : of places, sizes and shapes; the caller's random state is left as it was.
    """
    from torchvision.transforms import RandomResizedCrop

    crop = RandomResizedCrop(x.shape[2:])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        parts = torch.stack([crop(image) for image in x]).clamp(0, 1)
    return parts.contiguous(memory_format=torch.channels_last)


def add_gaussian_noise(network: nn.Module, x: Tensor, y: Tensor, *, deviation: float) -> Tensor:
    """Return images in [0, 1] with normal noise of that standard deviation, clipped."""
    return (x + deviation * torch.randn_like(x)).clamp(0, 1)


def attack_linf(
    network: nn.Module, x: Tensor, y: Tensor, *, epsilon: float, steps: int, rate: float
) -> Tensor:
    """Return images within ``epsilon`` of ``x`` on which the network errs more.

    Projected gradient ascent from a random start (Madry et al., 2018); a network trained
    on such images is *adversarially trained*.

    Parameters
    ----------
    network : its mode, weights and gradients are left as they are.
    x : float [B, C, H, W] in [0, 1].
    steps, rate : each step moves every value by ``rate`` along the sign of its slope.
    """
    moved = (x + epsilon * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    # In training mode each look at a batch would move the running averages.
    with evaluating(network):
        for _ in range(steps):
            moved = moved.detach().requires_grad_()
            (slope,) = torch.autograd.grad(F.cross_entropy(network(moved), y), moved)
            moved = (moved + rate * slope.sign()).clamp(x - epsilon, x + epsilon).clamp(0, 1)
    return moved.detach()
