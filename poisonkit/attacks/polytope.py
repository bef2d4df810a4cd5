"""Convex Polytope, Feature Collision and Bullseye: poisons around a target in feature space.

Zhu et al., *Transferable Clean-Label Poisoning Attacks on Deep Neural Nets* (2019). A few
images of one class are moved so that, in the features of several substitute networks,
they surround an image of another class. A linear classifier that gives them their own
label must then give it to the target too (Proposition 1).
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from poisonkit.attacks.surrounding import (
    Aims,
    Procedure,
    Substitute,
    backward,
    features_at,
    objective_in,
    ready_to_craft,
)
from poisonkit.checkpoint import restore, save
from poisonkit.devices import reproducible, seed_device
from poisonkit.errors import PoisonkitError
from poisonkit.images import ImageSet
from poisonkit.models import channel_statistics, evaluating, must_be_classifier, must_take
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
    """One poison for each target, and how the crafting went.

    Attributes
    ----------
    images : float32 [T, k, C, H, W] in [0, 1], the poisons before rounding.
    losses : float [iterations, T], the objective of each target before each step.
    coefficients : float64 [substitutes and taps, T, k], the last ones.
    watched : float [checks, networks, T], the objective in the networks that were watched,
        before steps 0, ``watch_every``, ... and after the last one.
    seconds : that the iterations took, interruptions not included.
    """

    poisons: list[Poison]
    images: Tensor
    losses: Tensor
    coefficients: Tensor
    watched: Tensor
    seconds: float


def craft(
    train: ImageSet,
    substitutes: Sequence[Substitute],
    targets: ImageSet,
    *,
    rows: Sequence[int] | Tensor,
    procedure: Procedure,
    seed: int,
    stream: bool = False,
    watch: Sequence[Substitute] = (),
    watch_every: int = 50,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 100,
    progress: bool = False,
) -> Crafted:
    """Craft poisons for several targets at once, each from the same training images.

    Parameters
    ----------
    rows : training images that become poisons, all of one class, which is what the
        targets shall be taken for.
    targets : images of other classes, with their true labels.
    stream : pass the networks through one after the other, so that the memory is that
        of one; otherwise all coefficients are solved together.
    watch : networks that the poisons are not crafted with, in which the objective is to be
        followed, without dropout; each with one tap.
    checkpoint : holds the state every ``checkpoint_every`` iterations; if it exists,
        the crafting goes on from there, unless it belongs to other images, layers, seed or
        procedure; the networks must be the same.

    Raises
    ------
    PoisonkitError
        Before anything is computed: if the bases are not of one class, a target is of that
        class or among the training images, a row or a tap does not exist, or the images have
        another size than those that the networks take. Later: if an objective is not finite,
        as where a target's features are all zero.
    """
    rows = whole_numbers(rows)
    check_request(train, substitutes, targets, rows=rows, procedure=procedure)
    for name, every in (("watch_every", watch_every), ("checkpoint_every", checkpoint_every)):
        if every < 1:
            raise PoisonkitError(f"{name} must be at least 1, not {every}")
    if any(len(one.taps) != 1 for one in watch):
        raise PoisonkitError("a network that is watched has one tap")
    bases = train.x[torch.as_tensor(rows, device=train.device)].float() / 255
    state = _State(len(targets), bases, _scale(train, procedure), _problems(substitutes))
    optimizer = torch.optim.Adam([state.change], lr=procedure.learning_rate)
    about = {
        "seed": seed,
        "train": train.checksum,
        "rows": [*rows],
        "targets": targets.checksum,
        "taps": [substitute.taps for substitute in substitutes],
        "watch": [len(watch), watch_every],
    }
    run = json.dumps({**about, **written(procedure)})
    done = restore(checkpoint, state, optimizer, run)
    losses = [torch.tensor(entry["losses"]) for entry in done]
    seconds = [float(entry["seconds"]) for entry in done]
    watched = [torch.tensor(entry["watched"]) for entry in done if "watched" in entry]
    bar = tqdm(
        total=procedure.iterations,
        initial=len(losses),
        disable=not progress,
        desc="craft",
        unit="step",
        leave=False,
    )
    with bar, reproducible(train.device), ready_to_craft(substitutes, procedure):
        aims = Aims(substitutes, targets, procedure, seed)
        for number in range(len(losses), procedure.iterations):
            start = time.perf_counter()
            if watch and number % watch_every == 0:
                watched.append(_look(watch, state.images(), targets, procedure))
            seed_device(train.device, seed + 1 + number)
            optimizer.zero_grad(set_to_none=True)
            images = state.images()
            loss = backward(images, state.coefficients, substitutes, aims, procedure, stream=stream)
            losses.append(loss.cpu())
            _check_finite(losses[-1], number)
            optimizer.step()
            state.project(procedure.epsilon)
            seconds.append(time.perf_counter() - start)
            if checkpoint and (number + 1) % checkpoint_every == 0:
                entries: list[dict[str, Any]] = [
                    {"losses": entry.tolist(), "seconds": took}
                    for entry, took in zip(losses, seconds, strict=True)
                ]
                for entry, seen in zip(entries, watched, strict=False):
                    entry["watched"] = seen.tolist()
                save(checkpoint, state, optimizer, entries, run)
            bar.update()
    found = state.images().detach()
    if watch:
        watched.append(_look(watch, found, targets, procedure))
    return Crafted(
        poisons=poisons_of(found, train, rows=rows, epsilon=procedure.epsilon),
        images=found,
        losses=torch.stack(losses),
        coefficients=state.coefficients.clone(),
        watched=torch.stack(watched) if watched else torch.empty(0),
        seconds=sum(seconds),
    )


def _check_finite(losses: Tensor, iteration: int) -> None:
    broken = torch.nonzero(~torch.isfinite(losses)).flatten()
    if len(broken):
        raise PoisonkitError(
            f"the objective of target {int(broken[0])} became {float(losses[broken[0]])} in "
            f"iteration {iteration}; a target whose features are all zero in a substitute has none"
        )


def poisons_of(
    images: Tensor, train: ImageSet, *, rows: Sequence[int], epsilon: float
) -> list[Poison]:
    """Round poisoned images [T, k, C, H, W] in [0, 1], each set of them a poison of its own."""
    return [clean_label_poison(found, train, rows, epsilon=epsilon) for found in images]


def _look(
    watch: Sequence[Substitute], images: Tensor, targets: ImageSet, procedure: Procedure
) -> Tensor:
    """Return the objective in each watched network, float [networks, T]."""
    x, aims = images.detach(), targets.x.float() / 255
    return torch.stack([objective_in(one, x, aims, procedure).cpu() for one in watch])


def check_request(
    train: ImageSet,
    substitutes: Sequence[Substitute],
    targets: ImageSet,
    *,
    rows: Sequence[int],
    procedure: Procedure,
) -> None:
    """Refuse before any crafting what cannot be crafted, see :func:`craft`."""
    must_be_image_set(targets)
    if not substitutes:
        raise PoisonkitError("crafting needs at least one substitute network")
    least = 1 if procedure.objective == "collision" else 2
    if len(set(rows)) < len(rows) or len(rows) < least:
        raise PoisonkitError(
            f"{procedure.objective} needs at least {least} different poisons, not {list(rows)}"
        )
    label = common_label(train, rows)
    for number, y in enumerate(targets.y.tolist()):
        if y == label:
            raise PoisonkitError(
                f"target {number} is of class {train.class_names[label]!r}, as the bases are"
            )
    refuse_known_targets(train, targets.x)
    for substitute in substitutes:
        if not substitute.taps or isinstance(substitute.taps, str):
            raise PoisonkitError(
                f"a substitute needs a tuple of at least one tap, not {substitute.taps!r}"
            )
        must_be_classifier(substitute.network)
        for tap in substitute.taps:
            substitute.network.module_at(tap)
        fits = must_take("a substitute", train.image_size)
        # Without dropout, which would move the caller's random state.
        with fits, torch.no_grad(), evaluating(substitute.network):
            features_at(substitute, targets.x[:1].float() / 255)


class _State(nn.Module):
    """The change of each base for each target, in Adam's unit, and the coefficients."""

    def __init__(self, targets: int, bases: Tensor, scale: Tensor, problems: int) -> None:
        super().__init__()
        self.bases, self.scale = bases, scale
        self.change = nn.Parameter(bases.new_zeros(targets, *bases.shape))
        k = len(bases)
        start = torch.full((problems, targets, k), 1 / k, dtype=torch.float64, device=bases.device)
        self.register_buffer("coefficients", start)

    coefficients: Tensor

    def images(self) -> Tensor:
        """Return the poisons [T, k, C, H, W] in [0, 1]."""
        return self.bases + self.scale * self.change

    @torch.no_grad()
    def project(self, epsilon: float) -> None:
        """Go back to the epsilon-ball and to the range of pixels."""
        x = self.images().clamp(self.bases - epsilon, self.bases + epsilon).clamp(0, 1)
        self.change.copy_((x - self.bases) / self.scale)


def _problems(substitutes: Sequence[Substitute]) -> int:
    return sum(len(substitute.taps) for substitute in substitutes)


def _scale(train: ImageSet, procedure: Procedure) -> Tensor:
    if procedure.unit == "pixels":
        return torch.ones(train.channels, 1, 1, device=train.device)
    _, deviation = channel_statistics(train.x)
    return deviation.float().to(train.device).view(-1, 1, 1)
