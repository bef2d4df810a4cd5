"""The setting that the Spectral Signatures experiments share: attack, network, filter."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from poisonkit.attacks.backdoor import Trigger, craft, random_trigger
from poisonkit.defenses.spectral import (
    RELEASED_PERCENTILE,
    REMOVAL_FACTOR,
    Filtered,
    spectral_filter,
)
from poisonkit.errors import PoisonkitError
from poisonkit.evaluation import predict
from poisonkit.experiments.networks import Context, Cost, trained_network
from poisonkit.images import ImageSet, batches
from poisonkit.models import Classifier, create
from poisonkit.statistics import wilson
from poisonkit.store import Json
from poisonkit.training import Recipe, Sampler

#: Section 4.4 counts a backdoor as captured at "approximately 90 % or higher".
CAPTURED = 0.90
#: The two hand-made backdoors of Figure 2, after their description: a grey pixel
#: near the bottom right of an airplane, a brown one in the middle of a car. Exact
#: places and colours are unpublished; these are ours.
HAND_MADE = {
    ("airplane", "bird"): Trigger(pattern="pixel", position=(26, 26), colour=(128, 128, 128)),
    ("automobile", "cat"): Trigger(pattern="pixel", position=(16, 16), colour=(101, 67, 33)),
}
TABLE_2_PAIRS = (
    ("airplane", "bird"),
    ("automobile", "cat"),
    ("automobile", "dog"),
    ("cat", "horse"),
    ("dog", "cat"),
    ("horse", "deer"),
    ("ship", "frog"),
    ("truck", "bird"),
)
Placement = Literal["added", "replaced"]


@dataclass(frozen=True, kw_only=True)
class SpectralConfig:
    """What both experiments have in common; the defaults are the paper's.

    Where the paper's text is silent, as on the training, they are the released code's.

    Attributes
    ----------
    images_per_class : train on the first so many images of each class; None is all.
    pairs : (source, target) classes.
    shares : poisoned images as a share of the target class.
    image_size : side in pixels to which images are resized; None keeps their size.
    pattern : ``pixel``, ``X``, ``L``; ``random``, drawn from the seed as position and
        colour are; or ``paper``, Figure 2's trigger for its two pairs, drawn for others.
    position, colour : fix these parts of the trigger.
    trials : independent runs, each with its own trigger, initial weights and order.
    tap, pool : the representation R(x), see :func:`poisonkit.models.features`.
    centred : the paper's score, or the released code's uncentred one.
    removal : ``factor``, the paper's 1.5 epsilon of each label; ``percentile``, the
        released code's; ``known``, exactly epsilon.
    labels : whether all labels are filtered, or the poisoned one only.
    """

    profile: Literal["quick", "small", "paper"] = "paper"
    variant: Literal["paper", "released"] = "paper"
    dataset: str = "cifar10"
    image_size: int | None = None
    images_per_class: int | None = None
    pairs: tuple[tuple[str, str], ...] = TABLE_2_PAIRS
    shares: tuple[float, ...] = (0.05, 0.10)
    seed: int = 0
    trials: int = 3
    pattern: Literal["pixel", "X", "L", "random", "paper"] = "paper"
    position: tuple[int, int] | None = None
    colour: tuple[int, ...] | None = None
    placement: Placement = "added"
    model: str = "preact_resnet32"
    standardise: Literal["data", "bytes"] = "data"
    recipe: Recipe = field(default_factory=Recipe)
    tap: str = "group3.3"
    pool: Literal["flatten", "mean"] = "flatten"
    centred: bool = True
    removal: Literal["factor", "percentile", "known"] = "factor"
    factor: float = REMOVAL_FACTOR
    percentile: float = RELEASED_PERCENTILE
    labels: Literal["all", "target"] = "all"


QUICK: Mapping[str, object] = {
    "dataset": "digits",
    "pairs": (("4", "9"),),
    "shares": (0.10,),
    "pattern": "X",
    "position": (13, 2),
    "colour": (255,),
    "model": "small_cnn",
    "tap": "block3",
    "recipe.epochs": 15,
    "recipe.schedule": "cosine",
    "recipe.batch_size": 64,
    "recipe.learning_rate": 0.05,
    "recipe.crop_padding": 1,
    "recipe.flip": False,
}
#: All of CIFAR-10, but a shallower network, one pair, and 10 epochs instead of 205.
#: That is too short to capture the smallest triggers, so the shape is the largest one.
SMALL: Mapping[str, object] = {
    "pairs": (("airplane", "bird"),),
    "shares": (0.10,),
    "pattern": "X",
    "model": "preact_resnet14",
    "tap": "group3.0",
    "recipe.epochs": 10,
    "recipe.schedule": "cosine",
    "recipe.warmup": 0.1,
    "recipe.learning_rate": 0.2,
    "recipe.weight_decay": 5e-4,
    "recipe.precision": "bfloat16",
}
#: What the authors' code does where it differs from the paper's text.
RELEASED: Mapping[str, object] = {
    "pairs": (("truck", "deer"),),
    "shares": (0.10,),
    "pattern": "pixel",
    "position": (11, 16),
    "colour": (101, 0, 25),
    "placement": "replaced",
    "standardise": "bytes",
    "tap": "group3.2",
    "centred": False,
    "removal": "percentile",
    "labels": "target",
}


@dataclass(frozen=True, kw_only=True)
class Poisoned:
    """A poisoned training set with everything needed to judge what follows from it."""

    clean: ImageSet
    train: ImageSet
    mask: Tensor
    test: ImageSet
    triggered: Tensor
    source_test: ImageSet
    target: int
    trigger: Trigger
    count: int

    def facts(self) -> Json:
        """Return what a record says about the attack."""
        return {
            "trigger": {
                "pattern": self.trigger.pattern,
                "position": list(self.trigger.position),
                "colour": list(self.trigger.colour),
            },
            "poisons": self.count,
            "triggered_images": len(self.triggered),
            "data_checksum": self.clean.checksum,
        }


def units(config: SpectralConfig) -> list[Json]:
    """One trial for each pair, share and seed."""
    for name, values in (("pairs", config.pairs), ("shares", config.shares)):
        if len(set(values)) < len(values):
            raise PoisonkitError(f"{name} names something twice: {list(values)}")
    return [
        {"source": source, "target": target, "share": share, "seed": config.seed + number}
        for source, target in config.pairs
        for share in config.shares
        for number in range(config.trials)
    ]


def poisoned_data(config: SpectralConfig, unit: Json, context: Context) -> Poisoned:
    """Load the data set, draw the trigger, and poison the training images."""
    train = context.load(config.dataset, "train", image_size=config.image_size)
    if config.images_per_class is not None:
        train = train.first_per_class(config.images_per_class)
    test = context.load(config.dataset, "test", image_size=config.image_size)
    if test.image_size != train.image_size:
        raise PoisonkitError(
            f"{train.name}: training images are {train.image_size}, test images "
            f"{test.image_size} pixels high and wide; set image_size to resize them all"
        )
    trigger = _trigger(config, unit, train)
    poison = craft(
        train,
        trigger=trigger,
        source=unit["source"],
        target=unit["target"],
        share=unit["share"],
        placement=config.placement,
        seed=unit["seed"],
    )
    poisoned, mask = poison.apply(train)
    source_test = test.select(test.y == train.label_of(unit["source"]))
    return Poisoned(
        clean=train,
        train=poisoned,
        mask=mask,
        test=test,
        triggered=trigger.stamp(source_test.x),
        source_test=source_test,
        target=train.label_of(unit["target"]),
        trigger=trigger,
        count=len(poison),
    )


def _trigger(config: SpectralConfig, unit: Json, train: ImageSet) -> Trigger:
    pair = (unit["source"], unit["target"])
    if config.pattern == "paper" and pair in HAND_MADE:
        trigger = HAND_MADE[pair]
    else:
        # Every pair draws its own triggers, or one unlucky colour would spoil them all.
        trigger = random_trigger(
            image_size=train.image_size,
            channels=train.channels,
            seed=unit["seed"] + 1_000_003 * config.pairs.index(pair),
            pattern="random" if config.pattern == "paper" else config.pattern,
        )
    if config.position is not None:
        trigger = replace(trigger, position=config.position)
    if config.colour is not None:
        trigger = replace(trigger, colour=config.colour)
    return trigger


def train_on(
    config: SpectralConfig, images: ImageSet, seed: int, context: Context, cost: Cost, label: str
) -> Classifier:
    """Train the configured network; the label names the run in the progress bar."""
    return trained_network(
        context,
        images,
        config.recipe,
        model=config.model,
        seed=seed,
        label=label,
        cost=cost,
        standardise=config.standardise,
    )


def filter_images(config: SpectralConfig, representation: Tensor, data: Poisoned) -> Filtered:
    """Apply the configured filter; epsilon is the true number of poisoned images."""
    return spectral_filter(
        representation,
        data.train.y,
        suspected=None if config.removal == "percentile" else data.count,
        factor=1.0 if config.removal == "known" else config.factor,
        percentile=config.percentile if config.removal == "percentile" else None,
        only_labels=None if config.labels == "all" else [data.target],
        centred=config.centred,
    )


def check_request(config: SpectralConfig, data: Poisoned) -> None:
    """Refuse before any training what could not be done after it.

    The layer must exist, the network take the images, and the filter accept its
    settings; how many images it is to remove depends on no feature, so any will do.
    """
    network = create(config.model, like=data.train, seed=0).eval()
    network.module_at(config.tap)
    try:
        with torch.no_grad():
            network(next(batches(data.train.x[:2])))
    except RuntimeError as error:
        size = data.train.image_size
        raise PoisonkitError(
            f"{config.model} cannot take images of {size} pixels ({error}); set image_size"
        ) from error
    Sampler(data.train, config.recipe, seed=0)
    generator = torch.Generator().manual_seed(0)
    stand_in = torch.rand(len(data.train), 2, generator=generator).to(data.train.device)
    filter_images(config, stand_in, data)


def hits(model: Classifier, data: Poisoned) -> int:
    """Return how many triggered test images of the source class are called the target."""
    return int((predict(model, data.triggered) == data.target).sum())


def is_captured(successes: int, total: int) -> bool:
    """Whether the Wilson interval of the poisoned accuracy reaches the paper's 90 %.

    This reads "approximately 90 %" so that, of 1,000 images, 89.8 % counts and 83.3 %
    does not, as the paper has it; the limit is 88.2 %.
    """
    return wilson(successes, total)[1] >= CAPTURED
