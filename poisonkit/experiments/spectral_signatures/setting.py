"""The setting that the Spectral Signatures experiments share, at each of its scales."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from poisonkit.attacks.backdoor import Trigger
from poisonkit.defenses.spectral import RELEASED_PERCENTILE, REMOVAL_FACTOR
from poisonkit.experiments.settings import refuse_repeats
from poisonkit.store import Json
from poisonkit.training import Recipe

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
Pool = Literal["flatten", "mean"]


@dataclass(frozen=True, kw_only=True)
class SpectralConfig:
    """What the experiments have in common; the defaults are the paper's.

    Where the paper's text is silent, as on the training, they are the released code's.

    Attributes
    ----------
    images_per_class : train on the first so many images of each class; None is all.
    merged, merged_into : classes that are made one, and the name of that class
        (section 4.5); none by default.
    pairs : (source, target) classes.
    shares : poisoned images as a share of the target class.
    image_size : side in pixels to which images are resized; None keeps their size.
    pattern : ``pixel``, ``X``, ``L``; ``random``, drawn from the seed as position and
        colour are; or ``paper``, Figure 2's trigger for its two pairs, drawn for others.
    position, colour : fix these parts of the trigger.
    trials : independent runs, each with its own trigger, initial weights and order.
    model, width : name of the network, and channels of its first stage; None is its own.
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
    merged: tuple[str, ...] = ()
    merged_into: str = "merged"
    pairs: tuple[tuple[str, str], ...] = TABLE_2_PAIRS
    shares: tuple[float, ...] = (0.05, 0.10)
    seed: int = 0
    trials: int = 3
    pattern: Literal["pixel", "X", "L", "random", "paper"] = "paper"
    position: tuple[int, int] | None = None
    colour: tuple[int, ...] | None = None
    placement: Placement = "added"
    model: str = "preact_resnet32"
    width: int | None = None
    standardise: Literal["data", "bytes"] = "data"
    recipe: Recipe = field(default_factory=Recipe)
    tap: str = "group3.3"
    pool: Pool = "flatten"
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
#: All of CIFAR-10 and all pairs, but a compact network and 6 epochs instead of 205.
#: Few steps capture a trigger only if it is large, always in the same place and helped
#: by Adam: hence the shape of five pixels, and neither crops nor flips.
SMALL: Mapping[str, object] = {
    "pattern": "X",
    "trials": 2,
    "model": "compact_cnn",
    "tap": "stage3.1",
    "recipe.optimizer": "adam",
    "recipe.learning_rate": 0.004,
    "recipe.epochs": 6,
    "recipe.schedule": "cosine",
    "recipe.warmup": 0.15,
    "recipe.weight_decay": 0.0,
    "recipe.crop_padding": 0,
    "recipe.flip": False,
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
PROFILES: Mapping[str, Mapping[str, object]] = {"quick": QUICK, "small": SMALL, "paper": {}}
VARIANTS: Mapping[str, Mapping[str, object]] = {"paper": {}, "released": RELEASED}


def units(config: SpectralConfig) -> list[Json]:
    """One trial for each pair, share and seed."""
    refuse_repeats(pairs=config.pairs, shares=config.shares)
    return [
        {"source": source, "target": target, "share": share, "seed": config.seed + number}
        for source, target in config.pairs
        for share in config.shares
        for number in range(config.trials)
    ]
