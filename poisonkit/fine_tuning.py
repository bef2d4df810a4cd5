"""Transfer learning: a new linear layer on the frozen features of a trained network.

Convex Polytope's victims are fine-tuned on 500 images of which 5 are poisons, once for
each target. Those trainings differ in 5 rows only, so all of them are done at a time: one
layer for each target, every step the same as if it were trained alone.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poisonkit.errors import PoisonkitError
from poisonkit.training import Recipe, mixed


def fresh_layer(like: nn.Linear, *, seed: int) -> nn.Linear:
    """Return a linear layer of that size with initial weights of its own, from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        layer = nn.Linear(like.in_features, like.out_features)
    return layer.to(like.weight.device)


def fit_linear(
    features: Tensor,
    labels: Tensor,
    layer: nn.Linear,
    recipe: Recipe,
    *,
    seed: int,
    replaced: Tensor | None = None,
    rows: Tensor | None = None,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Train one linear layer for each of T variants of a training set.

    Parameters
    ----------
    features : float [n, d], of the training set.
    labels : int64 [n], the same for all variants.
    layer : what every training starts from; it is left as it is.
    recipe : of which crops, flips and precision do not matter here.
    seed : of the order of the images, the same for all variants.
    replaced : float [T, k, d], the features that take the place of ``rows`` in each variant.
    rows : int64 [k].
    kept : bool [T, n], the images that each variant has; all, unless given.

    Returns
    -------
    Weights [T, classes, d] and biases [T, classes].
    """
    if len(features) != len(labels):
        raise PoisonkitError(f"{len(features)} rows of features, but {len(labels)} labels")
    if (replaced is None) != (rows is None):
        raise PoisonkitError("give both the rows and what replaces them, or neither")
    count = len(replaced) if replaced is not None else 1 if kept is None else len(kept)
    weight = layer.weight.detach().repeat(count, 1, 1).requires_grad_()
    bias = layer.bias.detach().repeat(count, 1).requires_grad_()
    groups = [
        {"params": [weight], "weight_decay": recipe.weight_decay},
        {"params": [bias], "weight_decay": 0.0},
    ]
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "adam":
        optimizer = torch.optim.Adam(groups, lr=recipe.learning_rate)
    else:
        optimizer = torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum)
    place = torch.full((len(features),), -1, device=features.device)
    if rows is not None:
        place[rows] = torch.arange(len(rows), device=features.device)
    steps = math.ceil(len(features) / recipe.batch_size)
    number = 0
    for epoch in range(recipe.epochs):
        generator = torch.Generator().manual_seed(mixed(seed, epoch))
        order = torch.randperm(len(features), generator=generator).to(features.device)
        for chosen in order.tensor_split(steps):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate_at(number / (recipe.epochs * steps))
            x = features[chosen].expand(count, -1, -1)
            if replaced is not None:
                changed = torch.nonzero(place[chosen] >= 0).flatten()
                x = x.index_copy(1, changed, replaced[:, place[chosen[changed]]])
            logits = torch.baddbmm(bias[:, None], x, weight.mT)
            losses = F.cross_entropy(
                logits.flatten(0, 1), labels[chosen].repeat(count), reduction="none"
            ).view(count, -1)
            # Each variant's own mean; the sum over them keeps their gradients apart.
            present = torch.ones_like(losses) if kept is None else kept[:, chosen].float()
            loss = ((losses * present).sum(1) / present.sum(1).clamp_min(1)).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            number += 1
    return weight.detach(), bias.detach()


def classify(weight: Tensor, bias: Tensor, features: Tensor) -> Tensor:
    """Return the labels that each of T layers gives, int64 [T, n].

    Parameters
    ----------
    features : [n, d], the same for all, or [T, n, d].
    """
    x = features.expand(len(weight), -1, -1) if features.ndim == 2 else features
    return torch.baddbmm(bias[:, None], x, weight.mT).argmax(-1)
