"""MetaPoison: poisons that steer a training from scratch, crafted by unrolling it.

Huang et al., *MetaPoison: Learning to Craft Adversarial Poisoning Examples via
Meta-Learning* (2019). A few images of one class are changed so that networks trained on
them, from weights that nobody knows, give a chosen image a chosen label. Crafting looks
at several surrogate networks at different stages of their training: how would the
loss on the target change, some steps ahead, if these pixels were different?
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from poisonkit.attacks.colour import Recolouring, reach
from poisonkit.attacks.surrogates import Surrogates
from poisonkit.attacks.unrolled import Objective, target_losses
from poisonkit.checkpoint import restore, save
from poisonkit.devices import repeatable_kernels
from poisonkit.errors import PoisonkitError, unknown
from poisonkit.images import ImageSet
from poisonkit.models import Classifier
from poisonkit.poison import (
    Bound,
    Poison,
    common_label,
    levels,
    refuse_known_targets,
    round_within,
)


@dataclass(frozen=True, kw_only=True)
class Procedure:
    """How poisons are crafted; where the paper is silent the default is the released code's.

    Attributes
    ----------
    epsilon : bound of the change of each value on the [0, 1] scale.
    colour : bound of a smooth change of colours that comes before it, in each of Y, U and V;
        0 is none.
    smoothness : weight of the colour change's roughness in what is minimised.
    steps : crafting steps; each goes through one epoch of every surrogate.
    unroll : K, steps of gradient descent that are looked ahead.
    surrogates : M, networks that the poisons are crafted with.
    stagger : epochs between the ages of neighbouring surrogates; one that has reached
        ``surrogates * stagger`` epochs begins anew from other weights.
    surrogate_rate, warmup_epochs, momentum, batch_size : of the surrogates' training, by
        stochastic gradient descent; the rate rises linearly from zero.
    trajectory : whether surrogates train on ``clean`` images, as the paper found better, or on
        the ``poisoned`` ones.
    losses : take the target's loss after the ``last`` unrolled step (Algorithm 1), or its mean
        over ``all`` of them, as the released code does.
    objective : ``cross-entropy``; or ``margin``, by how much the largest other logit exceeds
        the wanted one.
    optimizer : ``adam``, or ``sign`` of the gradient.
    learning_rate : on the [0, 1] scale.
    drops : shares of the steps after which the rate is lowered tenfold.
    start : ``noise``, uniform within the bound; or ``zero``.
    """

    epsilon: float = 16 / 255
    colour: float = 0.0
    smoothness: float = 1.0
    steps: int = 60
    unroll: int = 2
    surrogates: int = 21
    stagger: int = 1
    surrogate_rate: float = 0.1
    warmup_epochs: int = 5
    momentum: float = 0.0
    batch_size: int = 125
    trajectory: Literal["clean", "poisoned"] = "clean"
    losses: Literal["last", "all"] = "last"
    objective: Literal["cross-entropy", "margin"] = "cross-entropy"
    optimizer: Literal["adam", "sign"] = "adam"
    learning_rate: float = 200 / 255
    drops: tuple[float, ...] = (1 / 3, 2 / 3)
    start: Literal["noise", "zero"] = "noise"

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1:
            raise PoisonkitError(f"epsilon must lie in (0, 1], not {self.epsilon}")
        if not 0 <= self.colour <= 1 or self.smoothness < 0:
            raise PoisonkitError("colour must lie in [0, 1], and smoothness must not be negative")
        for name in ("steps", "unroll", "surrogates", "stagger", "batch_size"):
            if getattr(self, name) < 1:
                raise PoisonkitError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name, known in (
            ("trajectory", ("clean", "poisoned")),
            ("losses", ("last", "all")),
            ("objective", ("cross-entropy", "margin")),
            ("optimizer", ("adam", "sign")),
            ("start", ("noise", "zero")),
        ):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        if not (self.surrogate_rate > 0 and self.learning_rate > 0):
            raise PoisonkitError("surrogate_rate and learning_rate must be positive")

    @property
    def lifetime(self) -> int:
        """T, epochs after which a surrogate begins anew."""
        return self.surrogates * self.stagger

    def rate_at(self, step: int) -> float:
        """Return the poisons' learning rate in a step: a quadratic rise in five, then drops."""
        rising = min(1.0, ((step + 1) / 5) ** 2)
        passed = sum(step >= share * self.steps for share in self.drops)
        return self.learning_rate * rising * 0.1**passed


