"""Deep Confuse: a generator learns bounded noise that ruins what is trained on it.

Feng, Cai and Zhou, *Learning to Confuse* (2019). In every trial a fresh classifier,
the surrogate, is trained on noisy images. At each of its steps the noise generator
takes a step of its own, against the loss that the surrogate would have on the *clean*
batch after one pseudo-update on the noisy one.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from tqdm.auto import tqdm

from poisonkit.checkpoint import Epoch, restore, save
from poisonkit.devices import repeatable_kernels
from poisonkit.errors import PoisonkitError, unknown
from poisonkit.images import ImageSet
from poisonkit.models.generators import NoiseGenerator
from poisonkit.training import Recipe, Sampler

Parameters = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Procedure:
    """How a generator is learned; the defaults are the paper's for MNIST (section 5).

    Attributes
    ----------
    algorithm : ``memory_efficient``, Algorithm 2, in which generator and surrogate
        step in turn; or ``stored``, Algorithm 1, which keeps every surrogate of a trial
        and learns from them afterwards. Both take the same steps; the second needs
        memory for as many copies of the surrogate's weights as a trial has steps.
    trials : T, each with a freshly initialised surrogate.
    epochs_per_trial : passes over the data in a trial (the paper's ``maxiter`` is not
        stated; the released code takes 1 for MNIST, 20 for CIFAR-10, 5 for ImageNet).
    surrogate_rate : alpha_f, of plain gradient descent.
    generator_rate : alpha_g, of Adam.
    amsgrad : as the released ImageNet code has it.
    label_map : eta, the label that each class shall be taken for (section 4); None for
        any wrong label.
    """

    algorithm: Literal["memory_efficient", "stored"] = "memory_efficient"
    trials: int = 500
    epochs_per_trial: int = 1
    batch_size: int = 64
    surrogate_rate: float = 0.01
    generator_rate: float = 1e-4
    amsgrad: bool = False
    label_map: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.algorithm not in ("memory_efficient", "stored"):
            raise unknown("algorithm", self.algorithm, ("memory_efficient", "stored"))
        for name in ("trials", "epochs_per_trial", "batch_size"):
            if getattr(self, name) < 1:
                raise PoisonkitError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("surrogate_rate", "generator_rate"):
            if not getattr(self, name) > 0:
                raise PoisonkitError(f"{name} must be positive, not {getattr(self, name)}")


def add_noise(x: Tensor, noise: Tensor) -> Tensor:
    """Return images in [0, 1] with noise added, clipped to [0, 1]."""
    return (x + noise).clamp(0, 1)


def meta_gradient(
    surrogate: nn.Module,
    parameters: Parameters,
    noisy: Tensor,
    y: Tensor,
    clean: Tensor,
    wanted: Tensor,
    *,
    rate: float,
) -> tuple[Tensor, Tensor]:
    """Differentiate the loss after a pseudo-update by the images of that update.

    With ``theta' = theta - rate * grad L(f_theta(noisy), y)``, lines 9 and 10 of
    Algorithm 2, this is the gradient of ``L(f_theta'(clean), wanted)`` by ``noisy``, the
    second derivative of the inner loss included.

    Parameters
    ----------
    parameters : theta, by the names of the surrogate's parameters; none is changed.
    noisy, clean : float [B, C, H, W] in [0, 1].
    y, wanted : int64 [B], labels of the inner and of the outer loss.

    Returns
    -------
    The outer loss, and its gradient [B, C, H, W].
    """
    images = noisy.detach().requires_grad_()
    theta = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    inner = F.cross_entropy(functional_call(surrogate, theta, (images,)), y)
    slopes = torch.autograd.grad(inner, list(theta.values()), create_graph=True)
    updated = {
        name: value.detach() - rate * slope
        for (name, value), slope in zip(theta.items(), slopes, strict=True)
    }
    outer = F.cross_entropy(functional_call(surrogate, updated, (clean,)), wanted)
    (gradient,) = torch.autograd.grad(outer, images)
    return outer.detach(), gradient


def descend(
    surrogate: nn.Module, parameters: Parameters, x: Tensor, y: Tensor, *, rate: float
) -> tuple[Parameters, Tensor]:
    """Return the parameters after one step of gradient descent, and the loss before it."""
    theta = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    loss = F.cross_entropy(functional_call(surrogate, theta, (x,)), y)
    slopes = torch.autograd.grad(loss, list(theta.values()))
    moved = {
        name: value.detach() - rate * slope
        for (name, value), slope in zip(theta.items(), slopes, strict=True)
    }
    return moved, loss.detach()


class Learner:
    """A generator in the making: its frozen copy, its optimiser, and the steps of both.

    Attributes
    ----------
    generator : g', which learns.
    frozen : g, which makes the images that the surrogate is trained on; it follows the
        generator at the end of each trial.
    """

    def __init__(self, generator: NoiseGenerator, procedure: Procedure) -> None:
        self.generator, self.procedure = generator, procedure
        self.frozen = _copy_of(generator)
        self.optimizer = torch.optim.Adam(
            generator.parameters(), lr=procedure.generator_rate, amsgrad=procedure.amsgrad
        )

    def trial(
        self, surrogate: nn.Module, images: ImageSet, *, seed: int, number: int
    ) -> tuple[float, float]:
        """Run one trial and return the mean outer loss and the surrogate's mean loss."""
        _use_batch_statistics(surrogate)
        parameters: Parameters = {n: p.detach() for n, p in surrogate.named_parameters()}
        recipe = Recipe(batch_size=self.procedure.batch_size, crop_padding=0, flip=False)
        sampler = Sampler(images, recipe, seed=seed)
        epochs = self.procedure.epochs_per_trial
        outer: list[Tensor] = []
        inner: list[Tensor] = []
        stored: list[tuple[Parameters, Tensor, Tensor]] = []
        for epoch in range(number * epochs, (number + 1) * epochs):
            for x, y in sampler.epoch(epoch):
                if self.procedure.algorithm == "stored":
                    stored.append((parameters, x, y))
                else:
                    outer.append(self.learn(surrogate, parameters, x, y))
                with torch.no_grad():
                    noisy = add_noise(x, self.frozen(x))
                rate = self.procedure.surrogate_rate
                parameters, loss = descend(surrogate, parameters, noisy, y, rate=rate)
                inner.append(loss)
        outer += [self.learn(surrogate, *moment) for moment in stored]
        self.frozen.load_state_dict(self.generator.state_dict())
        return float(torch.stack(outer).mean()), float(torch.stack(inner).mean())

    def learn(self, surrogate: nn.Module, parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
        """Take one step of the generator (line 10 of Algorithm 2) and return the outer loss."""
        noisy = add_noise(x, self.generator(x))
        if self.procedure.label_map is None:
            wanted, sign = y, -1.0
        else:
            wanted, sign = y.new_tensor(self.procedure.label_map)[y], 1.0
        rate = self.procedure.surrogate_rate
        loss, gradient = meta_gradient(surrogate, parameters, noisy, y, x, wanted, rate=rate)
        self.optimizer.zero_grad(set_to_none=True)
        noisy.backward(sign * gradient)
        self.optimizer.step()
        return loss


def fit_generator(
    generator: NoiseGenerator,
    images: ImageSet,
    procedure: Procedure,
    *,
    surrogate: Callable[[int], nn.Module],
    seed: int,
    checkpoint: Path | None = None,
    select: Callable[[NoiseGenerator], float] | None = None,
    select_every: int = 1,
    progress: bool = False,
) -> list[Epoch]:
    """Learn a generator in place and return what happened in each trial.

    Parameters
    ----------
    generator : on the device of ``images``.
    surrogate : makes a freshly initialised classifier for images in [0, 1] from a seed.
    checkpoint : safetensors file that holds the state after each trial; if it exists the
        learning goes on from there, unless it belongs to another procedure or seed.
    select : scores a generator, lower is better, after every ``select_every`` trials and
        after the last; the best one is what ``generator`` holds in the end. By default
        that is the last one.

    Returns
    -------
    One :class:`Epoch` a trial: the mean outer loss, the score (NaN where none was
    taken), and the seconds.

    Raises
    ------
    PoisonkitError
        If the label map is none on the data set's classes, or a loss stops being finite.
    """
    check_label_map(procedure.label_map, images)
    learner = Learner(generator, procedure)
    best = _copy_of(generator)
    state = nn.ModuleDict({"generator": generator, "best": best})
    run = json.dumps({"seed": seed, "select": select_every if select else 0, **asdict(procedure)})
    history = restore(checkpoint, state, learner.optimizer, run)
    learner.frozen.load_state_dict(generator.state_dict())
    bar = tqdm(
        total=procedure.trials,
        initial=len(history),
        disable=not progress,
        unit="trial",
        desc="generator",
        leave=False,
    )
    with bar, torch.random.fork_rng(devices=[]), repeatable_kernels():
        for number in range(len(history), procedure.trials):
            start = time.perf_counter()
            generator.train()
            victim = surrogate(seed + 1000 * (number + 1)).to(images.device)
            loss, _ = learner.trial(victim, images, seed=seed, number=number)
            if not math.isfinite(loss):
                raise PoisonkitError(
                    f"the outer loss became {loss} in trial {number}; "
                    f"try rates below {procedure.surrogate_rate} and {procedure.generator_rate}"
                )
            score = math.nan
            if select and ((number + 1) % select_every == 0 or number + 1 == procedure.trials):
                score = select(generator.eval())
                if score <= min((e.accuracy for e in history if e.accuracy >= 0), default=score):
                    best.load_state_dict(generator.state_dict())
            seconds = time.perf_counter() - start
            history.append(Epoch(loss=loss, accuracy=score, seconds=seconds))
            if checkpoint:
                save(checkpoint, state, learner.optimizer, history, run)
            bar.set_postfix(loss=f"{loss:.3f}")
            bar.update()
    if select:
        generator.load_state_dict(best.state_dict())
    generator.eval()
    return history


def check_label_map(label_map: Sequence[int] | None, images: ImageSet) -> None:
    """Refuse what does not give each class another class of the data set."""
    if label_map is None:
        return
    if len(label_map) != images.classes:
        raise PoisonkitError(
            f"a label map for {images.name} needs {images.classes} entries, not {len(label_map)}"
        )
    for label, wanted in enumerate(label_map):
        if not 0 <= wanted < images.classes:
            raise PoisonkitError(
                f"the label map sends class {label} to {wanted}; "
                f"the classes of {images.name} are 0 to {images.classes - 1}"
            )
    if all(label == wanted for label, wanted in enumerate(label_map)):
        raise PoisonkitError("the label map sends every class to itself")


def _copy_of(generator: NoiseGenerator) -> NoiseGenerator:
    """Return a copy in eval mode that takes part in no gradient."""
    return copy.deepcopy(generator).eval().requires_grad_(False)


def _use_batch_statistics(surrogate: nn.Module) -> None:
    """Normalise by the batch at hand, and write no running averages.

    A surrogate is never evaluated, and the pseudo-updates would write into them.
    """
    surrogate.train()
    for module in surrogate.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats = False
