"""One step of gradient descent, taken, and differentiated by the images it was taken on.

Attacks on training ask how a change of the training images would change what the network
does after it has been trained on them. The answer for one step is exact: a mixed second
derivative, of the training loss by weights and images. Here it is had by double backward,
on a CPU 1.4 times faster with :mod:`poisonkit.attacks.batch_statistics` than without.
Forward-over-reverse gives the same numbers, more slowly; reverse-over-forward does so only
where batch normalisation is written out, since torch's own tangent of it takes mean and
variance for constants (`benchmarks/deep_confuse.py` compares them).
"""

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.dropout import _DropoutNd

from poisonkit.attacks.batch_statistics import Averages, normalising_by, use_batch_statistics
from poisonkit.attacks.convolutions import use_asked_derivatives
from poisonkit.errors import PoisonkitError

Parameters = dict[str, Tensor]
Objective = Callable[[Tensor, Tensor], Tensor]


def made_by(factory: Callable[[int], nn.Module], seed: int) -> nn.Module:
    """Return the surrogate that a factory makes from a seed, as a copy that may be changed.

    Raises
    ------
    PoisonkitError
        If it makes none, or one with weights that are not to be trained.
    """
    if isinstance(factory, nn.Module):
        raise PoisonkitError(
            "surrogate is a network, but should make one from a seed: surrogate=lambda seed: ..."
        )
    network = factory(seed)
    if not isinstance(network, nn.Module):
        raise PoisonkitError(f"surrogate should make a network, not {type(network).__name__}")
    if fixed := [name for name, value in network.named_parameters() if not value.requires_grad]:
        raise PoisonkitError(
            f"all weights of a surrogate are trained, but requires_grad is off for {fixed[0]}"
        )
    return copy.deepcopy(network)


def prepare(network: nn.Module) -> None:
    """Make a network fit for steps that are unrolled, in place; names of parameters stay.

    It normalises by the batch at hand, and on CUDA its convolutions compute only the second
    derivatives that are asked for.

    Raises
    ------
    PoisonkitError
        If it has dropout: a step that is unrolled, and perhaps computed again, is one function.
    """
    for name, module in network.named_modules():
        if isinstance(module, _DropoutNd) and module.p:
            raise PoisonkitError(f"steps through dropout ({name}) cannot be unrolled")
    use_batch_statistics(network)
    if next(network.parameters()).device.type == "cuda":
        use_asked_derivatives(network)


def meta_gradient(
    network: nn.Module,
    parameters: Parameters,
    images: Tensor,
    y: Tensor,
    clean: Tensor,
    wanted: Tensor,
    *,
    rate: float,
) -> tuple[Tensor, Tensor]:
    """Differentiate the loss after a pseudo-update by the images of that update.

    With ``theta' = theta - rate * grad L(f_theta(images), y)`` this is the gradient of
    ``L(f_theta'(clean), wanted)`` by ``images``, the second derivative of the inner loss
    included (lines 9 and 10 of Deep Confuse's Algorithm 2).

    Parameters
    ----------
    parameters : theta, by the names of the network's parameters; none is changed.
    images, clean : float [B, C, H, W] in [0, 1].
    y, wanted : int64 [B], labels of the inner and of the outer loss.

    Returns
    -------
    The outer loss, and its gradient [B, C, H, W].
    """
    images = images.detach().requires_grad_()
    theta = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    inner = F.cross_entropy(functional_call(network, theta, (images,)), y)
    slopes = torch.autograd.grad(inner, list(theta.values()), create_graph=True)
    updated = {
        name: value.detach() - rate * slope
        for (name, value), slope in zip(theta.items(), slopes, strict=True)
    }
    outer = F.cross_entropy(functional_call(network, updated, (clean,)), wanted)
    (gradient,) = torch.autograd.grad(outer, images)
    return outer.detach(), gradient


