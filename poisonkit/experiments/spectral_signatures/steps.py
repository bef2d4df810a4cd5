"""The steps that the Spectral Signatures trials are made of: poison, train, filter, count."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from poisonkit.attacks.backdoor import Trigger, craft, random_trigger
from poisonkit.defenses.spectral import Filtered, spectral_filter
from poisonkit.evaluation import predict
from poisonkit.experiments.networks import Context, Cost, trained_network, width_option
from poisonkit.experiments.spectral_signatures.setting import HAND_MADE, SpectralConfig
from poisonkit.images import ImageSet, batches
from poisonkit.models import Classifier, create, must_take
from poisonkit.poison import Poison
from poisonkit.statistics import wilson
from poisonkit.store import Json
from poisonkit.training import Sampler

#: Makes another poison of the attack's, the clean training set, and the trigger.
Alter = Callable[[Poison, ImageSet, Trigger], Poison]

#: Section 4.4 counts a backdoor as captured at "approximately 90 % or higher".
CAPTURED = 0.90


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


def poisoned_data(
    config: SpectralConfig, unit: Json, context: Context, *, alter: Alter | None = None
) -> Poisoned:
    """Load the data set, draw the trigger, and poison the training images.

    Parameters
    ----------
    alter : makes what the training set is poisoned with of the attack's poison.
    """
    train, test = context.both(config.dataset, image_size=config.image_size)
    if config.images_per_class is not None:
        train = train.first_per_class(config.images_per_class)
    if config.merged:
        train = train.merge(config.merged, into=config.merged_into)
        test = test.merge(config.merged, into=config.merged_into)
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
    if alter:
        poison = alter(poison, train, trigger)
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
        **width_option(config.width),
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


def begin(
    config: SpectralConfig,
    unit: Json,
    context: Context,
    *,
    taps: Sequence[str] = (),
    alter: Alter | None = None,
) -> tuple[Poisoned, Cost]:
    """Start a trial: poison the data, and refuse what could not be done with them."""
    cost = Cost()
    data = poisoned_data(config, unit, context, alter=alter)
    check_request(config, data, taps=taps)
    return data, cost


def check_request(config: SpectralConfig, data: Poisoned, *, taps: Sequence[str] = ()) -> None:
    """Refuse before any training what could not be done after it.

    The layers must exist (``taps``, or the configured one), the network take the images,
    and the filter accept its settings; how many images it is to remove depends on no
    feature, so any will do.
    """
    options = width_option(config.width)
    network = create(
        config.model, like=data.train, seed=0, standardise=config.standardise, **options
    )
    network.eval()
    for tap in taps or (config.tap,):
        network.module_at(tap)
    fits = must_take(config.model, data.train.image_size, advice="; set image_size")
    with fits, torch.no_grad():
        network(next(batches(data.train.x[:2])))
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
