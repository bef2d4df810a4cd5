"""What poisons are to do in the feature spaces of substitute networks, and the slope to it."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from poisonkit.bounds import check_epsilon
from poisonkit.devices import seed_device
from poisonkit.errors import PoisonkitError, unknown
from poisonkit.images import ImageSet
from poisonkit.models import Classifier, evaluating, tapped
from poisonkit.simplex import convex_coefficients, solve

OBJECTIVES = ("polytope", "collision", "bullseye")
Objective = Literal["polytope", "collision", "bullseye"]


@dataclass(frozen=True, kw_only=True)
class Procedure:
    """How poisons are crafted; the defaults are the paper's (section 4).

    Attributes
    ----------
    objective : ``polytope``, the distance from the target to the nearest convex
        combination of the poisons (equation 3); ``collision``, the distance of each poison
        (equation 2); or ``bullseye``, the distance of their mean.
    epsilon : bound of the change of each value on the [0, 1] scale.
    iterations : steps of Adam.
    learning_rate : of Adam, in units of ``unit``.
    unit : ``deviation``, the standard deviation of each channel, as in the released
        code; or ``pixels``, the [0, 1] scale.
    dropout : whether the substitutes' dropout is on while crafting (section 4).
    target_mask : ``once``, the target's features are read with one draw of the dropout,
        as in the released code; ``every``, with a new one in each iteration; or
        ``without``, with dropout off.
    pooled : what the released code makes of the polytope at features without pixels:
        ``polytope`` as written, or ``released``, one collision for each poison.
    tolerance : of the coefficients, see :func:`poisonkit.simplex.convex_coefficients`.
    """

    objective: Objective = "polytope"
    epsilon: float = 0.1
    iterations: int = 4000
    learning_rate: float = 0.04
    unit: Literal["deviation", "pixels"] = "deviation"
    dropout: bool = True
    target_mask: Literal["once", "every", "without"] = "once"
    pooled: Literal["polytope", "released"] = "polytope"
    tolerance: float = 1e-8

    def __post_init__(self) -> None:
        for name, known in (
            ("objective", OBJECTIVES),
            ("unit", ("deviation", "pixels")),
            ("target_mask", ("once", "every", "without")),
            ("pooled", ("polytope", "released")),
        ):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        check_epsilon(self.epsilon)
        if self.iterations < 1 or not self.learning_rate > 0:
            raise PoisonkitError("there must be at least 1 iteration, at a positive rate")


@dataclass(frozen=True, kw_only=True)
class Substitute:
    """A trained network that the poisons are crafted with, and the layers they are to surround.

    Attributes
    ----------
    network : see :func:`poisonkit.models.wrap` for one of your own.
    taps : names of parts, see :meth:`poisonkit.models.Classifier.module_at`; one for
        equation 3, several for equation 4.
    """

    network: Classifier
    taps: Sequence[str]


class Aims:
    """The targets' features, for each substitute one [T, d] a tap."""

    def __init__(
        self,
        substitutes: Sequence[Substitute],
        targets: ImageSet,
        procedure: Procedure,
        seed: int,
    ) -> None:
        self._x = targets.x.float() / 255
        self._mask = procedure.target_mask
        self._kept: list[list[Tensor]] = []
        seed_device(targets.device, seed)
        if self._mask != "every":
            without = _evaluating_all(substitutes) if self._mask == "without" else nullcontext()
            with torch.no_grad(), without:
                self._kept = [features_at(one, self._x) for one in substitutes]

    def of(self, number: int, substitute: Substitute) -> list[Tensor]:
        if self._kept:
            return [found.flatten(1) for found in self._kept[number]]
        with torch.no_grad():
            return [found.flatten(1) for found in features_at(substitute, self._x)]


def backward(
    images: Tensor,
    coefficients: Tensor,
    substitutes: Sequence[Substitute],
    aims: Aims,
    procedure: Procedure,
    *,
    stream: bool,
) -> Tensor:
    """Send the objective's slope back through the poisons, and return it for each target.

    Parameters
    ----------
    images : poisons [T, k, C, H, W] in [0, 1], part of a graph; the slope goes through it.
    coefficients : float64 [substitutes and taps, T, k], solved for in place.
    stream : see :func:`poisonkit.attacks.polytope.craft`.
    """
    groups = [[k] for k in range(len(substitutes))] if stream else [[*range(len(substitutes))]]
    # The networks' slopes are gathered here, so that the graph below is gone through once.
    x = images.detach().requires_grad_()
    total = torch.zeros(len(x), device=x.device)
    first = 0
    for group in groups:
        pairs: list[tuple[Tensor, Tensor, bool]] = []
        for number in group:
            substitute = substitutes[number]
            found = features_at(substitute, x.flatten(0, 1))
            last = len(found) - 1
            for tap, (values, aim) in enumerate(
                zip(found, aims.of(number, substitute), strict=True)
            ):
                # Some networks give the pooled layer as maps of one pixel.
                pooled = tap == last > 0 and values[0, 0].numel() == 1
                pairs.append((values.reshape(*x.shape[:2], -1), aim, pooled))
        count = len(pairs)
        if procedure.objective == "polytope":
            _solve(coefficients[first : first + count], pairs, procedure.tolerance)
        terms = [
            objective(
                values,
                aim,
                coefficients[first + number],
                procedure,
                pooled=pooled,
            )
            for number, (values, aim, pooled) in enumerate(pairs)
        ]
        loss = torch.stack(terms).sum(0) / len(substitutes)
        loss.sum().backward()
        total += loss.detach()
        first += count
    images.backward(x.grad)
    return total


