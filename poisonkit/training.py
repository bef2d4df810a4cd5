"""One training loop for every victim, surrogate and substitute network.

The data set lies on the device as one uint8 tensor with a margin around each
image; a batch, its random crops and its flips are a single gather from it. All
random choices of an epoch come from the seed and the epoch's number alone, so a
run resumed from a checkpoint continues exactly where the unbroken run would be.
"""

import json
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from poisonkit.checkpoint import restore, save
from poisonkit.devices import has_bfloat16, reproducible, seed_device
from poisonkit.errors import PoisonkitError, unknown
from poisonkit.evaluation import evaluate
from poisonkit.graphs import Recorded
from poisonkit.images import ImageSet
from poisonkit.options import written

#: Raised when the same recipe would give another network; trained ones are then not reused.
VERSION = 1
#: A number read off a model; it must leave the model as it is.
Measure = Callable[[nn.Module], float]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained.

    Attributes
    ----------
    optimizer : ``sgd`` (with momentum) or ``adam``.
    learning_rate : the highest rate.
    schedule : ``constant``; ``steps``, a factor 0.1 at each of ``milestones``; or
        ``cosine``, down to zero.
    milestones : shares of the training at which ``steps`` lowers the rate.
    warmup : share of the training during which the rate rises linearly from zero.
    weight_decay : factor w of the penalty w/2 * |kernel|^2; biases and
        normalisation parameters are left out.
    batch_size : the largest batch; an epoch is cut into batches of nearly equal size.
    crop_padding : margin in pixels for random crops; 0 for none.
    flip : whether images are mirrored left-right at random.
    precision : ``float32``, ``bfloat16`` (autocast), or ``auto``: bfloat16 on a GPU that has it.
    """

    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    schedule: Literal["constant", "steps", "cosine"] = "steps"
    milestones: tuple[float, ...] = (0.375, 0.75)
    warmup: float = 0.0
    weight_decay: float = 2e-4
    batch_size: int = 128
    epochs: int = 205
    crop_padding: int = 2
    flip: bool = True
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        for name in ("optimizer", "schedule", "precision"):
            known = get_args(type(self).__annotations__[name])
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        for name, least in (
            ("epochs", 1),
            ("batch_size", 1),
            ("crop_padding", 0),
            ("weight_decay", 0),
        ):
            if getattr(self, name) < least:
                raise PoisonkitError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise PoisonkitError(f"learning_rate must be positive, not {self.learning_rate}")
        for name in ("momentum", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise PoisonkitError(f"{name} must lie in [0, 1), not {getattr(self, name)}")

    def rate_at(self, progress: float) -> float:
        """Return the learning rate after a share ``progress`` (0..1) of the training."""
        rate = self.learning_rate
        if progress < self.warmup:
            return rate * progress / self.warmup
        if self.schedule == "steps":
            return rate * 0.1 ** sum(progress >= mark for mark in self.milestones)
        if self.schedule == "cosine":
            share = (progress - self.warmup) / (1 - self.warmup)
            return rate * 0.5 * (1 + math.cos(math.pi * share))
        return rate


@dataclass(frozen=True)
class Epoch:
    """What happened in one epoch.

    Attributes
    ----------
    loss, accuracy : means over the (augmented) training images.
    seconds : the time it took, what is watched included.
    watched : what was to be watched, after the epoch.
    between : the same after single steps of it, with the number of each ``step``.
    """

    loss: float
    accuracy: float
    seconds: float
    watched: dict[str, float] = field(default_factory=dict)
    between: list[dict[str, float]] = field(default_factory=list)


class Sampler:
    """Batches of a data set, shuffled, cropped and mirrored, as floats in [0, 1].

    Parameters
    ----------
    images : the data set, on the device that the batches shall live on.
    seed : of all random choices, together with the epoch's number.
    """

    def __init__(self, images: ImageSet, recipe: Recipe, *, seed: int) -> None:
        self.images, self.recipe, self.seed = images, recipe, seed
        margin = recipe.crop_padding
        if margin >= min(images.image_size):
            raise PoisonkitError(
                f"crop_padding of {margin} pixels is too much for images of {images.image_size}"
            )
        padded = F.pad(images.x, (margin, margin, margin, margin))
        self._stored = padded.permute(0, 2, 3, 1).contiguous()
        self.steps = math.ceil(len(images) / recipe.batch_size)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``(images, labels)``: float32 [B, C, H, W] in channels-last layout, int64 [B]."""
        generator = torch.Generator().manual_seed(mixed(self.seed, number))
        count, device = len(self.images), self.images.device
        order = torch.randperm(count, generator=generator)
        shifts = torch.randint(0, 2 * self.recipe.crop_padding + 1, (2, count), generator=generator)
        mirrored = torch.rand(count, generator=generator) < (0.5 if self.recipe.flip else 0.0)
        order, shifts, mirrored = order.to(device), shifts.to(device), mirrored.to(device)
        for rows in order.tensor_split(self.steps):
            yield self._gather(rows, shifts[:, rows], mirrored[rows]), self.images.y[rows]

    def _gather(self, rows: Tensor, shifts: Tensor, mirrored: Tensor) -> Tensor:
        height, width = self.images.image_size
        vertical = torch.arange(height, device=rows.device)
        horizontal = torch.arange(width, device=rows.device)
        columns = (
            torch.where(mirrored[:, None], horizontal.flip(0), horizontal) + shifts[1][:, None]
        )
        lines = vertical + shifts[0][:, None]
        chosen = self._stored[rows[:, None, None], lines[:, :, None], columns[:, None, :]]
        return chosen.permute(0, 3, 1, 2).float().div_(255)


