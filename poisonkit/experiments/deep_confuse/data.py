"""The images and networks of a Deep Confuse trial, and what is refused before it begins."""

from dataclasses import dataclass

import torch

from poisonkit.attacks.deep_confuse import check_label_map
from poisonkit.errors import PoisonkitError
from poisonkit.experiments.deep_confuse.setting import ConfuseConfig
from poisonkit.experiments.networks import Context, Cost, width_option
from poisonkit.images import ImageSet, batches
from poisonkit.models import Classifier, create, must_take
from poisonkit.models.generators import NoiseGenerator, create_generator
from poisonkit.training import Sampler


@dataclass(frozen=True, kw_only=True)
class Data:
    """The images of a configuration.

    Attributes
    ----------
    train, test : what the attacked networks are trained on, and tested on.
    part, held_out : the training images without those held out, and those, if any.
    learning : what the generator learns from, some or all of ``part``.
    """

    train: ImageSet
    test: ImageSet
    part: ImageSet
    held_out: ImageSet
    learning: ImageSet


def load_data(config: ConfuseConfig, context: Context) -> Data:
    """Load a data set and split it; the split depends on the seed of the configuration."""
    options: dict[str, object] = {"image_size": config.image_size}
    if config.dataset == "imagenet2":
        options["classes"] = config.classes
    train, test = context.both(config.dataset, **options)
    if config.images_per_class is not None:
        train = train.first_per_class(config.images_per_class)
    part, held_out = train, train.select(train.y[:0])
    if config.selection == "validation" and not config.validation:
        raise PoisonkitError("selection='validation' needs images held out: set validation above 0")
    if config.validation:
        part, held_out = _split(train, config.validation, "validation", seed=config.seed)
    learning = part
    if config.learning_images_per_class is not None:
        learning = part.first_per_class(config.learning_images_per_class)
    if not 0 < config.trained_share <= 1:
        raise PoisonkitError(f"trained_share must lie in (0, 1], not {config.trained_share}")
    if config.trained_share < 1:
        train, _ = _split(train, 1 - config.trained_share, "1 - trained_share", seed=config.seed)
    return Data(train=train, test=test, part=part, held_out=held_out, learning=learning)


def _split(images: ImageSet, share: float, name: str, *, seed: int) -> tuple[ImageSet, ImageSet]:
    kept, others = images.split(share, seed=seed)
    for part in (kept, others):
        if len(part.y.unique()) < images.classes:
            raise PoisonkitError(
                f"{name}={share:g} of {len(images)} images leaves a class without images to learn "
                "from, or without any held out"
            )
    return kept, others


def begin(config: ConfuseConfig, context: Context) -> tuple[Data, Cost]:
    """Start a trial: load the data, and refuse what could not be done with them."""
    cost = Cost()
    data = load_data(config, context)
    new_generator(config, data.learning, seed=config.seed)
    check_label_map(config.procedure.label_map, data.learning)
    Sampler(data.train, config.recipe, seed=0)
    for name in ("select_every", "select_epochs", "generators", "repeats"):
        if getattr(config, name) < 1:
            raise PoisonkitError(f"{name} must be at least 1, not {getattr(config, name)}")
    for name, width in networks_of(config):
        with must_take(name, data.train.image_size, advice="; set image_size"), torch.no_grad():
            network = new_network(config, data.train, seed=0, model=name, width=width).eval()
            network(next(batches(data.train.x[:2])))
    return data, cost


def networks_of(config: ConfuseConfig) -> list[tuple[str, int | None]]:
    """Return name and width of the attacked network and of the surrogate."""
    surrogate = config.surrogate or config.model
    return [(config.model, config.width), (surrogate, config.surrogate_width or config.width)]


def new_generator(config: ConfuseConfig, like: ImageSet, *, seed: int) -> NoiseGenerator:
    """Return a generator as it is before it learns."""
    return create_generator(
        config.generator,
        like=like,
        epsilon=config.epsilon,
        seed=seed,
        **width_option(config.generator_width),
    )


def new_network(
    config: ConfuseConfig, like: ImageSet, *, seed: int, model: str, width: int | None
) -> Classifier:
    """Return a network as it is before it is trained."""
    return create(
        model, like=like, seed=seed, standardise=config.standardise, **width_option(width)
    )