def _solve(
    coefficients: Tensor, pairs: list[tuple[Tensor, Tensor, bool]], tolerance: float
) -> None:
    """Solve for the coefficients of all pairs at once, in place."""
    grams, products, squares = [], [], []
    for values, aim, _ in pairs:
        a, b = values.detach().double(), aim.double()
        grams.append(a @ a.mT)
        products.append((a @ b[..., None]).squeeze(-1))
        squares.append((b * b).sum(-1))
    found = solve(
        torch.stack(grams),
        torch.stack(products),
        torch.stack(squares),
        start=coefficients,
        tolerance=tolerance,
    )
    coefficients.copy_(found)


def objective(
    values: Tensor, aim: Tensor, coefficients: Tensor, procedure: Procedure, *, pooled: bool
) -> Tensor:
    """Return one network's (and tap's) term of the objective for each target, float [T].

    Parameters
    ----------
    values : features of the poisons [T, k, d].
    aim : features of the targets [T, d].
    coefficients : [T, k], of the polytope.
    pooled : whether these are features without pixels, at one of several taps; see
        ``Procedure.pooled``.
    """
    size = (aim * aim).sum(-1)
    if procedure.objective == "collision":
        return ((values - aim[:, None]) ** 2).sum((-1, -2)) / size
    if procedure.objective == "polytope" and pooled and procedure.pooled == "released":
        # The released code multiplies coefficients and features so that each poison is
        # weighted by their sum, which is 1.
        return 0.5 * ((values - aim[:, None]) ** 2).sum((-1, -2)) / size
    if procedure.objective == "bullseye":
        nearest = values.mean(1)
    else:
        nearest = (coefficients.to(values.dtype)[..., None] * values).sum(1)
    return 0.5 * ((nearest - aim) ** 2).sum(-1) / size


def features_at(substitute: Substitute, x: Tensor) -> list[Tensor]:
    """Return the features at each tap, gradients included."""
    with ExitStack() as stack:
        found = [
            stack.enter_context(tapped(substitute.network, tap, gradients=True))
            for tap in substitute.taps
        ]
        substitute.network(x)
    return [outputs[-1] for outputs in found]


@torch.no_grad()
def distances(network: Substitute, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far targets are from their poisons in one network, without its dropout.

    Parameters
    ----------
    network : with one tap.
    images : poisons [T, k, C, H, W] in [0, 1].
    targets : [T, C, H, W] in [0, 1].

    Returns
    -------
    Squared distances in units of the target's own squared length, float [T] each: to the
    nearest convex combination of the poisons, and to a poison on average.
    """
    to_polytope = 2 * objective_in(network, images, targets, Procedure(objective="polytope"))
    to_all = objective_in(network, images, targets, Procedure(objective="collision"))
    return to_polytope, to_all / images.shape[1]


@torch.no_grad()
def objective_in(
    network: Substitute, images: Tensor, targets: Tensor, procedure: Procedure
) -> Tensor:
    """Return the objective in a network that need not be a substitute, float [T].

    Its dropout is off, and the polytope's coefficients are its own; see :func:`distances`.
    """
    with evaluating(network.network):
        [values] = features_at(network, images.flatten(0, 1))
        [aim] = features_at(network, targets)
    values, aim = values.reshape(*images.shape[:2], -1), aim.flatten(1)
    return objective(values, aim, convex_coefficients(values, aim), procedure, pooled=False)


@contextmanager
def ready_to_craft(substitutes: Sequence[Substitute], procedure: Procedure) -> Iterator[None]:
    """Networks in eval mode and without gradients of their own, dropout on if asked for."""
    wanted = [(p, p.requires_grad) for one in substitutes for p in one.network.parameters()]
    with _evaluating_all(substitutes):
        for one in substitutes:
            one.network.requires_grad_(False)
            for module in one.network.modules():
                if isinstance(module, nn.modules.dropout._DropoutNd):
                    module.training = procedure.dropout
        try:
            yield
        finally:
            for parameter, flag in wanted:
                parameter.requires_grad_(flag)


@contextmanager
def _evaluating_all(substitutes: Sequence[Substitute]) -> Iterator[None]:
    with ExitStack() as stack:
        for one in substitutes:
            stack.enter_context(evaluating(one.network))
        yield
