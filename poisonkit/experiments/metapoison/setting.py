"""The setting that the MetaPoison experiments share, and its scales."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from poisonkit.attacks.meta_procedure import Procedure
from poisonkit.errors import PoisonkitError
from poisonkit.experiments.settings import profiles_over
from poisonkit.options import added
from poisonkit.training import Recipe


def _victims() -> Recipe:
    return Recipe(
        learning_rate=0.1,
        schedule="steps",
        milestones=(0.8,),
        weight_decay=0.0,
        batch_size=125,
        epochs=50,
        crop_padding=0,
        flip=False,
        precision="float32",
    )


@dataclass(frozen=True, kw_only=True)
class MetaConfig:
    """What the experiments have in common; the defaults are the workshop paper's (section 3).

    The paper says that a target and a class of poisons are drawn at random. Of the
    surrogates it gives the number, of the victims the batch size, rate, optimizer and the
    epochs after which the rate falls (40, 60 and 80, of which 50 epochs reach the first).
    Section 3.5 says that surrogates are trained as the victims are, so they have momentum too.

    Attributes
    ----------
    image_size : side in pixels to which images are resized; None keeps their size.
    images_per_class : the first so many training images of each class; None is all.
    pairs : attacks, each with a target and a class of poisons of its own, drawn from the seed.
    poison_class, target_class : draw only within these classes; None is any.
    target : the number of the target among the test images of its class; None draws it.
    poisons : the first so many images of the poisons' class are changed.
    targets : images of one class that the same poisons are for.
    third_party : whether targets shall be taken for a class, drawn at random, that is neither
        their own nor that of the poisons, instead of that of the poisons.
    wanted_class : what targets shall be taken for; None leaves it to ``third_party``.
    model, width : victims and surrogates, and channels of the first stage; None is the
        network's own.
    surrogate : the network that poisons are crafted with; None is the victims'.
    standardise : what the networks do with their input, see :func:`poisonkit.models.create`.
    procedure : how poisons are crafted.
    kept_every : the poisons before every so many crafting steps are kept.
    victims : networks that are trained on each pair's poisons, each from weights of its own.
    recipe : how victims are trained.
    tested_per_class : accuracies are measured on so many test images of each class.
    rounded : whether victims train on poisons rounded to whole levels, as images are, or on
        the numbers that were crafted, as the released code's do.
    """

    profile: Literal["quick", "small", "paper"] = "paper"
    variant: Literal["paper", "released"] = "paper"
    dataset: str = "cifar10"
    image_size: int | None = None
    images_per_class: int | None = None
    seed: int = 0
    pairs: int = 10
    poison_class: str | None = None
    target_class: str | None = None
    target: int | None = None
    poisons: int = 5000
    targets: int = 1
    third_party: bool = False
    wanted_class: str | None = None
    model: str = "resnet20"
    width: int | None = None
    surrogate: str | None = None
    standardise: Literal["data", "none", "bytes"] = "data"
    procedure: Procedure = field(default_factory=lambda: Procedure(momentum=0.9))
    kept_every: int = 10
    victims: int = 8
    recipe: Recipe = field(default_factory=_victims)
    tested_per_class: int = 1000
    rounded: bool = added(True)


#: A laptop's: few small digits, a narrow network, changes that can be seen. Digits are easily
#: told apart, and surrogates that stay on the clean path craft poisons without effect.
QUICK: Mapping[str, object] = {
    "dataset": "digits",
    "image_size": 8,
    "images_per_class": 60,
    "poison_class": "1",
    "target_class": "8",
    "pairs": 1,
    "poisons": 60,
    "model": "small_cnn",
    "width": 4,
    "procedure.epsilon": 0.4,
    "procedure.colour": 0.0,
    "procedure.steps": 20,
    "procedure.unroll": 1,
    "procedure.surrogates": 6,
    "procedure.warmup_epochs": 1,
    "procedure.batch_size": 50,
    "procedure.momentum": 0.0,
    "procedure.trajectory": "poisoned",
    "procedure.learning_rate": 0.3,
    "victims": 3,
    "recipe.batch_size": 50,
    "recipe.epochs": 20,
    "tested_per_class": 30,
}
#: Two CPU cores': a tenth of the data, as in the released code's quick start, its small network,
#: and fewer surrogates.
SMALL: Mapping[str, object] = {
    "images_per_class": 500,
    "poisons": 500,
    "pairs": 4,
    "model": "five_block_cnn",
    "procedure.unroll": 1,
    "procedure.surrogates": 4,
    "procedure.stagger": 4,
    "procedure.warmup_epochs": 2,
    "victims": 8,
    "recipe.epochs": 20,
    "tested_per_class": 200,
}
#: For most of the other experiments at ``small``: about a quarter of the steps.
SHORTER: Mapping[str, object] = {"procedure.steps": 16, "kept_every": 4}
#: What the later, public code does where it differs from the workshop paper.
RELEASED: Mapping[str, object] = {
    "model": "five_block_cnn",
    "procedure.epsilon": 8 / 255,
    "procedure.colour": 0.04,
    "procedure.objective": "margin",
    "rounded": False,
    "procedure.losses": "all",
    "procedure.later": "first",
    "procedure.clipped": False,
    "procedure.surrogates": 24,
    # Numbered 0 to 60; the rate falls at 20 and at 40.
    "procedure.steps": 61,
    "procedure.drops": (20 / 61, 40 / 61),
    "procedure.momentum": 0.0,
    "recipe.momentum": 0.0,
    "recipe.warmup": 0.025,
    "recipe.epochs": 200,
    "recipe.milestones": (0.5, 0.75),
}

#: The profiles, each with options of an experiment's own.
profiles_of = partial(profiles_over, QUICK, SMALL)


#: The paper's variant changes nothing.
VARIANTS: Mapping[str, Mapping[str, object]] = {"paper": {}, "released": RELEASED}
#: For experiments that need poisons as images.
ROUNDED_VARIANTS: Mapping[str, Mapping[str, object]] = {
    "paper": {},
    "released": {name: value for name, value in RELEASED.items() if name != "rounded"},
}


def always_rounded(config: MetaConfig) -> None:
    """Refuse poisons that are not rounded where they are needed as images."""
    if not config.rounded:
        raise PoisonkitError("here poisons are images: rounded=false is for other experiments")


def check_rounding(config: MetaConfig) -> None:
    """Refuse a training that would change poisons before they can be told from other images."""
    if not config.rounded and (config.recipe.crop_padding or config.recipe.flip):
        raise PoisonkitError("poisons that are not rounded go without crops and flips")
