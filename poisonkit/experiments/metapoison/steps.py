"""The steps that the MetaPoison trials are made of: craft, train, look."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poisonkit.attacks import metapoison
from poisonkit.errors import PoisonkitError
from poisonkit.evaluation import by_batch_statistics
from poisonkit.experiments.metapoison.pairs import Data, Pair
from poisonkit.experiments.metapoison.setting import MetaConfig
from poisonkit.experiments.networks import (
    Context,
    Cost,
    Measured,
    Transform,
    training_of,
    width_option,
)
from poisonkit.experiments.settings import as_json
from poisonkit.images import ImageSet
from poisonkit.models import Classifier, create, evaluating
from poisonkit.poison import Poison
from poisonkit.store import Json

#: Raised when the same setting would give other poisons; crafted ones are then not reused.
VERSION = 1
#: What is read off the targets after each epoch of a victim in eval mode, is read once more by
#: the statistics of a training batch that they are part of, as the released code does.
IN_BATCH = "in_batch_"
#: Victims' seeds are so much larger than the surrogates'.
VICTIM_SEEDS = 5000


# Poisons ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Poisons:
    """What was crafted for a pair.

    Attributes
    ----------
    images : float [n, C, H, W], before rounding.
    course : the poisons before steps 0, ``kept_every``, ... and after the last one.
    unaffected, unrolled : float [steps], see :class:`poisonkit.attacks.metapoison.Crafted`.
    """

    images: Tensor
    course: list[Poison]
    unaffected: Tensor
    unrolled: Tensor

    @property
    def last(self) -> Poison:
        return self.course[-1]


def crafted(config: MetaConfig, data: Data, pair: Pair, context: Context, cost: Cost) -> Poisons:
    """Return a pair's poisons, crafted now or before."""
    train, procedure = data.train, config.procedure
    model = config.surrogate or config.model
    spec: Json = {
        "crafting": VERSION,
        "procedure": as_json(procedure),
        "surrogate": [model, config.width, config.standardise],
        "kept_every": config.kept_every,
        "train": train.checksum,
        "rows": list(pair.rows),
        "targets": pair.targets.checksum,
        "wanted": pair.wanted,
        "seed": config.seed,
        "device": train.device.type,
    }

    def fresh(seed: int) -> Classifier:
        return create(
            model,
            like=train,
            seed=seed,
            standardise=config.standardise,
            **width_option(config.width),
        )

    def compute(scratch: Path) -> tuple[Json, dict[str, Tensor]]:
        done = metapoison.craft(
            train,
            pair.targets,
            [pair.wanted] * len(pair.targets),
            rows=pair.rows,
            surrogate=fresh,
            procedure=procedure,
            seed=config.seed,
            keep_every=config.kept_every,
            checkpoint=scratch / "checkpoint.safetensors",
            progress=context.progress,
        )
        return {"seconds": done.seconds}, {
            "images": done.images,
            "course": torch.stack([poison.images for poison in done.course]),
            "unaffected": done.unaffected,
            "unrolled": done.unrolled,
        }

    found = context.artefact("poisons", spec, compute, cost)
    tensors = {name: tensor.to(train.device) for name, tensor in found.tensors.items()}
    return Poisons(
        images=tensors["images"],
        course=[
            metapoison.as_poison(images, train, pair.rows, procedure)
            for images in tensors["course"]
        ],
        unaffected=found.tensors["unaffected"],
        unrolled=found.tensors["unrolled"],
    )


def kept_steps(config: MetaConfig) -> list[int]:
    """Return the numbers of crafting steps after which the poisons are kept."""
    if config.kept_every < 1:
        raise PoisonkitError(f"kept_every must be at least 1, not {config.kept_every}")
    steps = config.procedure.steps
    return [*range(0, steps, config.kept_every), steps]


# Victims ------------------------------------------------------------------------------------


