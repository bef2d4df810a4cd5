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
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from poisonkit.attacks.unrolled import Parameters, descend, made_by, meta_gradient, prepare
from poisonkit.augmentation import random_resized_crops
from poisonkit.checkpoint import restore, save
from poisonkit.devices import reproducible
from poisonkit.errors import PoisonkitError, unknown
from poisonkit.graphs import Recorded
from poisonkit.images import ImageSet
from poisonkit.models.generators import NoiseGenerator, check_shape
from poisonkit.options import added, written
from poisonkit.training import Recipe, Sampler, mixed


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
    crops : what generator and surrogates see of an image: all of it (``none``), or a part of
        ``random`` place and size, enlarged, as in the released ImageNet code.
    precision : ``float32``, or ``tf32``, which a GPU that has it multiplies in (factors of 10
        bits, sums in float32); on a CPU both are the same.
    """

    algorithm: Literal["memory_efficient", "stored"] = "memory_efficient"
    trials: int = 500
    epochs_per_trial: int = 1
    batch_size: int = 64
    surrogate_rate: float = 0.01
    generator_rate: float = 1e-4
    amsgrad: bool = False
    label_map: tuple[int, ...] | None = None
    crops: Literal["none", "random"] = added("none")
    precision: Literal["float32", "tf32"] = added("float32")

    def __post_init__(self) -> None:
        for name, known in (
            ("algorithm", ("memory_efficient", "stored")),
            ("crops", ("none", "random")),
            ("precision", ("float32", "tf32")),
        ):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        for name in ("trials", "epochs_per_trial", "batch_size"):
            if getattr(self, name) < 1:
                raise PoisonkitError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("surrogate_rate", "generator_rate"):
            if not getattr(self, name) > 0:
                raise PoisonkitError(f"{name} must be positive, not {getattr(self, name)}")


def add_noise(x: Tensor, noise: Tensor) -> Tensor:
    """Return images in [0, 1] with noise added, clipped to [0, 1]."""
    return (x + noise).clamp(0, 1)


class Learner:
    """A generator in the making, the surrogate at hand, and the steps of both.

    Attributes
    ----------
    generator : g', which learns.
    frozen : g, which makes the images that the surrogate is trained on; it follows the
        generator at the end of each trial.
    theta : the surrogate's weights, changed in place.
    """

    def __init__(
        self, generator: NoiseGenerator, surrogate: nn.Module, procedure: Procedure
    ) -> None:
        prepare(surrogate)
        self.generator, self.surrogate, self.procedure = generator, surrogate, procedure
        self.frozen = _copy_of(generator)
        self.theta: Parameters = {n: p.detach().clone() for n, p in surrogate.named_parameters()}
        device = next(generator.parameters()).device
        chosen = procedure.label_map
        self._label_map = None if chosen is None else torch.tensor(chosen, device=device)
        self.optimizer = torch.optim.Adam(
            generator.parameters(),
            lr=procedure.generator_rate,
            amsgrad=procedure.amsgrad,
            capturable=device.type == "cuda",
        )
        # Bound methods would keep the learner, and what its recordings hold of a GPU, after its
        # last user is gone.
        own = weakref.proxy(self)
        self._learn = Recorded(lambda x, y: own._one_learn(x, y))
        self._follow = Recorded(lambda x, y: own._one_follow(x, y))
        self._both = Recorded(lambda x, y: own._one_of_both(x, y))

    def trial(self, surrogate: nn.Module, images: ImageSet, *, seed: int, number: int) -> float:
        """Run one trial and return the mean outer loss."""
        self._start_from({name: p.detach() for name, p in surrogate.named_parameters()})
        recipe = Recipe(batch_size=self.procedure.batch_size, crop_padding=0, flip=False)
        sampler = Sampler(images, recipe, seed=seed)
        epochs = self.procedure.epochs_per_trial
        outer: list[Tensor] = []
        stored: list[tuple[Parameters, Tensor, Tensor]] = []
        for epoch in range(number * epochs, (number + 1) * epochs):
            for step, (x, y) in enumerate(sampler.epoch(epoch)):
                if self.procedure.crops == "random":
                    x = random_resized_crops(x, seed=mixed(mixed(seed, epoch), step))
                if self.procedure.algorithm == "stored":
                    stored.append(({n: v.clone() for n, v in self.theta.items()}, x, y))
                    self._follow(x, y)
                else:
                    outer += self._both(x, y)
        for parameters, x, y in stored:
            self._start_from(parameters)
            outer += self._learn(x, y)
        self.frozen.load_state_dict(self.generator.state_dict())
        return float(torch.stack(outer).mean())

    def _start_from(self, parameters: Mapping[str, Tensor]) -> None:
        for name, value in self.theta.items():
            value.copy_(parameters[name])

    def _one_of_both(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        outer = self._one_learn(x, y)
        self._one_follow(x, y)
        return outer

    def _one_learn(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Take one step of the generator (line 10 of Algorithm 2) and return the outer loss."""
        noisy = add_noise(x, self.generator(x))
        wanted, sign = (y, -1.0) if self._label_map is None else (self._label_map[y], 1.0)
        rate = self.procedure.surrogate_rate
        loss, gradient = meta_gradient(self.surrogate, self.theta, noisy, y, x, wanted, rate=rate)
        parameters = list(self.generator.parameters())
        slopes = torch.autograd.grad(noisy, parameters, sign * gradient)
        for parameter, slope in zip(parameters, slopes, strict=True):
            parameter.grad = slope
        self.optimizer.step()
        return (loss,)

    def _one_follow(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Take one step of the surrogate (line 13) on the frozen generator's images."""
        with torch.no_grad():
            noisy = add_noise(x, self.frozen(x))
        rate = self.procedure.surrogate_rate
        return (descend(self.surrogate, self.theta, noisy, y, rate=rate),)


@dataclass(frozen=True)
class Trial:
    """What happened in a trial: the mean outer loss, the scores taken after it, the seconds."""

    loss: float
    seconds: float
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Learned:
    """The course of a learning, and for each score the generator that had the lowest."""

    history: list[Trial]
    best: dict[str, NoiseGenerator]


def fit_generator(
    generator: NoiseGenerator,
    images: ImageSet,
    procedure: Procedure,
    *,
    surrogate: Callable[[int], nn.Module],
    seed: int,
    checkpoint: str | Path | None = None,
    scores: Sequence[str] = (),
    score: Callable[[NoiseGenerator], Mapping[str, float]] | None = None,
    score_every: int = 1,
    progress: bool = False,
) -> Learned:
    """Learn a generator in place and return what happened in each trial.

    Parameters
    ----------
    generator : on the device of ``images``.
    surrogate : makes a freshly initialised classifier for images in [0, 1] from a seed: any
        module all of whose weights are used and trained, and without dropout. Copies of it are
        trained, in which torch's batch normalisation normalises by the batch at hand.
    checkpoint : safetensors file that holds the state after each trial; if it exists the
        learning goes on from there, perhaps for more trials than were asked for then. One of
        other images, another bound, procedure or seed is an error; generator and surrogates
        must be the same.
    scores, score : names, and what judges a generator by each of them, lower being
        better, after every ``score_every`` trials and after the last; both or neither.

    Raises
    ------
    PoisonkitError
        If the label map is none on the data set's classes, if the generator does not fit the
        images, if a score is missing, or if a loss stops being finite.
    """
    if bool(scores) != (score is not None):
        raise PoisonkitError("names of scores and what judges by them are given together")
    if score_every < 1:
        raise PoisonkitError(f"score_every must be at least 1, not {score_every}")
    check_label_map(procedure.label_map, images)
    check_shape(generator, (images.channels, *images.image_size))
    learner = Learner(generator, made_by(surrogate, seed).to(images.device), procedure)
    best = {name: _copy_of(generator) for name in scores}
    state = nn.ModuleDict({"generator": generator, "best": nn.ModuleDict(best)})
    about = {"seed": seed, "images": images.checksum, "epsilon": generator.epsilon}
    judged = {"scores": [*scores], "score_every": score_every}
    settings = {name: v for name, v in written(procedure).items() if name != "trials"}
    run = json.dumps({**about, **judged, **settings})
    history = [Trial(**done) for done in restore(checkpoint, state, learner.optimizer, run)]
    if len(history) > procedure.trials:
        raise PoisonkitError(
            f"{checkpoint} has learned for {len(history)} trials, more than {procedure.trials}"
        )
    learner.frozen.load_state_dict(generator.state_dict())
    bar = tqdm(
        total=procedure.trials,
        initial=len(history),
        disable=not progress,
        unit="trial",
        desc="generator",
        leave=False,
    )
    with bar, reproducible(images.device, tf32=procedure.precision == "tf32"):
        for number in range(len(history), procedure.trials):
            start = time.perf_counter()
            generator.train()
            # Far from the seeds of the classifiers that are attacked in the end.
            fresh = made_by(surrogate, seed + 1_000_003 * (number + 1)).to(images.device)
            loss = learner.trial(fresh, images, seed=seed, number=number)
            if not math.isfinite(loss):
                raise PoisonkitError(
                    f"the outer loss became {loss} in trial {number}; "
                    f"try rates below {procedure.surrogate_rate} and {procedure.generator_rate}"
                )
            found: dict[str, float] = {}
            if score and ((number + 1) % score_every == 0 or number + 1 == procedure.trials):
                found = dict(score(generator.eval()))
                if missing := set(scores) - set(found):
                    raise PoisonkitError(f"the generator was not judged by {min(missing)!r}")
                for name in scores:
                    before = (trial.scores[name] for trial in history if trial.scores)
                    if found[name] <= min(before, default=found[name]):
                        best[name].load_state_dict(generator.state_dict())
            seconds = time.perf_counter() - start
            history.append(Trial(loss=loss, seconds=seconds, scores=found))
            if checkpoint:
                done = [asdict(trial) for trial in history]
                save(checkpoint, state, learner.optimizer, done, run)
            bar.set_postfix(loss=f"{loss:.3f}")
            bar.update()
    # What a recorded step holds of a GPU goes with the last of its tensors.
    learner.optimizer.zero_grad(set_to_none=True)
    generator.eval()
    return Learned(history=history, best=best)


def check_label_map(label_map: Sequence[int] | None, images: ImageSet) -> None:
    """Refuse what does not give each class a class of the data set, or changes none."""
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
