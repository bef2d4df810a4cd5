"""Least squares on the simplex: the point of a polytope that is nearest to a target.

Convex Polytope asks, for each network and target, with which weights the poisons'
features come closest to the target's. Many such problems, each with a handful of
unknowns, are solved together.
"""

import torch
from torch import Tensor

from poisonkit.errors import PoisonkitError

#: Steps between two looks at whether all problems are solved; on a GPU a look waits for it.
LOOK_EVERY = 10


def project_on_simplex(c: Tensor) -> Tensor:
    """Return the nearest points with entries of at least 0 that sum to 1.

    Parameters
    ----------
    c : float [..., k].
    """
    ordered = c.sort(-1, descending=True).values
    excess = ordered.cumsum(-1) - 1
    counts = torch.arange(1, c.shape[-1] + 1, device=c.device, dtype=c.dtype)
    # At least one entry is kept; where 1 is lost beside a huge entry, rounding says none.
    kept = (ordered * counts > excess).sum(-1, keepdim=True).clamp_min(1)
    return (c - excess.gather(-1, kept - 1) / kept).clamp_min(0)


def convex_coefficients(
    vertices: Tensor,
    target: Tensor,
    *,
    start: Tensor | None = None,
    tolerance: float = 1e-8,
    most_steps: int = 10_000,
) -> Tensor:
    """Return the convex combination of each problem's vertices that is nearest to its target.

    Minimises ``|target - sum_j c_j vertices_j|^2 / 2`` subject to ``c_j >= 0`` and
    ``sum_j c_j = 1`` (the inner problem of Convex Polytope's equation 3) by
    forward-backward splitting: a gradient step of size 1 / L, L the largest eigenvalue
    of the Gram matrix, and a projection on the simplex, accelerated and restarted where
    the acceleration overshoots.

    Parameters
    ----------
    vertices : float [..., k, d], features of k poisons in any number of problems.
    target : float [..., d].
    start : [..., k], coefficients to begin with, for instance those of the iteration
        before; by default all equal.
    tolerance : stop when no problem's value can be lowered by more than this share of
        ``|target|^2 / 2``; the duality gap says so.
    most_steps : stop after so many steps in any case.

    Returns
    -------
    The coefficients [..., k], in the type of ``vertices``, without a gradient.

    Raises
    ------
    PoisonkitError
        If the shapes do not fit, or a feature is not finite.
    """
    if vertices.shape[:-2] != target.shape[:-1] or vertices.shape[-1] != target.shape[-1]:
        raise PoisonkitError(
            f"vertices of shape {list(vertices.shape)} and targets of shape "
            f"{list(target.shape)} are not [..., k, d] and [..., d]"
        )
    # Of k x k numbers only: double precision costs nothing here, and near-equal vertices
    # need it.
    a, b = vertices.detach().double(), target.detach().double()
    found = solve(
        a @ a.mT,
        (a @ b[..., None]).squeeze(-1),
        (b * b).sum(-1),
        start=None if start is None else start.detach().double(),
        tolerance=tolerance,
        most_steps=most_steps,
    )
    return found.to(vertices.dtype)


def solve(
    gram: Tensor,
    products: Tensor,
    squares: Tensor,
    *,
    start: Tensor | None = None,
    tolerance: float = 1e-8,
    most_steps: int = 10_000,
) -> Tensor:
    """Solve the same problems from inner products, so that features may differ in length.

    Parameters
    ----------
    gram, products, squares : float64, inner products of the vertices [..., k, k], of the
        vertices with the target [..., k], of the target with itself [...].
    """
    if not bool(torch.isfinite(gram).all() & torch.isfinite(products).all()):
        raise PoisonkitError("the features hold NaN or infinite values")
    limit = 0.5 * tolerance * squares
    lipschitz = torch.linalg.eigvalsh(gram)[..., -1:].clamp_min(torch.finfo(gram.dtype).tiny)
    c = torch.zeros_like(products) if start is None else start
    c = project_on_simplex(c)
    ahead, momentum = c, torch.ones_like(lipschitz)
    for step in range(most_steps):
        slope = _slope(gram, products, ahead)
        moved = project_on_simplex(ahead - slope / lipschitz)
        overshot = ((ahead - moved) * (moved - c)).sum(-1, keepdim=True) > 0
        momentum = torch.where(overshot, 1.0, momentum)
        following = (1 + (1 + 4 * momentum**2).sqrt()) / 2
        weight = torch.where(overshot, 0.0, (momentum - 1) / following)
        ahead, c, momentum = moved + weight * (moved - c), moved, following
        if step % LOOK_EVERY == 0 and bool((duality_gap(gram, products, c) <= limit).all()):
            break
    return c


def duality_gap(gram: Tensor, products: Tensor, c: Tensor) -> Tensor:
    """Return by how much the value at ``c`` exceeds the least one, at most.

    Parameters
    ----------
    gram, products : inner products of the vertices [..., k, k], and with the target [..., k].
    c : a point of the simplex [..., k].
    """
    slope = _slope(gram, products, c)
    return (slope * c).sum(-1) - slope.amin(-1)


def _slope(gram: Tensor, products: Tensor, c: Tensor) -> Tensor:
    return (gram @ c[..., None]).squeeze(-1) - products
