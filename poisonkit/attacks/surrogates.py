"""Surrogate networks at different ages, as MetaPoison crafts with.

Their weights lie in one tensor for each parameter, surrogate by surrogate, so that a
checkpoint holds them all.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from poisonkit.attacks.batch_statistics import Averages, BatchStatistics, moving
from poisonkit.attacks.meta_procedure import Procedure
from poisonkit.attacks.unrolled import Parameters, made_by, prepare
from poisonkit.errors import PoisonkitError
from poisonkit.training import mixed

#: Seeds of a surrogate's successive lives are so far apart.
_LIVES = 1_000_003


class Surrogates(nn.Module):
    """M networks of one kind, each with its own weights, age and number of lives.

    Parameters
    ----------
    create : see :func:`poisonkit.attacks.metapoison.craft`.
    seed : of the weights and of the order of the images.
    """

    ages: Tensor
    lives: Tensor

    def __init__(self, create: Callable[[int], nn.Module], procedure: Procedure, seed: int) -> None:
        super().__init__()
        self.procedure, self.seed = procedure, seed
        self._create = create
        # Kept out of the state: what it computes with is handed to it each time.
        self._network = [made_by(create, seed)]
        prepare(self._network[0])
        for name, value in self._network[0].named_parameters():
            shape = (procedure.surrogates, *value.shape)
            self.register_buffer(_key("theta", name), torch.zeros(shape, device=value.device))
            if procedure.momentum:
                self.register_buffer(_key("speed", name), torch.zeros(shape, device=value.device))
        #: The parts that keep running averages, if the target is normalised by them.
        self.averaged: list[str] = []
        if procedure.normalised_with == "averages":
            _check_averaged(self._network[0])
            self.averaged = [
                name
                for name, part in self._network[0].named_modules()
                if isinstance(part, BatchStatistics)
            ]
        for name in self.averaged:
            weight = self._network[0].get_parameter(f"{name}.weight")
            for kind in ("mean", "variance"):
                averages = torch.zeros(procedure.surrogates, len(weight), device=weight.device)
                self.register_buffer(_key(kind, name), averages)
        count = torch.zeros(procedure.surrogates, dtype=torch.int64)
        self.register_buffer("ages", count)
        self.register_buffer("lives", count.clone())
        for number in range(procedure.surrogates):
            self._initialise(number)

    @property
    def network(self) -> nn.Module:
        return self._network[0]

    def _initialise(self, number: int) -> None:
        fresh = self._create(self.seed_of(number))
        for name, value in fresh.named_parameters():
            self.get_buffer(_key("theta", name))[number] = value.detach()
            if self.procedure.momentum:
                self.get_buffer(_key("speed", name))[number] = 0
        for name in self.averaged:
            self.get_buffer(_key("mean", name))[number] = 0
            self.get_buffer(_key("variance", name))[number] = 1

    def seed_of(self, number: int) -> int:
        """Return the seed of a surrogate in its present life."""
        return self.seed + 1 + number + _LIVES * int(self.lives[number])

    def orders(self, count: int) -> list[list[Tensor]]:
        """Return for each surrogate the rows of each batch of its epoch, of ``count`` images."""
        numbers = range(self.procedure.surrogates)
        return [self.at(number).order(count) for number in numbers]

    def at(self, number: int) -> "Surrogate":
        """Return one of them; what it learns is kept here."""
        return Surrogate(self, number)

    def stagger(self, x: Tensor, y: Tensor) -> None:
        """Train the m-th surrogate for m times the stagger's epochs."""
        for number in range(self.procedure.surrogates):
            one = self.at(number)
            for _ in range(number * self.procedure.stagger):
                for rows in one.order(len(y)):
                    one.descend(x[rows], y[rows])
                one.finish_epoch()


class Surrogate:
    """One surrogate: a view of its weights, and its age.

    Attributes
    ----------
    averages : running averages of its training, None unless the target is normalised by them.
    """

    def __init__(self, whole: Surrogates, number: int) -> None:
        self._whole, self._number = whole, number
        names = [name for name, _ in whole.network.named_parameters()]
        self.network: nn.Module = whole.network
        self.parameters: Parameters = {
            name: whole.get_buffer(_key("theta", name))[number] for name in names
        }
        self._speed: Parameters = {}
        if whole.procedure.momentum:
            self._speed = {name: whole.get_buffer(_key("speed", name))[number] for name in names}
        self.averages: Averages | None = None
        if whole.procedure.normalised_with == "averages":
            self.averages = {
                name: (
                    whole.get_buffer(_key("mean", name))[number],
                    whole.get_buffer(_key("variance", name))[number],
                )
                for name in whole.averaged
            }

    @property
    def age(self) -> int:
        """Epochs that it has been trained for in this life."""
        return int(self._whole.ages[self._number])

    @property
    def rate(self) -> float:
        """The learning rate in this epoch."""
        procedure = self._whole.procedure
        return procedure.surrogate_rate * min(1.0, (self.age + 1) / max(procedure.warmup_epochs, 1))

    def order(self, count: int) -> list[Tensor]:
        """Return the rows of each batch of this epoch, of ``count`` images."""
        seed = mixed(self._whole.seed_of(self._number), self.age)
        generator = torch.Generator().manual_seed(seed)
        device = next(iter(self.parameters.values())).device
        rows = torch.randperm(count, generator=generator).to(device)
        size = self._whole.procedure.batch_size
        return list(rows.tensor_split(-(-count // size)))

    def descend(self, x: Tensor, y: Tensor) -> Tensor:
        """Take one step of training, and return the loss before it."""
        theta = {name: value.detach().requires_grad_() for name, value in self.parameters.items()}
        with moving(self.network, self.averages or {}):
            loss = F.cross_entropy(functional_call(self.network, theta, (x,)), y)
        slopes = torch.autograd.grad(loss, list(theta.values()))
        rate = self.rate
        for (name, value), slope in zip(self.parameters.items(), slopes, strict=True):
            if self._speed:
                slope = self._speed[name].mul_(self._whole.procedure.momentum).add_(slope)
            value.sub_(slope, alpha=rate)
        return loss.detach()

    def finish_epoch(self) -> None:
        """Grow older by an epoch; at the end of a life begin another."""
        self._whole.ages[self._number] += 1
        if self.age >= self._whole.procedure.lifetime:
            self._whole.ages[self._number] = 0
            self._whole.lives[self._number] += 1
            self._whole._initialise(self._number)


def _check_averaged(network: nn.Module) -> None:
    for name, part in network.named_modules():
        # What was not replaced keeps no averages: without weight and bias, or not torch's own.
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            raise PoisonkitError(
                f"normalised_with='averages' needs torch's batch normalisation with weight and "
                f"bias, unlike {name}"
            )


def _key(kind: str, name: str) -> str:
    return f"{kind}__{name.replace('.', '__')}"
