"""The setting that the Convex Polytope experiments share, and its scales."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from poisonkit.attacks.surrounding import Objective, Procedure
from poisonkit.errors import PoisonkitError
from poisonkit.experiments.settings import profiles_over
from poisonkit.options import added
from poisonkit.store import Json
from poisonkit.training import Recipe

Layers = Literal["last", "several", "released"]

#: Section 4, "Networks": the substitutes' architectures, and those that only victims have.
S1 = ("senet18", "resnet50", "resnext29_2x64d", "dpn92", "mobilenet_v2", "googlenet")
S2 = ("senet18", "resnet50", "resnext29_2x64d", "dpn92")
BLACK_BOX = ("resnet18", "densenet121")


def _pretraining() -> Recipe:
    return Recipe(
        learning_rate=0.1,
        schedule="steps",
        milestones=(0.5, 0.75),
        weight_decay=5e-4,
        batch_size=128,
        epochs=300,
        crop_padding=4,
        flip=True,
    )


def _fine_tuning() -> Recipe:
    return Recipe(
        optimizer="adam",
        learning_rate=0.1,
        schedule="steps",
        milestones=(0.5, 0.75),
        weight_decay=0.0,
        batch_size=64,
        epochs=60,
        crop_padding=0,
        flip=False,
        precision="float32",
    )


@dataclass(frozen=True, kw_only=True)
class PolytopeConfig:
    """What the experiments have in common; the defaults are the paper's (section 4).

    The paper says of the training little more than its optimizers; what is missing
    comes from the released code.

    Attributes
    ----------
    image_size : side in pixels to which images are resized; None keeps their size.
    poison_class, target_class : what the poisons are and what targets are to be taken
        for; and what the targets are.
    pretraining_per_class : the first so many images of each class train the networks.
    pool_from : the images of each class after the first so many are the pool that no
        network has seen.
    fine_tuning_per_class : the first so many of the pool fine-tune the victims; the
        poisons are made from the first ``poisons`` of their class.
    targets : the next so many images of the target class, each an attack of its own.
    targets_at_once : poisons for so many targets are crafted together.
    substitutes, dropouts : one substitute network for each architecture and each rate of
        dropout.
    victims : architectures of the victims, which have no dropout and weights of their own.
    width : of all published networks, of which 64 is the published one.
    procedure : how poisons are crafted.
    stream : whether substitutes are passed through one by one; all at once, the paper's
        eighteen with fifty targets would hold some 150 GiB.
    pretraining : how networks are trained.
    fine_tuning : how victims' last layers are trained on the poisoned images.
    head : what victims' last layer is when they begin to be fine-tuned: the ``pretrained`` one,
        as in the released code, or a ``fresh`` one, which has an answer to each class anew.
    """

    profile: Literal["quick", "small", "paper"] = "paper"
    variant: Literal["paper", "released"] = "paper"
    dataset: str = "cifar10"
    image_size: int | None = None
    seed: int = 0
    poison_class: str = "ship"
    target_class: str = "frog"
    pretraining_per_class: int = 4800
    pool_from: int = 4800
    fine_tuning_per_class: int = 50
    poisons: int = 5
    targets: int = 50
    targets_at_once: int = 50
    substitutes: tuple[str, ...] = S1
    dropouts: tuple[float, ...] = (0.2, 0.25, 0.3)
    victims: tuple[str, ...] = (*S1, *BLACK_BOX)
    width: int = 64
    procedure: Procedure = field(default_factory=Procedure)
    stream: bool = True
    pretraining: Recipe = field(default_factory=_pretraining)
    fine_tuning: Recipe = field(default_factory=_fine_tuning)
    head: Literal["pretrained", "fresh"] = added("pretrained")


@dataclass(frozen=True, kw_only=True)
class ObjectivesConfig(PolytopeConfig):
    """As :class:`PolytopeConfig`, for several ways to place poisons.

    Attributes
    ----------
    objectives : see :class:`Procedure`, whose own stands back.
    """

    objectives: tuple[Objective, ...] = ("collision", "polytope", "bullseye")


_ADAM: Mapping[str, object] = {
    "pretraining.optimizer": "adam",
    "pretraining.learning_rate": 3e-3,
    "pretraining.schedule": "cosine",
    "pretraining.warmup": 0.1,
    "pretraining.batch_size": 64,
}
#: A laptop's: digits, networks of a few layers, eight targets, changes that can be seen.
QUICK: Mapping[str, object] = {
    **_ADAM,
    "dataset": "digits",
    "poison_class": "9",
    "target_class": "3",
    "pretraining_per_class": 100,
    "pool_from": 100,
    "fine_tuning_per_class": 10,
    "targets": 8,
    "substitutes": ("resnet8", "small_cnn", "compact_cnn"),
    "dropouts": (0.2, 0.3),
    "victims": ("resnet8", "small_cnn", "compact_cnn", "preact_resnet8", "densenet22"),
    "width": 16,
    "stream": False,
    "pretraining.epochs": 10,
    "pretraining.crop_padding": 1,
    "pretraining.flip": False,
    "procedure.epsilon": 0.3,
    "procedure.iterations": 100,
}
#: Two CPU cores': an eighth of the published widths, fewer images, epochs, substitutes,
#: targets and iterations. So narrow networks have 64 to 336 features; a linear layer on them
#: fits a part of the poisons only among five hundred images, so victims see a hundred.
SMALL: Mapping[str, object] = {
    **_ADAM,
    "pretraining_per_class": 1000,
    "fine_tuning_per_class": 10,
    "targets": 20,
    "targets_at_once": 20,
    "dropouts": (0.25,),
    "width": 8,
    "stream": False,
    "pretraining.epochs": 10,
    "procedure.iterations": 100,
}
#: What the authors' code does where it differs from the paper's text: its scripts craft the
#: poisons of Figures 4 and 5, too, with four architectures.
RELEASED: Mapping[str, object] = {"substitutes": S2}

#: The profiles, each with options of an experiment's own.
profiles_of = partial(profiles_over, QUICK, SMALL)


def blocks(config: PolytopeConfig) -> list[int]:
    """Return the number of the first target of each block that is crafted together."""
    if config.targets_at_once < 1:
        raise PoisonkitError(f"targets_at_once must be at least 1, not {config.targets_at_once}")
    return list(range(0, config.targets, config.targets_at_once))


def units_by_objective(config: ObjectivesConfig) -> list[Json]:
    """One trial for each objective and block of targets."""
    return [
        {"objective": objective, "first": first}
        for first in blocks(config)
        for objective in config.objectives
    ]
