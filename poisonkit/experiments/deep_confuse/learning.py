"""Learning a generator, or taking it from the store, and choosing which of its trials to use."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from poisonkit.attacks.deep_confuse import fit_generator
from poisonkit.attacks.generated_noise import craft
from poisonkit.evaluation import evaluate
from poisonkit.experiments.deep_confuse.data import Data, networks_of, new_generator, new_network
from poisonkit.experiments.deep_confuse.setting import ConfuseConfig
from poisonkit.experiments.deep_confuse.steps import hit_rate
from poisonkit.experiments.networks import Context, Cost
from poisonkit.images import ImageSet
from poisonkit.models import Classifier
from poisonkit.models.generators import NoiseGenerator
from poisonkit.options import written
from poisonkit.store import Json
from poisonkit.training import Recipe, fit

#: Raised when the same setting would give another generator; learned ones are then not reused.
VERSION = 3


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

    artefact = context.artefact("generators", spec, learn, cost)
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
