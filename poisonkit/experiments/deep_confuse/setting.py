"""The setting that the Deep Confuse experiments share, for each data set and at each scale."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from poisonkit.attacks.deep_confuse import Procedure
from poisonkit.experiments.running import Experiment
from poisonkit.options import added
from poisonkit.store import Json
from poisonkit.training import Recipe

Selection = Literal["validation", "test", "last"]

#: MNIST's network: kernels, channels and hidden units of the text; of what the text does not
#: mention, averages in the pooling and batch normalisation, of the logits too, of the code.
DEFAULT_NETWORK = "two_layer_cnn_bn_average_logits"


@dataclass(frozen=True, kw_only=True)
class ConfuseConfig:
    """What the experiments have in common; the defaults are the paper's for MNIST.

    The paper does not say how the classifiers are trained in the end. The defaults take
    its learning rate and batch size, and as many epochs as Figure 8 has iterations. What it
    does not say of the networks is its code's: batch normalisation, and of MNIST's the pooling.

    Attributes
    ----------
    image_size : side in pixels to which images are resized; None keeps their size.
    classes : the two class folders of ``imagenet2``.
    images_per_class : train on the first so many images of each class; None is all.
    validation : share of the training images that is held out while a generator is
        learned and selected; in the end all training images are perturbed. It may be 0 unless
        the selection needs it.
    learning_images_per_class : of the others, those that the generator learns from;
        None is all.
    generators : generators that are learned, each from a seed of its own.
    repeats : classifiers that are trained for each generator.
    epsilon : bound of the noise on the [0, 1] scale.
    generator, generator_width : a key of :data:`poisonkit.models.generators.GENERATORS`,
        and channels of its first convolution; None is its own.
    procedure : how the generator is learned.
    model, width : the network that is attacked, and channels of its first stage.
    surrogate, surrogate_width : the network that the generator is learned with; None is
        the one that is attacked.
    standardise : what the networks do with their input, see :func:`poisonkit.models.create`.
    recipe : how the attacked networks are trained.
    noise : made ``once`` for each training image, which is then cropped and mirrored with it;
        or ``anew`` in every epoch, for the image as it is cropped and mirrored then, and not
        rounded, as in the released CIFAR-10 code.
    selection : of the generators after ``select_every``, 2 ``select_every`` ... trials,
        take the one whose noise leaves the lowest accuracy on held-out training images
        (``validation``), on the test images (``test``, as the released code does), or
        the ``last``. For a label-specific attack it is the highest hit rate. At the paper's 500
        trials that is one of 20: scoring all would take longer than learning.
        The network that scores has the generator's seed: where a classifier has the same one,
        as the first generator's first has, the two begin with the same weights.
    select_epochs : epochs for which the networks are trained that a generator is scored by.
    scored_by : networks that are trained as the attacked ones will be (``victim``), in eval
        mode; or, as in the released code, as the surrogates are, for as many epochs as a trial
        has, and normalised by the statistics of the batches that they are tested on
        (``surrogate``; ``select_epochs`` stands back).
    trained_share : share of the training images that classifiers are trained on in the end;
        those left out are the held-out ones if it is one less ``validation``.
    """

    profile: Literal["quick", "small", "paper"] = "paper"
    variant: Literal["paper", "released"] = "paper"
    dataset: str = "mnist"
    image_size: int | None = None
    classes: tuple[str, str] = ("n01560419", "n01910747")
    images_per_class: int | None = None
    validation: float = 0.1
    learning_images_per_class: int | None = None
    seed: int = 0
    generators: int = 1
    repeats: int = 10
    epsilon: float = 0.3
    generator: str = "autoencoder"
    generator_width: int | None = None
    procedure: Procedure = field(default_factory=Procedure)
    model: str = DEFAULT_NETWORK
    width: int | None = None
    surrogate: str | None = None
    surrogate_width: int | None = None
    standardise: Literal["data", "none", "bytes"] = "none"
    recipe: Recipe = field(
        default_factory=lambda: Recipe(
            learning_rate=0.01,
            schedule="constant",
            weight_decay=0.0,
            batch_size=64,
            epochs=50,
            crop_padding=0,
            flip=False,
            precision="float32",
        )
    )
    noise: Literal["once", "anew"] = added("once")
    selection: Selection = "validation"
    select_every: int = 25
    select_epochs: int = 5
    scored_by: Literal["victim", "surrogate"] = added("victim")
    trained_share: float = added(1.0)


#: MNIST's network as the authors' code has it, for surrogates and classifiers alike.
RELEASED_NETWORK: Mapping[str, object] = {"model": "released_two_layer_cnn"}
#: What the paper sets otherwise for the data that are not MNIST.
PAPER: Mapping[str, Mapping[str, object]] = {
    "mnist": {},
    "cifar10": {
        "dataset": "cifar10",
        "epsilon": 0.032,
        "generator": "unet",
        "model": "five_layer_cnn_bn",
        "recipe.epochs": 60,
    },
    "imagenet2": {
        "dataset": "imagenet2",
        "image_size": 224,
        "epsilon": 0.1,
        "procedure.batch_size": 32,
        "procedure.surrogate_rate": 0.1,
        "model": "five_layer_cnn_bn",
        "recipe.batch_size": 32,
        "recipe.learning_rate": 0.1,
        "recipe.momentum": 0.0,
        "recipe.epochs": 110,
    },
}
#: What the released code's variant does not change off the paper's scale: it would multiply
#: the cost, or join networks that do not fit the data or each other.
_KEPT: Mapping[str, object] = {
    "surrogate": None,
    "noise": "once",
    "procedure.epochs_per_trial": 1,
    "select_epochs": 5,
    "scored_by": "victim",
    "trained_share": 1.0,
    "validation": 0.1,
}
#: A laptop's: digits, ten short trials.
QUICK: Mapping[str, object] = {
    "dataset": "digits",
    "image_size": None,
    "epsilon": 0.3,
    "generator": "autoencoder",
    "generators": 1,
    "repeats": 3,
    "model": DEFAULT_NETWORK,
    "width": 10,
    "standardise": "data",
    "procedure.trials": 10,
    "procedure.batch_size": 32,
    "procedure.surrogate_rate": 0.1,
    "procedure.generator_rate": 1e-3,
    "recipe.optimizer": "adam",
    "recipe.learning_rate": 1e-3,
    "recipe.schedule": "cosine",
    "recipe.warmup": 0.1,
    "recipe.batch_size": 64,
    "recipe.epochs": 15,
    "recipe.flip": False,
    "select_every": 5,
    "procedure.crops": "none",
    **_KEPT,
}
_ADAM: Mapping[str, object] = {
    "standardise": "data",
    "recipe.optimizer": "adam",
    "recipe.learning_rate": 1e-3,
    "recipe.schedule": "cosine",
    "recipe.warmup": 0.1,
}
#: Two CPU cores': fewer and shorter trials with higher rates, narrower surrogates, and
#: classifiers that are trained for few epochs of Adam.
_SHORT: Mapping[str, object] = {
    **_ADAM,
    "generators": 2,
    "repeats": 2,
    "procedure.trials": 60,
    "procedure.batch_size": 32,
    "procedure.surrogate_rate": 0.1,
    "procedure.generator_rate": 1e-3,
    "recipe.flip": False,
    "select_every": 10,
    **_KEPT,
}
SMALL: Mapping[str, Mapping[str, object]] = {
    "mnist": {
        **_SHORT,
        "generator": "autoencoder",
        "model": DEFAULT_NETWORK,
        "learning_images_per_class": 960,
        "surrogate_width": 10,
        "recipe.batch_size": 64,
        "recipe.epochs": 6,
        "select_epochs": 2,
    },
    "cifar10": {
        **_SHORT,
        "images_per_class": 2000,
        "learning_images_per_class": 640,
        "generator_width": 16,
        "surrogate_width": 16,
        "recipe.batch_size": 64,
        "recipe.epochs": 6,
        "select_epochs": 2,
        # A generator takes an hour of one core, and hardly learns.
        "generators": 1,
        "repeats": 1,
        "procedure.trials": 30,
    },
    "imagenet2": {
        **_SHORT,
        "image_size": 64,
        "classes": ("n02058221", "n01910747"),
        "procedure.epochs_per_trial": 3,
        "surrogate_width": 16,
        "recipe.epochs": 20,
    },
}
#: What the authors' code does where it differs from the paper's text.
RELEASED: Mapping[str, Mapping[str, object]] = {
    "mnist": {
        "procedure.trials": 1000,
        "generator": "released_mnist",
        **RELEASED_NETWORK,
        "recipe.optimizer": "adam",
        "recipe.epochs": 2,
        "scored_by": "surrogate",
        "validation": 0.0,
        "selection": "test",
        "select_every": 1,
    },
    "cifar10": {
        "procedure.trials": 1000,
        "procedure.epochs_per_trial": 20,
        "scored_by": "surrogate",
        "validation": 0.0,
        "trained_share": 0.9,
        "procedure.batch_size": 256,
        "model": "bottleneck_vgg19",
        "surrogate": "bottleneck_vgg11",
        "recipe.optimizer": "adam",
        "recipe.learning_rate": 1e-4,
        "recipe.batch_size": 256,
        "recipe.epochs": 30,
        "recipe.flip": True,
        "noise": "anew",
        "selection": "test",
        "select_every": 1,
    },
    "imagenet2": {
        "generator": "released_imagenet",
        "procedure.crops": "random",
        "procedure.epochs_per_trial": 5,
        "procedure.surrogate_rate": 0.01,
        "procedure.generator_rate": 1e-3,
        "procedure.amsgrad": True,
        "scored_by": "surrogate",
        # 190 of 1,300 images of a class, in the end, too.
        "validation": 0.146,
        "trained_share": 0.854,
        "recipe.batch_size": 16,
        "recipe.epochs": 5,
        "select_every": 1,
    },
}


def profiles_of(
    dataset: str,
    *,
    quick: Mapping[str, object] | None = None,
    small: Mapping[str, object] | None = None,
    paper: Mapping[str, object] | None = None,
) -> Mapping[str, Mapping[str, object]]:
    """Return the profiles for a data set, each with options of an experiment's own.

    Unlike in the other chapters, ``paper`` stands over what the chapter's ``quick`` and
    ``small`` share: ``switches`` and ``network`` attack another network at every scale.
    """
    return {
        "quick": {**PAPER[dataset], **QUICK, **(paper or {}), **(quick or {})},
        "small": {**PAPER[dataset], **SMALL[dataset], **(paper or {}), **(small or {})},
        "paper": {**PAPER[dataset], **(paper or {})},
    }


def variants_of(dataset: str) -> Mapping[str, Mapping[str, object]]:
    """Return the paper's variant, which changes nothing, and the released code's."""
    return {"paper": {}, "released": RELEASED[dataset]}


def against_released_network(
    experiment: Experiment, *, small: Mapping[str, object] | None = None, **options: object
) -> Experiment:
    """Return an experiment on MNIST once more, with the released code's network.

    Parameters
    ----------
    small : what else it changes at ``small``.
    options : what else it changes of every profile.
    """
    paper, family = experiment.name.split("/")
    profiles = {
        profile: {**own, **RELEASED_NETWORK, **options}
        for profile, own in experiment.profiles.items()
    }
    profiles["small"] |= small or {}
    return replace(
        experiment,
        name=f"{paper}/network_{family}",
        summary=f"{experiment.summary}; with the released code's network",
        profiles=profiles,
    )


def runs(config: ConfuseConfig) -> list[Json]:
    """One run for each classifier of each generator.

    The generators take turns, so that two workers learn two of them at a time.
    """
    return [
        {"generator": config.seed + learned, "seed": config.seed + 1000 * learned + number}
        for number in range(config.repeats)
        for learned in range(config.generators)
    ]
