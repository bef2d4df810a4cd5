"""MetaPoison: poisons that steer a training from scratch, crafted by unrolling it.

Huang et al., *MetaPoison: Learning to Craft Adversarial Poisoning Examples via
Meta-Learning* (2019). A few images of one class are changed so that networks trained on
them, from weights that nobody knows, give a chosen image a chosen label. Crafting looks
at several surrogate networks at different stages of their training: how would the
loss on the target change, some steps ahead, if these pixels were different?
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from poisonkit.attacks.colour import Recolouring, reach
from poisonkit.attacks.look_ahead import Seen, look_ahead
from poisonkit.attacks.meta_procedure import Procedure, updates
from poisonkit.attacks.surrogates import Surrogates
from poisonkit.checkpoint import restore, save
from poisonkit.devices import reproducible
from poisonkit.errors import PoisonkitError
from poisonkit.images import ImageSet
from poisonkit.options import written
from poisonkit.poison import (
    Poison,
    clean_label_poison,
    common_label,
    must_be_image_set,
    refuse_known_targets,
    whole_numbers,
)


@dataclass(frozen=True, kw_only=True)
class Crafted:
    """Poisons, and how the crafting went.

    Attributes
    ----------
    images : float32 [n, C, H, W], the poisons before rounding; in [0, 1] if they are ``clipped``.
    unaffected, unrolled : float [steps], the target's loss, mean over surrogates and batches
        that hold poisons: as the surrogates are, and after the unrolled steps.
    course : the poisons before steps 0, ``keep_every``, ... and after the last one.
    seconds : that the steps took, interruptions not included.
    """

    poison: Poison
    images: Tensor
    unaffected: Tensor
    unrolled: Tensor
    course: list[Poison]
    seconds: float


def craft(
    train: ImageSet,
    targets: ImageSet,
    wanted: Sequence[int] | Tensor,
    *,
    rows: Sequence[int] | Tensor,
    surrogate: Callable[[int], nn.Module],
    procedure: Procedure,
    seed: int,
    keep_every: int = 10,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> Crafted:
    """Craft poisons that make networks trained on them give targets the wanted labels.

    Parameters
    ----------
    wanted : a label for each target, of the poisons' class or of any other but its own.
    rows : training images that become poisons, all of one class.
    surrogate : makes a freshly initialised network for images in [0, 1] from a seed: any module
        all of whose weights are used and trained, and without dropout. A copy of it is trained,
        in which torch's batch normalisation normalises by the batch at hand; other
        normalisation stays as it is.
    checkpoint : holds the state after every step; if it exists, the crafting goes on from
        there, unless it belongs to another request.

    Raises
    ------
    PoisonkitError
        Before anything is trained: if the rows are not of one class or named twice, a target is
        a training image or has the wanted label already, their numbers do not fit, or the
        surrogate has dropout or weights that are not to be trained. Later: if the targets' loss
        stops being finite.
    """
    rows, wanted = whole_numbers(rows), whole_numbers(wanted)
    check_request(train, targets, wanted, rows=rows)
    if keep_every < 1:
        raise PoisonkitError(f"keep_every must be at least 1, not {keep_every}")
    if procedure.colour and train.channels != 3:
        raise PoisonkitError(f"recolouring needs 3 channels, not {train.channels}")
    chosen = torch.as_tensor(rows, device=train.device)
    clean = _in_unit_range(train)
    place = torch.full((len(train),), -1, device=train.device)
    place[chosen] = torch.arange(len(chosen), device=train.device)
    state = _State(clean[chosen], procedure, surrogate, seed, keep_every)
    optimizer = torch.optim.Adam([{"params": [part]} for part, _ in state.parts])
    about = {"seed": seed, "train": train.checksum, "rows": [*rows], "targets": targets.checksum}
    run = json.dumps({**about, "wanted": [*wanted], "keep": keep_every, **written(procedure)})
    aims, labels = _in_unit_range(targets), torch.tensor([*wanted], device=train.device)
    history = restore(checkpoint, state, optimizer, run)
    bar = tqdm(
        total=procedure.steps,
        initial=len(history),
        disable=not progress,
        desc="craft",
        unit="step",
        leave=False,
    )
    with bar, reproducible(train.device):
        if not history and not state.surrogates.ages.any():
            state.surrogates.stagger(clean, train.y)
            if checkpoint:
                # As long as a crafting step or two.
                save(checkpoint, state, optimizer, history, run)
        for step in range(len(history), procedure.steps):
            start = time.perf_counter()
            state.keep(step)
            sums, count = torch.zeros(2, device=train.device), 0
            orders = state.surrogates.orders(len(train))
            for batches in updates(len(orders[0]), procedure):
                seen = look_ahead(
                    state.images().detach(),
                    state.surrogates,
                    clean,
                    train.y,
                    place,
                    aims,
                    labels,
                    procedure,
                    orders=orders,
                    batches=batches,
                )
                sums, count = sums + seen.losses, count + seen.batches
                if seen.batches:
                    state.change_by(seen, optimizer, procedure.rate_at(step, len(orders[0])))
            before, after = (sums / count).tolist()
            if not (math.isfinite(before) and math.isfinite(after)):
                raise PoisonkitError(
                    f"the targets' loss became {after} in crafting step {step} ({before} before "
                    f"it was unrolled); try a surrogate_rate below {procedure.surrogate_rate}"
                )
            seconds = time.perf_counter() - start
            history.append({"unaffected": before, "unrolled": after, "seconds": seconds})
            if checkpoint:
                save(checkpoint, state, optimizer, history, run)
            bar.update()
    state.keep(procedure.steps)
    course = [as_poison(images, train, rows, procedure) for images in state.course]
    return Crafted(
        poison=course[-1],
        images=state.images().detach(),
        unaffected=torch.tensor([entry["unaffected"] for entry in history]),
        unrolled=torch.tensor([entry["unrolled"] for entry in history]),
        course=course,
        seconds=sum(entry["seconds"] for entry in history),
    )


def check_request(
    train: ImageSet, targets: ImageSet, wanted: Sequence[int], *, rows: Sequence[int]
) -> None:
    """Refuse before any training what cannot be crafted, see :func:`craft`."""
    must_be_image_set(targets)
    if not rows or len(set(rows)) < len(rows):
        raise PoisonkitError(f"the poisons must be at least one, and different: {list(rows)[:10]}")
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
        surrogate: Callable[[int], nn.Module],
        seed: int,
        keep_every: int,
    ) -> None:
        super().__init__()
        self.bases, self.procedure, self.keep_every = bases, procedure, keep_every
        change = torch.zeros_like(bases)
        if procedure.start == "noise":
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.rand(bases.shape, generator=generator).to(bases.device)
            change = procedure.epsilon * (2 * drawn - 1)
        self.change = nn.Parameter(change)
        self.recolouring: Recolouring | None = None
        if procedure.colour:
            self.recolouring = Recolouring(len(bases), bound=procedure.colour).to(bases.device)
        # The released code, too, begins within the range of pixels.
        self.project(clipped=True)
        self.surrogates = Surrogates(surrogate, procedure, seed)
        kept = 1 + -(-procedure.steps // keep_every)
        self.register_buffer("kept", torch.zeros(kept, *bases.shape, device=bases.device))

    kept: Tensor

    def images(self) -> Tensor:
        """Return the poisons [n, C, H, W]."""
        return self._recoloured() + self.change

    def _recoloured(self) -> Tensor:
        return self.bases if self.recolouring is None else self.recolouring(self.bases)

    @property
    def parts(self) -> list[tuple[nn.Parameter, float]]:
        """What poisons are made of, and by how much it is to move for their rate.

        Both kinds of change cross their bound in as many steps.
        """
        found = [(self.change, 1.0)]
        if self.recolouring is not None:
            scale = self.procedure.colour / self.procedure.epsilon
            found.append((self.recolouring.offsets, scale))
        return found

    def change_by(self, seen: Seen, optimizer: torch.optim.Adam, rate: float) -> None:
        """Change the poisons against a meta-gradient."""
        optimizer.zero_grad(set_to_none=True)
        self.images().backward(seen.slope)
        if self.recolouring is not None:
            # The mean over the surrogates, as the meta-gradient is.
            batches = seen.batches / self.procedure.surrogates
            (self.procedure.smoothness * batches * self.recolouring.roughness().mean()).backward()
        if self.procedure.optimizer == "adam":
            for group, (_, scale) in zip(optimizer.param_groups, self.parts, strict=True):
                group["lr"] = scale * rate
            optimizer.step()
        else:
            with torch.no_grad():
                for part, scale in self.parts:
                    assert part.grad is not None
                    part.sub_(scale * rate * part.grad.sign())
        self.project(clipped=self.procedure.clipped)

    @torch.no_grad()
    def project(self, *, clipped: bool) -> None:
        """Go back to the bounds, and to the range of pixels if the poisons are to keep to it."""
        if self.recolouring is not None:
            self.recolouring.project()
        self.change.clamp_(-self.procedure.epsilon, self.procedure.epsilon)
        if clipped:
            before = self._recoloured()
            self.change.copy_((before + self.change).clamp(0, 1) - before)

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


def _in_unit_range(images: ImageSet) -> Tensor:
    """Return float images, on a CPU in the layout that convolutions are faster with there."""
    x = images.x.float() / 255
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


def as_poison(images: Tensor, train: ImageSet, rows: Sequence[int], procedure: Procedure) -> Poison:
    """Return crafted images as a poison, rounded within its bound unless they are uint8."""
    epsilon = min(1.0, procedure.epsilon + reach(procedure.colour))
    return clean_label_poison(images, train, rows, epsilon=epsilon)
