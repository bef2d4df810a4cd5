"""The steps that the Deep Confuse trials are made of: learn a generator, perturb, train, look."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from poisonkit.attacks.deep_confuse import fit_generator
from poisonkit.attacks.generated_noise import craft, noise_of
from poisonkit.errors import PoisonkitError
from poisonkit.evaluation import evaluate, predict
from poisonkit.experiments.deep_confuse.data import (
    Data,
    networks_of,
    new_generator,
    new_network,
)
from poisonkit.experiments.deep_confuse.setting import ConfuseConfig
from poisonkit.experiments.networks import Context, Cost, Transform, training_of, width_option
from poisonkit.images import ImageSet
from poisonkit.models import Classifier, evaluating
from poisonkit.models.generators import NoiseGenerator
from poisonkit.options import written
from poisonkit.statistics import mean_and_deviation
from poisonkit.store import Json
from poisonkit.training import Recipe, fit

#: Raised when the same setting would give another generator; learned ones are then not reused.
VERSION = 3
#: Name of the last hidden layer of each network.
LAST_HIDDEN = {
    "two_layer_cnn": "hidden",
    "two_layer_cnn_bn": "hidden",
    "released_two_layer_cnn": "hidden",
    "five_layer_cnn": "pool",
    "five_layer_cnn_bn": "pool",
    # The two dimensions before the logits.
    "bottleneck_vgg11": "pool",
    "bottleneck_vgg19": "pool",
}


@dataclass(frozen=True, kw_only=True)
class LearnedGenerator:
    """A generator in eval mode, and how the learning went.

    Attributes
    ----------
    course : ``loss``, one number a trial; ``checks``, for each trial after which the
        generator was scored its number and the scores.
    """

    generator: NoiseGenerator
    course: Json


def learned_generator(
    config: ConfuseConfig, data: Data, seed: int, context: Context, cost: Cost
) -> LearnedGenerator:
    """Return the generator that a configuration selects, learned or from the store.

    The attacker scores it by what a network does that is trained on the perturbed
    ``part``: on the images held out, and, for the released code's way of selection, on
    the test images. All that could be selected are kept, so that configurations that
    differ in the selection share one learning.
    """
    generator = new_generator(config, data.learning, seed=seed)
    victim, (surrogate, surrogate_width) = networks_of(config)
    label_map = config.procedure.label_map
    by_surrogate = config.scored_by == "surrogate"
    model, width = (surrogate, surrogate_width) if by_surrogate else victim
    recipe = _scoring_recipe(config)
    names = ("validation", "test") if len(data.held_out) else ("test",)
    spec: Json = {
        "version": VERSION,
        "generator": config.generator,
        "width": config.generator_width,
        "epsilon": config.epsilon,
        "procedure": written(config.procedure),
        "surrogate": [surrogate, surrogate_width],
        "standardise": config.standardise,
        "seed": seed,
        "images": data.learning.checksum,
        "judged": {
            "every": config.select_every,
            "model": [model, width],
            "recipe": written(recipe),
            "images": [data.part.checksum, data.held_out.checksum, data.test.checksum],
        },
        "device": data.learning.device.type,
    }
    if by_surrogate:
        spec["judged"]["batch_statistics"] = True

    def score(candidate: NoiseGenerator) -> dict[str, float]:
        noisy, _ = craft(data.part, candidate).apply(data.part)
        network = new_network(config, data.part, seed=seed, model=model, width=width)
        fit(network, noisy, recipe, seed=seed)
        asked = {"validation": data.held_out, "test": data.test}
        return {
            name: _score(network, asked[name], label_map, batch_statistics=by_surrogate)
            for name in names
        }

    def learn(scratch: Path) -> tuple[Json, dict[str, Tensor]]:
        learned = fit_generator(
            generator,
            data.learning,
            config.procedure,
            surrogate=lambda number: new_network(
                config, data.learning, seed=number, model=surrogate, width=surrogate_width
            ),
            seed=seed,
            checkpoint=scratch / "checkpoint.safetensors",
            scores=names,
            score=score,
            score_every=config.select_every,
            progress=context.progress,
        )
        course: Json = {
            "loss": [trial.loss for trial in learned.history],
            "checks": [
                {"trial": number, **trial.scores}
                for number, trial in enumerate(learned.history, start=1)
                if trial.scores
            ],
            "seconds": sum(trial.seconds for trial in learned.history),
        }
        tensors = {
            f"{name}.{key}": value
            for name, one in {**learned.best, "last": generator}.items()
            for key, value in one.state_dict().items()
        }
        return course, tensors

    start = time.perf_counter()
    artefact = context.store.artefact("generators", spec, learn)
    cost.count(artefact, time.perf_counter() - start)
    prefix = f"{config.selection}."
    generator.load_state_dict(
        {k.removeprefix(prefix): v for k, v in artefact.tensors.items() if k.startswith(prefix)}
    )
    return LearnedGenerator(generator=generator.eval(), course=artefact.metrics)


def _scoring_recipe(config: ConfuseConfig) -> Recipe:
    """Return how the networks are trained that a generator is scored by."""
    if config.scored_by == "victim":
        return replace(config.recipe, epochs=config.select_epochs)
    procedure = config.procedure
    return replace(
        config.recipe,
        optimizer="sgd",
        momentum=0.0,
        weight_decay=0.0,
        learning_rate=procedure.surrogate_rate,
        schedule="constant",
        warmup=0.0,
        batch_size=procedure.batch_size,
        epochs=procedure.epochs_per_trial,
        crop_padding=0,
        flip=False,
    )


def _score(
    network: Classifier,
    images: ImageSet,
    label_map: tuple[int, ...] | None,
    *,
    batch_statistics: bool,
) -> float:
    """Return what the attacker wants to be low: accuracy, or the share not called as wished."""
    if label_map is None:
        return evaluate(network, images, batch_statistics=batch_statistics)
    return 1 - hit_rate(network, images, label_map, batch_statistics=batch_statistics)


def hit_rate(
    network: Classifier,
    images: ImageSet,
    label_map: tuple[int, ...],
    *,
    batch_statistics: bool = False,
) -> float:
    """Return the share of images that are called what the label map wants them to be."""
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
        return (x + generator(x)).clamp(0, 1)


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
