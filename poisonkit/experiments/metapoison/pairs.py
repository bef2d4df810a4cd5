"""Who is attacked with what: the images of a MetaPoison trial, and the pair drawn from them."""

from dataclasses import dataclass

import torch

from poisonkit.attacks import metapoison
from poisonkit.errors import PoisonkitError
from poisonkit.experiments.metapoison.setting import MetaConfig, check_rounding
from poisonkit.experiments.networks import Context, Cost, width_option
from poisonkit.images import ImageSet
from poisonkit.models import Classifier, create, evaluating, must_take
from poisonkit.store import Json
from poisonkit.training import Sampler, mixed


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
    whole, test = context.both(config.dataset, image_size=config.image_size)
    train = (
        whole if config.images_per_class is None else whole.first_per_class(config.images_per_class)
    )
    for name in ("pairs", "victims", "targets", "poisons", "kept_every", "tested_per_class"):
        if getattr(config, name) < 1:
            raise PoisonkitError(f"{name} must be at least 1, not {getattr(config, name)}")
    check_rounding(config)
    if config.procedure.colour and train.channels != 3:
        raise PoisonkitError(
            f"recolouring needs 3 channels, not the {train.channels} of {train.name}"
        )
    pair = draw_pair(config, train, test, number)
    metapoison.check_request(train, pair.targets, [pair.wanted] * len(pair.targets), rows=pair.rows)
    for model in dict.fromkeys((config.model, config.surrogate or config.model)):
        _try(create(model, like=train, seed=0, **width_option(config.width)), model, pair.targets)
    Sampler(train, config.recipe, seed=0)
    tested = test.first_per_class(config.tested_per_class)
    return Data(train=train, test=tested), pair, cost


@torch.no_grad()
def _try(network: Classifier, name: str, images: ImageSet) -> None:
    """Refuse a network that cannot take the images."""
    with must_take(name, images.image_size), evaluating(network):
        network(images.x.float() / 255)


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