def train_victim(
    config: MetaConfig,
    data: Data,
    images: ImageSet,
    followed: Pair | Mapping[str, Pair] | None,
    number: int,
    context: Context,
    cost: Cost,
    *,
    transform: Transform | None = None,
) -> tuple[Classifier, Json]:
    """Train a network from scratch, and follow what becomes of the targets of some pairs.

    Parameters
    ----------
    followed : a pair; or several by the prefix of the names of what is read off them.
    number : of the victim; it sets the initial weights and the order of the images.

    Returns
    -------
    The network, and its course: one number an epoch of the training ``loss`` and ``accuracy``,
    the accuracy on ``test`` images, and for each pair ``target_loss`` (towards the wanted label)
    and ``success`` (the share of targets that are given it), each also ``in_batch_``.
    """
    # The same images in the batch for every network and epoch.
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(config.seed))
    beside = images.x[chosen[: config.recipe.batch_size].to(images.device)]
    watch: dict[str, ImageSet | Measured] = {"test": data.test}
    pairs = {"": followed} if isinstance(followed, Pair) else followed or {}
    others: Json = {"beside": len(beside), "of": images.checksum}
    if config.seed:
        # Left out where it is 0, as it was before seeds were told apart here.
        others["drawn"] = config.seed
    for prefix, pair in pairs.items():
        watch |= _measures(pair, prefix)
        watch |= _measures(pair, prefix + IN_BATCH, beside, others)
    return training_of(
        context,
        images,
        config.recipe,
        model=config.model,
        seed=config.seed + VICTIM_SEEDS + number,
        label="clean" if images is data.train else "poisoned",
        cost=cost,
        standardise=config.standardise,
        transform=transform,
        watch=watch,
        options=width_option(config.width),
    )


def unrounded(rounded: Tensor, images: Tensor, checksum: str) -> Transform:
    """Return a transform that puts poisons as they were before rounding in place of the rounded.

    Parameters
    ----------
    rounded : uint8 [n, C, H, W], as they are found in the batches.
    images : float [n, C, H, W].
    checksum : of the training images with the rounded poisons.
    """
    weights = key_weights(rounded[0].numel()).to(rounded.device)

    def key(x: Tensor) -> Tensor:
        return x.flatten(1).double() @ weights

    keys, order = key(rounded).sort()

    def apply(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        own = key((255 * x).round())
        place = torch.searchsorted(keys, own).clamp_max(len(keys) - 1)
        found = keys[place] == own
        x = x.clone()
        x[found] = images[order[place[found]]]
        return x

    about: Json = {"poisons": "not rounded", "of": checksum}
    return Transform(about=about, apply=apply)


def key_weights(pixels: int) -> Tensor:
    """Return random whole numbers, float64, whose sum with uint8 images as weights is exact.

    So equal images have equal keys, in whatever order a device sums.
    """
    generator = torch.Generator().manual_seed(0)
    highest = min(2**31, 2**53 // (255 * pixels))
    return torch.randint(1, highest, (pixels,), generator=generator).double()


def _measures(
    pair: Pair, prefix: str, beside: Tensor | None = None, others: Json | None = None
) -> dict[str, Measured]:
    """Return what is read off a pair's targets, alone or ``beside`` the images of ``others``."""
    about: Json = {"targets": pair.targets.checksum, "wanted": pair.wanted, **(others or {})}
    wanted = torch.full((len(pair.targets),), pair.wanted, device=pair.targets.device)

    def loss(network: nn.Module) -> float:
        return float(F.cross_entropy(target_logits(network, pair.targets, beside), wanted))

    def success(network: nn.Module) -> float:
        found = target_logits(network, pair.targets, beside).argmax(1)
        return float((found == wanted).double().mean())

    return {
        f"{prefix}target_loss": Measured({**about, "read": "loss"}, loss),
        f"{prefix}success": Measured({**about, "read": "success"}, success),
    }


@torch.no_grad()
def target_logits(network: nn.Module, targets: ImageSet, beside: Tensor | None = None) -> Tensor:
    """Return the logits of targets in eval mode, or normalised together with other images.

    Parameters
    ----------
    beside : uint8 images that are one batch with the targets.
    """
    if beside is None:
        with evaluating(network):
            return network(targets.x.float() / 255)
    with evaluating(network), by_batch_statistics(network):
        return network(torch.cat([beside, targets.x]).float() / 255)[len(beside) :]


def last_representation(network: Classifier) -> str:
    """Return the name of the part whose output enters the linear layer."""
    parts = [name for name, _ in network.body.named_children()]
    for name in ("pool", "hidden"):
        if name in parts:
            return name
    raise PoisonkitError(
        f"the network has neither 'pool' nor 'hidden' before its last layer: {parts}"
    )