def target_losses(
    network: nn.Module,
    parameters: Parameters,
    batches: Sequence[tuple[Tensor, Tensor]],
    targets: Tensor,
    wanted: Tensor,
    *,
    rate: float,
    objective: Objective = F.cross_entropy,
    averages: Averages | None = None,
) -> Tensor:
    """Return the loss on targets before and after each of K unrolled steps of gradient descent.

    The targets are never trained on. Unless they are normalised by ``averages``, they are part
    of every batch when it is normalised: the network at step i sees batch i and the targets
    together, its training loss is that of the batch alone. So the losses of K steps need K + 1
    batches.

    Parameters
    ----------
    parameters : theta, by the names of the network's parameters; none is changed.
    batches : K + 1 pairs of images [B, C, H, W] in [0, 1] and labels [B]. What comes before
        the images in a graph is reached by the gradient of the losses, the second derivatives
        of the training losses included.
    targets, wanted : [T, C, H, W], and the labels int64 [T] that they shall be given.
    objective : of logits [T, classes] and ``wanted``.
    averages : what targets are normalised by, if not together with the batches.

    Returns
    -------
    float [K + 1]; the first one does not depend on the images' effect on the training.
    """
    theta = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    losses = []
    for number, (x, y) in enumerate(batches):
        on = number < len(batches) - 1
        logits, answers = _logits(network, theta, x, targets, averages, trained_on=on)
        losses.append(objective(answers, wanted))
        if on:
            inner = F.cross_entropy(logits, y)
            slopes = torch.autograd.grad(inner, list(theta.values()), create_graph=True)
            theta = {
                name: value - rate * slope
                for (name, value), slope in zip(theta.items(), slopes, strict=True)
            }
    return torch.stack(losses)


def _logits(
    network: nn.Module,
    theta: Parameters,
    x: Tensor,
    targets: Tensor,
    averages: Averages | None,
    *,
    trained_on: bool,
) -> tuple[Tensor, Tensor]:
    """Return the logits of a batch, none where only the targets' are needed, and theirs."""
    if averages is None:
        logits = functional_call(network, theta, (torch.cat([x, targets]),))
        return logits[: len(x)], logits[len(x) :]
    logits = functional_call(network, theta, (x,)) if trained_on else targets.new_empty(0)
    with normalising_by(network, averages):
        return logits, functional_call(network, theta, (targets,))


def target_slope(
    network: nn.Module,
    parameters: Parameters,
    batches: Sequence[tuple[Tensor, Tensor]],
    targets: Tensor,
    wanted: Tensor,
    *,
    rate: float,
    weights: Sequence[float],
    objective: Objective = F.cross_entropy,
    averages: Averages | None = None,
) -> tuple[Tensor, Tensor]:
    """Differentiate a weighted sum of :func:`target_losses` with one step's graph at a time.

    The steps are taken without a graph, and each is computed once more on the way back, so
    that K of them need the memory of one, and K more sets of weights. The arguments are those
    of :func:`target_losses`.

    Parameters
    ----------
    weights : K + 1 factors, one for each loss.

    Returns
    -------
    The losses [K + 1], and the gradient of their sum by the first batch's images [B, C, H, W].
    """
    theta = {name: value.detach().clone() for name, value in parameters.items()}
    path = [theta]
    for x, y in batches[:-1]:
        theta = {name: value.clone() for name, value in theta.items()}
        beside = targets if averages is None else None
        descend(network, theta, x.detach(), y, rate=rate, beside=beside)
        path.append(theta)
    losses: list[Tensor] = []
    flow: list[Tensor] = []
    first = batches[0][0].detach().requires_grad_()
    for number in reversed(range(len(batches))):
        x, y = batches[number]
        x = first if number == 0 else x.detach()
        own = {name: value.requires_grad_() for name, value in path.pop().items()}
        logits, answers = _logits(network, own, x, targets, averages, trained_on=bool(flow))
        loss = objective(answers, wanted)
        losses.append(loss.detach())
        total = weights[number] * loss
        if flow:
            inner = F.cross_entropy(logits, y)
            slopes = torch.autograd.grad(inner, list(own.values()), create_graph=True)
            pairs = zip(slopes, flow, strict=True)
            total = total - rate * torch.stack([(s * f).sum() for s, f in pairs]).sum()
        if number == 0:
            (slope,) = torch.autograd.grad(total, first)
            break
        back = torch.autograd.grad(total, list(own.values()))
        flow = [b + f for b, f in zip(back, flow, strict=True)] if flow else list(back)
    return torch.stack(losses[::-1]), slope


def descend(
    network: nn.Module,
    parameters: Parameters,
    x: Tensor,
    y: Tensor,
    *,
    rate: float,
    beside: Tensor | None = None,
) -> Tensor:
    """Take one step of plain gradient descent in place, and return the loss before it.

    Parameters
    ----------
    beside : images that are part of the batch when it is normalised, and not trained on.
    """
    theta = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    batch = x if beside is None else torch.cat([x, beside])
    loss = F.cross_entropy(functional_call(network, theta, (batch,))[: len(x)], y)
    slopes = torch.autograd.grad(loss, list(theta.values()))
    for value, slope in zip(parameters.values(), slopes, strict=True):
        value.sub_(slope, alpha=rate)
    return loss.detach()
