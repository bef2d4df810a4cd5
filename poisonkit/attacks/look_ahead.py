"""How MetaPoison looks ahead: what a change of the poisons would do to networks in training.

Networks that are still learning are taken a few steps further on batches that hold poisons,
and the loss on the target after these steps is differentiated by the poisons' pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from poisonkit.attacks.meta_procedure import OBJECTIVES, Procedure
from poisonkit.attacks.surrogates import Surrogate, Surrogates
from poisonkit.attacks.unrolled import target_losses, target_slope


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What surrogates saw ahead, over some of the batches of their epochs.

    Attributes
    ----------
    losses : the target's loss before and after unrolling, summed over ``batches``.
    batches : that held poisons, of all surrogates.
    slope : [n, C, H, W], the meta-gradient: a sum over the batches, a mean over the surrogates.
    """

    losses: Tensor
    batches: int
    slope: Tensor


def look_ahead(
    images: Tensor,
    surrogates: Surrogates,
    clean: Tensor,
    y: Tensor,
    place: Tensor,
    targets: Tensor,
    wanted: Tensor,
    procedure: Procedure,
    *,
    orders: list[list[Tensor]],
    batches: range,
) -> Seen:
    """Let every surrogate go through some batches of its epoch, looking ahead from each.

    The surrogates take turns. On a CPU ``torch.func.vmap`` over their stacked weights gives the
    same gradients five times more slowly (`benchmarks/metapoison.py`).

    Parameters
    ----------
    images : float [n, C, H, W], the poisons as they are.
    clean, y : all training images, float [N, C, H, W], and their labels.
    place : int64 [N], the poison that each training image becomes, or -1.
    targets, wanted : [T, C, H, W], and the labels int64 [T] that they shall be given.
    orders : the rows of each batch of this epoch, for each surrogate.
    batches : consecutive ones; with the epoch's last, surrogates grow an epoch older.
    """
    slope = torch.zeros_like(images)
    seen = torch.zeros(2, device=images.device)
    count = 0
    for number, order in enumerate(orders):
        surrogate = surrogates.at(number)
        for first in batches:
            rows = order[first]
            poisoned = place[rows] >= 0
            if bool(poisoned.any()):
                # The window goes on at the beginning of the epoch where it reaches its end.
                window = [
                    order[(first + ahead) % len(order)] for ahead in range(procedure.unroll + 1)
                ]
                found, own = _meta_gradient(
                    surrogate,
                    _unrolled_batches(window, clean, y, images, place, procedure),
                    poisoned,
                    targets,
                    wanted,
                    procedure,
                )
                slope.index_add_(0, place[rows[poisoned]], own)
                seen += torch.stack([found[0], _taken(found, procedure)])
                count += 1
            x = clean[rows]
            if procedure.trajectory == "poisoned":
                x = _with(clean, images, place, rows)
            surrogate.descend(x, y[rows])
        if batches.stop == len(order):
            surrogate.finish_epoch()
    return Seen(losses=seen, batches=count, slope=slope / procedure.surrogates)


def _unrolled_batches(
    window: list[Tensor],
    clean: Tensor,
    y: Tensor,
    images: Tensor,
    place: Tensor,
    procedure: Procedure,
) -> list[tuple[Tensor, Tensor]]:
    """Return the images and labels of a batch that holds poisons, and of those after it."""
    if procedure.later == "own":
        return [(_with(clean, images, place, rows), y[rows]) for rows in window]
    first, *later = window
    x = _with(clean, images, place, first)
    again = place[first] >= 0
    # A batch is in no order, so it does not matter which of its images give way.
    rest = [rows[int(again.sum()) :] for rows in later]
    return [
        (x, y[first]),
        *(
            (torch.cat([x[again], clean[rows]]), torch.cat([y[first][again], y[rows]]))
            for rows in rest
        ),
    ]


def _with(clean: Tensor, images: Tensor, place: Tensor, rows: Tensor) -> Tensor:
    """Return a batch of training images with the poisons among them in their places."""
    x = clean[rows]
    poisoned = place[rows] >= 0
    x[poisoned] = images[place[rows[poisoned]]]
    return x


def _taken(losses: Tensor, procedure: Procedure) -> Tensor:
    return losses[-1] if procedure.losses == "last" else losses[1:].mean()


def _meta_gradient(
    surrogate: Surrogate,
    batches: list[tuple[Tensor, Tensor]],
    poisoned: Tensor,
    targets: Tensor,
    wanted: Tensor,
    procedure: Procedure,
) -> tuple[Tensor, Tensor]:
    """Differentiate the target's loss by the pixels of the first batch's poisons.

    Poisons in the later batches are as they are; no gradient goes to them.
    """
    rate, objective = surrogate.rate, OBJECTIVES[procedure.objective]
    network, parameters, averages = surrogate.network, surrogate.parameters, surrogate.averages
    if procedure.recompute:
        count = len(batches) - 1
        weights = (
            [0.0] + [1 / count] * count if procedure.losses == "all" else [0.0] * count + [1.0]
        )
        losses, slope = target_slope(
            network,
            parameters,
            batches,
            targets,
            wanted,
            rate=rate,
            weights=weights,
            objective=objective,
            averages=averages,
        )
        return losses, slope[poisoned]
    (x, y), *later = batches
    own = x[poisoned].requires_grad_()
    x = x.index_put((torch.nonzero(poisoned).flatten(),), own)
    losses = target_losses(
        network,
        parameters,
        [(x, y), *later],
        targets,
        wanted,
        rate=rate,
        objective=objective,
        averages=averages,
    )
    (slope,) = torch.autograd.grad(_taken(losses, procedure), own)
    return losses.detach(), slope
