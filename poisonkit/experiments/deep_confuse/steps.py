"""The steps that the Deep Confuse trials are made of: perturb, train, look."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from poisonkit.attacks.deep_confuse import add_noise
from poisonkit.attacks.generated_noise import noise_of
from poisonkit.errors import PoisonkitError
from poisonkit.evaluation import evaluate, predict, shuffled
from poisonkit.experiments.deep_confuse.setting import ConfuseConfig
from poisonkit.experiments.networks import Context, Cost, Transform, training_of, width_option
from poisonkit.images import ImageSet
from poisonkit.models import Classifier, evaluating
from poisonkit.models.generators import NoiseGenerator
from poisonkit.statistics import mean_and_deviation
from poisonkit.store import Json

#: Name of the last hidden layer of each network.
LAST_HIDDEN = {
    "two_layer_cnn": "hidden",
    "two_layer_cnn_bn": "hidden",
    "two_layer_cnn_bn_5x5": "hidden",
    "two_layer_cnn_bn_average": "hidden",
    "two_layer_cnn_bn_logits": "hidden",
    "two_layer_cnn_bn_average_logits": "hidden",
    "released_two_layer_cnn": "hidden",
    "five_layer_cnn": "pool",
    "five_layer_cnn_bn": "pool",
    # The two dimensions before the logits.
    "bottleneck_vgg11": "pool",
    "bottleneck_vgg19": "pool",
}


def hit_rate(
    network: Classifier,
    images: ImageSet,
    label_map: tuple[int, ...],
    *,
    batch_statistics: bool = False,
) -> float:
    """Return the share of images that are called what the label map wants them to be."""
    if batch_statistics:
        images = shuffled(images)
    wanted = images.y.new_tensor(label_map)[images.y]
    found = predict(network, images.x, batch_statistics=batch_statistics)
    return float((found == wanted).double().mean())


def confusion(network: Classifier, images: ImageSet) -> Tensor:
    """Count what the images of each class are called: int64 [classes, classes], rows are true."""
    found, classes = predict(network, images.x), images.classes
    pairs = images.y * classes + found
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def train_on(
    config: ConfuseConfig,
    images: ImageSet,
    seed: int,
    context: Context,
    cost: Cost,
    label: str,
    *,
    test: ImageSet | None = None,
    transform: Transform | None = None,
    like: ImageSet | None = None,
) -> tuple[Classifier, Json]:
    """Train the attacked network, or take it from the store.

    Parameters
    ----------
    label : names the run in the progress bar.
    test : images on which the network is evaluated after each epoch; experiments that
        evaluate on the same ones share their networks.
    transform, like : see :func:`~poisonkit.experiments.networks.training_of`.
    """
    return training_of(
        context,
        images,
        config.recipe,
        model=config.model,
        seed=seed,
        label=label,
        cost=cost,
        standardise=config.standardise,
        transform=transform,
        like=like,
        watch={"test": test} if test else None,
        options=width_option(config.width),
    )


def train_perturbed(
    config: ConfuseConfig,
    images: ImageSet,
    noisy: ImageSet,
    generator: NoiseGenerator,
    seed: int,
    context: Context,
    cost: Cost,
    label: str,
    *,
    test: ImageSet | None = None,
) -> tuple[Classifier, Json]:
    """Train the attacked network on images with noise, see :func:`train_on`.

    Parameters
    ----------
    images, noisy : without the noise, and all of them with it.
    generator : which made it.
    """
    if config.noise == "once":
        return train_on(config, noisy, seed, context, cost, label, test=test)
    return train_on(
        config,
        images,
        seed,
        context,
        cost,
        label,
        test=test,
        transform=float_noise(generator, checksum=noisy.checksum),
        like=noisy,
    )


def refuse_new_noise(config: ConfuseConfig) -> None:
    """Refuse noise that is made anew where it is for some of the images only, or filtered."""
    if config.noise != "once":
        raise PoisonkitError(
            f"noise must be 'once' here, not {config.noise!r}: noise that is made anew in every "
            "epoch can neither be for some of the images only nor be filtered"
        )


def accuracies(network: Classifier, images: ImageSet) -> Json:
    """Return the accuracy in eval mode, and that by the statistics of batches of 1,000."""
    return {
        "accuracy": evaluate(network, images),
        "batch_statistics": evaluate(network, images, batch_statistics=True),
    }


def float_noise(generator: NoiseGenerator, *, checksum: str) -> Transform:
    """Return the attack without rounding: the noise is added to each batch as it is.

    Parameters
    ----------
    checksum : of the images with rounded noise, which stands for the generator.
    """
    return Transform(
        about={"noise": "float", "of": checksum}, apply=partial(_add_generated, generator)
    )


def _add_generated(generator: NoiseGenerator, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return add_noise(x, generator(x))


@torch.no_grad()
def accuracy_on_noise(network: Classifier, generator: NoiseGenerator, images: ImageSet) -> float:
    """Return how often a network names an image's label that sees its noise alone (Table 2).

    The input is the noise as it is, values within [-epsilon, epsilon], not an image.
    """
    with evaluating(network):
        right = [
            network(noise_of(generator, x)).argmax(1) == y
            for x, y in zip(images.x.split(1000), images.y.split(1000), strict=True)
        ]
    return float(torch.cat(right).double().mean())


def noise_images(generator: NoiseGenerator, images: ImageSet) -> ImageSet:
    """Return the noise alone as images: -epsilon is black, +epsilon is white."""
    noise = noise_of(generator, images.x)
    x = ((noise / generator.epsilon + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return replace(images, x=x, name=f"{images.name} (noise)")


def some_of_each_class(images: ImageSet, count: int) -> Tensor:
    """Return the rows of the first images of each class, ``count`` or as many as there are."""
    rows = [images.indices_of(label)[:count] for label in range(images.classes)]
    return torch.cat(rows)


def clean_and_perturbed(trials: Sequence[Json], key: str, names: Sequence[str]) -> list[Json]:
    """Return mean and deviation of both accuracies for each of the names under ``key``."""
    rows = []
    for name in names:
        own = [trial for trial in trials if trial[key] == name]
        row: Json = {key: name, "runs": len(own)}
        for kind in ("clean", "perturbed"):
            mean, deviation = mean_and_deviation([trial[kind] for trial in own])
            row |= {kind: mean, f"{kind}_deviation": deviation}
        rows.append(row)
    return rows
