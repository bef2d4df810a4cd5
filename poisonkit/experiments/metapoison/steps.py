"""The steps that the MetaPoison trials are made of: draw a pair, craft, train, look."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poisonkit.attacks import metapoison
from poisonkit.errors import PoisonkitError
from poisonkit.evaluation import by_batch_statistics
from poisonkit.experiments.metapoison.setting import MetaConfig
from poisonkit.experiments.networks import (
    Context,
    Cost,
    Measured,
    Transform,
    training_of,
)
from poisonkit.experiments.settings import as_json
from poisonkit.images import ImageSet
from poisonkit.models import Classifier, create, evaluating
from poisonkit.poison import Poison
from poisonkit.store import Json
from poisonkit.training import Sampler, mixed

#: Raised when the same setting would give other poisons; crafted ones are then not reused.
VERSION = 1
#: What is read off the targets after each epoch of a victim, in eval mode and by the
#: statistics of a training batch that they are part of, as the released code does.
WAYS = ("", "in_batch_")
#: Victims' seeds are so much larger than the surrogates'.
VICTIM_SEEDS = 5000


@dataclass(frozen=True, kw_only=True)
class Data:
    """The training images, and the test images that accuracies are measured on."""

    train: ImageSet
    test: ImageSet


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One attack: what is poisoned, and what shall become of which test images.

    Attributes
    ----------
    rows : training images that become poisons.
    targets : test images, all of one class.
    numbers : their rows among all test images.
    wanted : the label that they shall be given.
    """

    number: int
    rows: tuple[int, ...]
    poison_label: int
    targets: ImageSet
    numbers: tuple[int, ...]
    wanted: int

    def as_json(self, names: tuple[str, ...]) -> Json:
        return {
            "poison_class": names[self.poison_label],
            "target_class": names[int(self.targets.y[0])],
            "wanted_class": names[self.wanted],
            "targets": list(self.numbers),
        }


def begin(config: MetaConfig, number: int, context: Context) -> tuple[Data, Pair, Cost]:
    """Start a trial: load the data, draw its pair, and refuse what could not be done."""
    cost = Cost()
    whole = context.load(config.dataset, "train", image_size=config.image_size)
    test = context.load(config.dataset, "test", image_size=config.image_size)
    train = (
        whole if config.images_per_class is None else whole.first_per_class(config.images_per_class)
    )
    for name in ("pairs", "victims", "targets", "poisons", "kept_every", "tested_per_class"):
        if getattr(config, name) < 1:
            raise PoisonkitError(f"{name} must be at least 1, not {getattr(config, name)}")
    if config.procedure.colour and train.channels != 3:
        raise PoisonkitError(
            f"recolouring needs 3 channels, not the {train.channels} of {train.name}"
        )
    pair = draw_pair(config, train, test, number)
    metapoison.check_request(train, pair.targets, [pair.wanted] * len(pair.targets), rows=pair.rows)
    for model in dict.fromkeys((config.model, config.surrogate or config.model)):
        _try(create(model, like=train, seed=0, **options_of(config)), model, pair.targets)
    Sampler(train, config.recipe, seed=0)
    tested = test.first_per_class(config.tested_per_class)
    return Data(train=train, test=tested), pair, cost


def _try(network: Classifier, name: str, images: ImageSet) -> None:
    """Refuse a network that cannot take the images."""
    try:
        target_logits(network, images)
    except RuntimeError as error:
        raise PoisonkitError(
            f"{name} cannot take images of {images.image_size} pixels ({error})"
        ) from error


def draw_pair(config: MetaConfig, train: ImageSet, test: ImageSet, number: int) -> Pair:
    """Draw the class of the poisons, then targets of another one; each pair by itself."""
    generator = torch.Generator().manual_seed(mixed(config.seed, number))

    def draw(asked: str | None, *without: int | None) -> int:
        order = torch.randperm(train.classes, generator=generator).tolist()
        if asked is not None:
            return train.label_of(asked)
        return next(label for label in order if label not in without)

    if train.classes < 2 + config.third_party:
        raise PoisonkitError(f"{train.name} has only {train.classes} classes")
    asked = None if config.target_class is None else train.label_of(config.target_class)
    poison_label = draw(config.poison_class, asked)
    target_label = draw(config.target_class, poison_label)
    if poison_label == target_label:
        raise PoisonkitError(f"poisons and targets are both of class {config.poison_class!r}")
    if config.third_party and config.wanted_class is not None:
        raise PoisonkitError(
            "a third party's class is drawn: leave wanted_class or third_party out"
        )
    rows = train.indices_of(poison_label)[: config.poisons].tolist()
    if len(rows) < config.poisons:
        raise PoisonkitError(
            f"{config.poisons} poisons are asked for, but class "
            f"{train.class_names[poison_label]!r} has {len(rows)} training images"
        )
    there = test.indices_of(target_label)
    if len(there) < config.targets:
        raise PoisonkitError(
            f"{config.targets} targets are asked for, but class "
            f"{train.class_names[target_label]!r} has {len(there)} test images"
        )
    order = torch.randperm(len(there), generator=generator)[: config.targets]
    if config.target is not None:
        if config.targets != 1:
            raise PoisonkitError(f"with one target chosen, targets must be 1, not {config.targets}")
        if not 0 <= config.target < len(there):
            raise PoisonkitError(
                f"target {config.target} is not one of the {len(there)} test images of class "
                f"{train.class_names[target_label]!r}"
            )
        order = torch.tensor([config.target])
    chosen = there[order.to(there.device)]
    # Drawn last, so that all attacks of a pair have the same target.
    wanted = draw(None, poison_label, target_label) if config.third_party else poison_label
    if config.wanted_class is not None:
        wanted = train.label_of(config.wanted_class)
    return Pair(
        number=number,
        rows=tuple(rows),
        poison_label=poison_label,
        targets=test.select(chosen),
        numbers=tuple(chosen.tolist()),
        wanted=wanted,
    )


def options_of(config: MetaConfig) -> dict[str, Any]:
    """Return what a network of the configuration is created with besides its name."""
    return {} if config.width is None else {"width": config.width}


# Poisons ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Poisons:
    """What was crafted for a pair.

    Attributes
    ----------
    images : float [n, C, H, W] in [0, 1], before rounding.
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
        options = options_of(config)
        return create(model, like=train, seed=seed, standardise=config.standardise, **options)

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
        return {}, {
            "images": done.images,
            "course": torch.stack([poison.images for poison in done.course]),
            "unaffected": done.unaffected,
            "unrolled": done.unrolled,
        }

    start = time.perf_counter()
    found = context.store.artefact("poisons", spec, compute)
    cost.count(found, time.perf_counter() - start)
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
    for prefix, pair in pairs.items():
        for way in WAYS:
            watch |= _measures(pair, beside if way else None, images.checksum, f"{prefix}{way}")
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
        options=options_of(config),
    )


def _measures(pair: Pair, beside: Tensor | None, images: str, prefix: str) -> dict[str, Measured]:
    about: Json = {"targets": pair.targets.checksum, "wanted": pair.wanted}
    if beside is not None:
        about |= {"beside": len(beside), "of": images}
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
