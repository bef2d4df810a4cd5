"""How MetaPoison's poisons are crafted: every choice that text or code leaves, with its default."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from poisonkit.attacks.unrolled import Objective
from poisonkit.bounds import check_epsilon
from poisonkit.errors import PoisonkitError, unknown
from poisonkit.options import added


@dataclass(frozen=True, kw_only=True)
class Procedure:
    """How poisons are crafted; where the paper is silent the default is the released code's.

    Attributes
    ----------
    epsilon : bound of the change of each value on the [0, 1] scale.
    colour : bound of a smooth change of colours that comes before it, in each of Y, U and V;
        0 is none.
    smoothness : weight of the colour changes' roughness in what is minimised: its mean over
        all poisons, as often as the target's loss after unrolling, once for each batch that
        holds poisons. So a poison's own weighs more if it is one of few. The released code
        has 1.
    steps : crafting steps; each goes through one epoch of every surrogate, and ends with a
        change of the poisons (or several, see ``update``).
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
    recompute : take the unrolled steps without keeping what their derivative needs, and take
        them again for it: the memory of one step for any K, and a tenth more time for two.
    objective : ``cross-entropy``; or ``margin``, by how much the largest other logit exceeds
        the wanted one.
    optimizer : ``adam``, or ``sign`` of the gradient.
    learning_rate : on the [0, 1] scale, of a crafting step. Where the poisons are changed after
        every batch, those changes share it that a poison takes part in, one for each surrogate.
        By ``sign`` a poison then goes as far in a step as otherwise; Adam moves it in the
        changes between as well, up to sqrt(batches / surrogates) times as far.
    drops : shares of the steps after which the rate is lowered tenfold.
    start : ``noise``, uniform within the bound; or ``zero``.
    update : change the poisons once every surrogate went through its ``epoch``, as the released
        code does, or after each ``batch`` of theirs (Algorithm 1).
    later : the batches after the first, the one that the target's loss is read in included,
        hold poisons in their ``own`` places (line 6 of Algorithm 1), or those of the ``first``
        batch once more and no others, as in the released code.
    normalised_with : while crafting, batch normalisation sees the target as part of a ``batch``
        of training images, as in the released code; or by the running ``averages`` of each
        surrogate's training, as networks in use do. These are not moved by the unrolled steps.
    clipped : keep the poisons within the range of pixels. The released code does so at the
        start only. As images, they are cut off there.
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
    recompute: bool = False
    objective: Literal["cross-entropy", "margin"] = "cross-entropy"
    optimizer: Literal["adam", "sign"] = "adam"
    learning_rate: float = 200 / 255
    drops: tuple[float, ...] = (1 / 3, 2 / 3)
    start: Literal["noise", "zero"] = "noise"
    update: Literal["epoch", "batch"] = added("epoch")
    later: Literal["own", "first"] = added("own")
    normalised_with: Literal["batch", "averages"] = added("batch")
    clipped: bool = added(True)

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
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
            ("update", ("epoch", "batch")),
            ("later", ("own", "first")),
            ("normalised_with", ("batch", "averages")),
        ):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        if not (self.surrogate_rate > 0 and self.learning_rate > 0):
            raise PoisonkitError("surrogate_rate and learning_rate must be positive")

    @property
    def lifetime(self) -> int:
        """T, epochs after which a surrogate begins anew."""
        return self.surrogates * self.stagger

    def rate_at(self, step: int, batches: int = 1) -> float:
        """Return the rate of each change in a step: a quadratic rise in five, then drops.

        Parameters
        ----------
        batches : of an epoch; a poison is in one of them for each surrogate.
        """
        changes = min(batches, self.surrogates) if self.update == "batch" else 1
        rising = min(1.0, ((step + 1) / 5) ** 2)
        passed = sum(step >= share * self.steps for share in self.drops)
        return self.learning_rate * rising * 0.1**passed / changes


def margin(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return by how much the largest other logit exceeds the wanted one, mean over rows."""
    own = logits.gather(1, wanted[:, None]).squeeze(1)
    others = logits.scatter(1, wanted[:, None], -torch.inf).amax(1)
    return (others - own).clamp_min(-100).mean()


OBJECTIVES: dict[str, Objective] = {"cross-entropy": F.cross_entropy, "margin": margin}


def updates(count: int, procedure: Procedure) -> list[range]:
    """Return the batches, of ``count`` in an epoch, between two changes of the poisons."""
    if procedure.update == "epoch":
        return [range(count)]
    return [range(number, number + 1) for number in range(count)]
