"""The steps that the Convex Polytope trials are made of: pre-train, craft, fine-tune, look."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from poisonkit.attacks import polytope
from poisonkit.attacks.surrounding import (
    Procedure,
    Substitute,
)
from poisonkit.experiments.convex_polytope.data import Data, options_of, taps_of
from poisonkit.experiments.convex_polytope.setting import Layers, PolytopeConfig
from poisonkit.experiments.networks import Context, Cost, trained_network
from poisonkit.experiments.settings import as_json
from poisonkit.fine_tuning import fresh_layer
from poisonkit.images import ImageSet
from poisonkit.models import Classifier
from poisonkit.poison import Poison
from poisonkit.store import Json, digest_of

#: Raised when the same setting would give other poisons; crafted ones are then not reused.
VERSION = 1
#: The substitutes' seeds are so much larger than the victims'.
SUBSTITUTE_SEEDS = 1000


# Networks -----------------------------------------------------------------------------------


def victim(
    config: PolytopeConfig, data: Data, name: str, context: Context, cost: Cost
) -> Classifier:
    """Return a victim as it is before it is fine-tuned."""
    network = trained_network(
        context,
        data.pretraining,
        config.pretraining,
        model=name,
        seed=config.seed,
        label=f"{name}, victim",
        cost=cost,
        **options_of(config, name),
    )
    if config.head == "fresh":
        layer = network.module_at("linear")
        assert isinstance(layer, nn.Linear)
        network.body.add_module("linear", fresh_layer(layer, seed=config.seed))
    return network


def substitutes(
    config: PolytopeConfig,
    images: ImageSet,
    context: Context,
    cost: Cost,
    *,
    layers: Layers = "last",
    begin_at: int = 0,
) -> list[Substitute]:
    """Return the trained substitutes: one for each architecture and rate of dropout.

    Parameters
    ----------
    images : what they are trained on.
    begin_at : the one that is asked for first, so that trials that run at the same time do
        not wait for each other's networks.
    """
    wanted = [(name, rate) for name in config.substitutes for rate in config.dropouts]
    found: dict[int, Substitute] = {}
    for shifted in range(len(wanted)):
        number = (shifted + begin_at) % len(wanted)
        name, rate = wanted[number]
        options = options_of(config, name)
        if rate:
            options["dropout"] = rate
        network = trained_network(
            context,
            images,
            config.pretraining,
            model=name,
            seed=config.seed + SUBSTITUTE_SEEDS + number,
            label=f"{name}, substitute",
            cost=cost,
            **options,
        )
        found[number] = Substitute(network=network, taps=taps_of(network, name, layers))
    return [found[number] for number in range(len(wanted))]


# Poisons ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Poisons:
    """What was crafted for some targets.

    Attributes
    ----------
    targets : those targets.
    images : float [T, k, C, H, W], before rounding.
    poisons : one for each target.
    losses : float [iterations, T].
    watched : see :class:`poisonkit.attacks.polytope.Crafted`.
    """

    targets: ImageSet
    images: Tensor
    poisons: list[Poison]
    losses: Tensor
    watched: Tensor

    @property
    def rounded(self) -> Tensor:
        """uint8 [T, k, C, H, W]."""
        return torch.stack([poison.images for poison in self.poisons])


def crafted(
    config: PolytopeConfig,
    data: Data,
    nets: Sequence[Substitute],
    procedure: Procedure,
    first: int,
    context: Context,
    cost: Cost,
    *,
    watch: Sequence[Substitute] = (),
    watch_every: int = 50,
) -> Poisons:
    """Return the poisons for a block of targets, crafted now or before."""
    numbers = torch.arange(first, min(first + config.targets_at_once, len(data.targets)))
    targets = data.targets.select(numbers.to(data.targets.device))
    spec: Json = {
        "crafting": VERSION,
        "procedure": as_json(procedure),
        "substitutes": [[_digest(one), list(one.taps)] for one in nets],
        "watch": [[_digest(one) for one in watch], watch_every if watch else 0],
        "fine_tuning": data.fine_tuning.checksum,
        "rows": list(data.rows),
        "targets": targets.checksum,
        "seed": config.seed,
        "device": targets.device.type,
    }
    if config.stream:
        # Solved for one network at a time, the coefficients differ in their last digits.
        spec["stream"] = True

    def compute(scratch: Path) -> tuple[Json, dict[str, Tensor]]:
        done = polytope.craft(
            data.fine_tuning,
            nets,
            targets,
            rows=data.rows,
            procedure=procedure,
            seed=config.seed,
            stream=config.stream,
            watch=watch,
            watch_every=watch_every,
            checkpoint=scratch / "checkpoint.safetensors",
            progress=context.progress,
        )
        tensors = {"images": done.images, "losses": done.losses, "watched": done.watched}
        return {"procedure": asdict(procedure), "seconds": done.seconds}, tensors

    found = context.artefact("poisons", spec, compute, cost)
    device = targets.device
    images = found.tensors["images"].to(device)
    return Poisons(
        targets=targets,
        images=images,
        poisons=polytope.poisons_of(
            images, data.fine_tuning, rows=data.rows, epsilon=procedure.epsilon
        ),
        losses=found.tensors["losses"],
        watched=found.tensors["watched"],
    )


def _digest(one: Substitute) -> str:
    return digest_of({}, one.network.state_dict())