@dataclass(frozen=True, kw_only=True)
class Crafted:
    """Poisons, and how the crafting went.

    Attributes
    ----------
    images : float32 [n, C, H, W] in [0, 1], the poisons before rounding.
    unaffected, unrolled : float [steps], the target's loss, mean over surrogates and batches
        that hold poisons: as the surrogates are, and after the unrolled steps.
    course : the poisons before steps 0, ``keep_every``, ... and after the last one.
    """

    poison: Poison
    images: Tensor
    unaffected: Tensor
    unrolled: Tensor
    course: list[Poison]


def margin(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return by how much the largest other logit exceeds the wanted one, mean over rows."""
    own = logits.gather(1, wanted[:, None]).squeeze(1)
    others = logits.scatter(1, wanted[:, None], -torch.inf).amax(1)
    return (others - own).clamp_min(-100).mean()


OBJECTIVES: dict[str, Objective] = {"cross-entropy": F.cross_entropy, "margin": margin}


def craft(
    train: ImageSet,
    targets: ImageSet,
    wanted: Sequence[int],
    *,
    rows: Sequence[int],
    surrogate: Callable[[int], Classifier],
    procedure: Procedure,
    seed: int,
    keep_every: int = 10,
    checkpoint: Path | None = None,
    progress: bool = False,
) -> Crafted:
    """Craft poisons that make networks trained on them give targets the wanted labels.

    Parameters
    ----------
    wanted : a label for each target, of the poisons' class or of any other but its own.
    rows : training images that become poisons, all of one class.
    surrogate : a freshly initialised network for a seed.
    checkpoint : holds the state after every step; if it exists, the crafting goes on from
        there, unless it belongs to another request.

    Raises
    ------
    PoisonkitError
        Before anything is trained: if the rows are not of one class or named twice, a target is
        a training image or has the wanted label already, or their numbers do not fit.
    """
    check_request(train, targets, wanted, rows=rows)
    if procedure.colour and train.channels != 3:
        raise PoisonkitError(f"recolouring needs 3 channels, not {train.channels}")
    chosen = torch.as_tensor(rows, device=train.device)
    clean = train.x.float() / 255
    place = torch.full((len(train),), -1, device=train.device)
    place[chosen] = torch.arange(len(chosen), device=train.device)
    state = _State(clean[chosen], procedure, surrogate, seed, keep_every)
    # Both kinds of change cross their bound in as many steps.
    parts = [(state.change, 1.0)]
    if state.recolouring is not None:
        parts.append((state.recolouring.offsets, procedure.colour / procedure.epsilon))
    optimizer = torch.optim.Adam([{"params": [part]} for part, _ in parts])
    about = {"seed": seed, "train": train.checksum, "rows": [*rows], "targets": targets.checksum}
    run = json.dumps({**about, "wanted": [*wanted], "keep": keep_every, **asdict(procedure)})
    aims, labels = targets.x.float() / 255, torch.tensor([*wanted], device=train.device)
    history = restore(checkpoint, state, optimizer, run)
    bar = tqdm(
        total=procedure.steps,
        initial=len(history),
        disable=not progress,
        desc="craft",
        unit="step",
        leave=False,
    )
    with bar, torch.random.fork_rng(), repeatable_kernels():
        if not history:
            state.surrogates.stagger(clean, train.y)
        for step in range(len(history), procedure.steps):
            state.keep(step)
            before, after, slope = _slope(state, clean, train.y, place, aims, labels, procedure)
            for group, (_, scale) in zip(optimizer.param_groups, parts, strict=True):
                group["lr"] = scale * procedure.rate_at(step)
            optimizer.zero_grad(set_to_none=True)
            state.backward(slope, procedure.smoothness)
            if procedure.optimizer == "adam":
                optimizer.step()
            else:
                with torch.no_grad():
                    for part, scale in parts:
                        assert part.grad is not None
                        part.sub_(scale * procedure.rate_at(step) * part.grad.sign())
            state.project(procedure.epsilon)
            history.append({"unaffected": before, "unrolled": after})
            if checkpoint:
                save(checkpoint, state, optimizer, history, run)
            bar.update()
    state.keep(procedure.steps)
    course = [_poison(images, train, chosen, procedure) for images in state.course]
    return Crafted(
        poison=course[-1],
        images=state.images().detach(),
        unaffected=torch.tensor([entry["unaffected"] for entry in history]),
        unrolled=torch.tensor([entry["unrolled"] for entry in history]),
        course=course,
    )


def check_request(
    train: ImageSet, targets: ImageSet, wanted: Sequence[int], *, rows: Sequence[int]
) -> None:
    """Refuse before any training what cannot be crafted, see :func:`craft`."""
    if not rows or len(set(rows)) < len(rows):
        raise PoisonkitError(f"the poisons must be at least one, and different: {list(rows)[:10]}")
    if not 0 <= min(rows) <= max(rows) < len(train):
        raise PoisonkitError(f"row {max(rows)} is not one of the {len(train)} training images")
    common_label(train, rows)
    if len(targets) < 1 or len(targets) != len(wanted):
        raise PoisonkitError(f"{len(wanted)} labels are wanted for {len(targets)} targets")
    for number, (label, y) in enumerate(zip(wanted, targets.y.tolist(), strict=True)):
        if not 0 <= label < train.classes:
            raise PoisonkitError(f"label {label} is not one of the {train.classes} classes")
        if label == y:
            raise PoisonkitError(
                f"target {number} is of class {train.class_names[label]!r}, the label that it is "
                "to be given"
            )
    refuse_known_targets(train, targets.x)


class _State(nn.Module):
    """The change of each poison, the surrogates, and the poisons that are kept."""

    def __init__(
        self,
        bases: Tensor,
        procedure: Procedure,
        surrogate: Callable[[int], Classifier],
        seed: int,
        keep_every: int,
    ) -> None:
        super().__init__()
        self.bases, self.keep_every = bases, keep_every
        change = torch.zeros_like(bases)
        if procedure.start == "noise":
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.rand(bases.shape, generator=generator).to(bases.device)
            change = procedure.epsilon * (2 * drawn - 1)
        self.change = nn.Parameter(change)
        self.recolouring: Recolouring | None = None
        if procedure.colour:
            self.recolouring = Recolouring(len(bases), bound=procedure.colour).to(bases.device)
        self.project(procedure.epsilon)
        self.surrogates = Surrogates(surrogate, procedure, seed)
        kept = 1 + -(-procedure.steps // keep_every)
        self.register_buffer("kept", torch.zeros(kept, *bases.shape, device=bases.device))

    kept: Tensor

    def images(self) -> Tensor:
        """Return the poisons [n, C, H, W] in [0, 1]."""
        return self._recoloured() + self.change

    def _recoloured(self) -> Tensor:
        return self.bases if self.recolouring is None else self.recolouring(self.bases)

    def backward(self, slope: Tensor, smoothness: float) -> None:
        """Give what the poisons are made of the gradients that theirs, [n, C, H, W], implies."""
        self.images().backward(slope)
        if self.recolouring is not None:
            (smoothness * self.recolouring.roughness().sum()).backward()

    @torch.no_grad()
    def project(self, epsilon: float) -> None:
        """Go back to the bounds and to the range of pixels."""
        if self.recolouring is not None:
            self.recolouring.project()
        before = self._recoloured()
        x = (before + self.change.clamp(-epsilon, epsilon)).clamp(0, 1)
        self.change.copy_(x - before)

    @torch.no_grad()
    def keep(self, step: int) -> None:
        """Remember the poisons before this step, if it is one of those that are kept."""
        if step % self.keep_every == 0:
            self.kept[step // self.keep_every] = self.images()
        else:
            self.kept[-1] = self.images()

    @property
    def course(self) -> list[Tensor]:
        return list(self.kept)


def _slope(
    state: _State,
    clean: Tensor,
    y: Tensor,
    place: Tensor,
    targets: Tensor,
    wanted: Tensor,
    procedure: Procedure,
) -> tuple[float, float, Tensor]:
    """Let every surrogate go through one epoch, and sum the meta-gradient over its batches.

    Returns
    -------
    The target's loss before and after unrolling, and the gradient [n, C, H, W], each a mean over
    the surrogates.
    """
    images = state.images().detach()
    slope = torch.zeros_like(images)
    seen = torch.zeros(2, device=images.device)
    count = 0
    for number in range(procedure.surrogates):
        surrogate = state.surrogates.at(number)
        batches = surrogate.order(len(y))
        for first, rows in enumerate(batches):
            poisoned = place[rows] >= 0
            if bool(poisoned.any()):
                # The window goes on at the beginning of the epoch where it reaches its end.
                window = [
                    batches[(first + ahead) % len(batches)] for ahead in range(procedure.unroll + 1)
                ]
                found, own = _meta_gradient(
                    surrogate.network,
                    surrogate.parameters,
                    [(_with(clean, images, place, r), y[r]) for r in window],
                    poisoned,
                    targets,
                    wanted,
                    procedure,
                    surrogate.rate,
                )
                slope.index_add_(0, place[rows[poisoned]], own)
                seen += torch.stack([found[0], _taken(found, procedure)])
                count += 1
            x = clean[rows]
            if procedure.trajectory == "poisoned":
                x = _with(clean, images, place, rows)
            surrogate.descend(x, y[rows])
        surrogate.finish_epoch()
    before, after = (seen / max(count, 1)).tolist()
    return before, after, slope / procedure.surrogates


def _with(clean: Tensor, images: Tensor, place: Tensor, rows: Tensor) -> Tensor:
    """Return a batch of training images with the poisons among them in their places."""
    x = clean[rows]
    poisoned = place[rows] >= 0
    x[poisoned] = images[place[rows[poisoned]]]
    return x


def _taken(losses: Tensor, procedure: Procedure) -> Tensor:
    return losses[-1] if procedure.losses == "last" else losses[1:].mean()


def _meta_gradient(
    network: nn.Module,
    parameters: dict[str, Tensor],
    batches: list[tuple[Tensor, Tensor]],
    poisoned: Tensor,
    targets: Tensor,
    wanted: Tensor,
    procedure: Procedure,
    rate: float,
) -> tuple[Tensor, Tensor]:
    """Differentiate the target's loss by the pixels of the first batch's poisons.

    Poisons in the later batches are as they are; no gradient goes to them.
    """
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
        objective=OBJECTIVES[procedure.objective],
    )
    (slope,) = torch.autograd.grad(_taken(losses, procedure), own)
    return losses.detach(), slope


def _poison(images: Tensor, train: ImageSet, rows: Tensor, procedure: Procedure) -> Poison:
    limit = levels(min(1.0, procedure.epsilon + reach(procedure.colour)))
    return Poison(
        images=round_within(images, train.x[rows], limit=limit),
        labels=train.y[rows],
        rows=rows,
        placement="replaced",
        bound=Bound(kind="linf", value=limit),
        clean_label=True,
        source=train.checksum,
    )