def fit(
    model: nn.Module,
    images: ImageSet,
    recipe: Recipe,
    *,
    seed: int,
    transform: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None,
    watch: Mapping[str, ImageSet | Measure] | None = None,
    watch_after: Collection[int] = (),
    statistics: Literal["batch", "running"] = "batch",
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1,
    on_epoch: Callable[[int, Epoch], None] | None = None,
    progress: bool = False,
    label: str = "training",
) -> list[Epoch]:
    """Train a model in place and return what happened in each epoch.

    Parameters
    ----------
    model : on the same device as ``images``; takes images in [0, 1]. On CUDA its forward pass
        is recorded (:class:`~poisonkit.graphs.Recorded`): nothing in it may depend on a
        tensor's values in Python, and what Python does there beside is done a few times only.
    seed : of order, augmentation and dropout (the initial weights are the model's own).
    transform : makes other images of each batch, from the model as it is, the images in
        [0, 1] and their labels; after crops and flips.
    watch : what is measured after each epoch: the accuracy on images in eval mode, or
        a number that a function reads off the model.
    watch_after : the same is measured after these steps, too, counted from the first one, 1.
    statistics : ``batch`` trains as usual; ``running`` normalises by the running averages,
        which stay as they are, and leaves dropout off, to fine-tune a trained network.
    checkpoint : safetensors file that holds the state every ``checkpoint_every``
        epochs; if it exists the training goes on from there, unless it belongs to other
        images, another recipe or seed, which is an error; the model and the transform must
        be the same. The caller removes it.
    on_epoch : called after each epoch with its number (from 0) and its result.
    progress : show a progress bar.

    Raises
    ------
    PoisonkitError
        If the data set has fewer than two images or lies on another device, or
        if the loss stops being finite (the message says at which step).
    """
    device = next(model.parameters()).device
    if device != images.device:
        raise PoisonkitError(f"the model is on {device}, the images are on {images.device}")
    if statistics not in ("batch", "running"):
        raise unknown("statistics", statistics, ("batch", "running"))
    if len(images) < 2:
        raise PoisonkitError(f"training needs at least two images, not {len(images)}")
    if checkpoint_every < 1:
        raise PoisonkitError(f"checkpoint_every must be at least 1, not {checkpoint_every}")
    model.to(memory_format=torch.channels_last)
    optimizer = _optimizer(model, recipe, device)
    sampler = Sampler(images, recipe, seed=seed)
    about = {"seed": seed, "images": images.checksum, "statistics": statistics}
    run = json.dumps({**about, **written(recipe)})
    history = [Epoch(**done) for done in restore(checkpoint, model, optimizer, run)]
    low = recipe.precision == "bfloat16" or (recipe.precision == "auto" and has_bfloat16(device))

    def one_step(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Take a step on a batch and return the sum of its losses and how many were right."""
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach() * len(y), (logits.detach().argmax(1) == y).sum()

    def watched() -> dict[str, float]:
        return {
            name: evaluate(model, other) if isinstance(other, ImageSet) else other(model)
            for name, other in (watch or {}).items()
        }

    take_step = Recorded(one_step)
    total = recipe.epochs * sampler.steps
    bar = tqdm(
        total=total,
        initial=len(history) * sampler.steps,
        disable=not progress,
        desc=label,
        unit="step",
        leave=False,
    )
    with bar, reproducible(device):
        for number in range(len(history), recipe.epochs):
            start = time.perf_counter()
            seed_device(device, mixed(seed, number))
            model.train(statistics == "batch")
            losses = torch.zeros(sampler.steps, device=device)
            correct = torch.zeros((), device=device)
            between: list[dict[str, float]] = []
            for step, (x, y) in enumerate(sampler.epoch(number)):
                done = number * sampler.steps + step
                _set_rate(optimizer, recipe.rate_at(done / total))
                if transform:
                    x = transform(model, x, y)
                losses[step], right = take_step(x, y)
                correct += right
                if step % 50 == 49 or step == sampler.steps - 1:
                    _check_finite(losses[: step + 1], number * sampler.steps, recipe)
                if done + 1 in watch_after:
                    between.append({"step": done + 1, **watched()})
                bar.update()
            result = Epoch(
                loss=float(losses.sum()) / len(images),
                accuracy=float(correct) / len(images),
                watched=watched(),
                between=between,
                seconds=time.perf_counter() - start,
            )
            history.append(result)
            bar.set_postfix(loss=f"{result.loss:.3f}", accuracy=f"{result.accuracy:.1%}")
            if checkpoint and (number + 1) % checkpoint_every == 0:
                save(checkpoint, model, optimizer, [asdict(done) for done in history], run)
            if on_epoch:
                on_epoch(number, result)
    # What a recorded step holds of a GPU goes with the last of its tensors.
    optimizer.zero_grad(set_to_none=True)
    model.eval()
    return history


def mixed(seed: int, number: int) -> int:
    """One 63-bit seed from two numbers, without the overlaps of their sum."""
    return (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + 1) % 2**63


def _optimizer(model: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # A recorded step reads the rate where it was when it was recorded.
    recorded = device.type == "cuda"
    rate = torch.tensor(recipe.learning_rate, device=device) if recorded else recipe.learning_rate
    fused = recorded or None
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, lr=rate, fused=fused, capturable=recorded)
    return torch.optim.SGD(groups, lr=rate, momentum=recipe.momentum, fused=fused)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _check_finite(losses: Tensor, first_step: int, recipe: Recipe) -> None:
    broken = torch.nonzero(~torch.isfinite(losses)).flatten()
    if len(broken):
        raise PoisonkitError(
            f"the training loss became {float(losses[broken[0]])} at step "
            f"{first_step + int(broken[0])}; try a learning rate below {recipe.learning_rate}"
        )
