"""The images of a Convex Polytope trial, and what is refused before anything is made of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from poisonkit.attacks import polytope
from poisonkit.attacks.surrounding import Objective, Procedure, Substitute
from poisonkit.errors import PoisonkitError, unknown
from poisonkit.experiments.convex_polytope.setting import Layers, PolytopeConfig
from poisonkit.experiments.networks import Context, Cost
from poisonkit.experiments.settings import refuse_repeats
from poisonkit.images import ImageSet
from poisonkit.models import Classifier, create, features, must_take
from poisonkit.models.published import PUBLISHED
from poisonkit.training import Sampler

#: The last but one unit of the last stage, where the released code has such a layer.
LAST_BUT_ONE = {
    "resnet14": "group3.0",
    "resnet18": "stage4.0",
    "senet18": "stage4.0",
    "resnet50": "stage4.1",
    "resnext29_2x64d": "stage3.1",
    "dpn92": "stage4.1",
}


@dataclass(frozen=True, kw_only=True)
class Data:
    """The images of a configuration.

    Attributes
    ----------
    pretraining : what the networks are trained on.
    fine_tuning, rows : what victims are fine-tuned on, and those of it that become poisons.
    targets : in the order of their numbers.
    test : the official test images.
    """

    pretraining: ImageSet
    fine_tuning: ImageSet
    rows: tuple[int, ...]
    targets: ImageSet
    test: ImageSet

    @property
    def poison_label(self) -> int:
        return int(self.fine_tuning.y[self.rows[0]])


def load_data(config: PolytopeConfig, context: Context) -> Data:
    """Load a data set and cut it into the parts of section 4."""
    train, test = context.both(config.dataset, image_size=config.image_size)
    source, target = (train.label_of(k) for k in (config.poison_class, config.target_class))
    if source == target:
        raise PoisonkitError(f"poisons and targets are both of class {config.poison_class!r}")
    if config.pretraining_per_class > config.pool_from:
        raise PoisonkitError(
            f"the networks' {config.pretraining_per_class} images of each class reach into the "
            f"pool, which begins after {config.pool_from}"
        )
    count = config.fine_tuning_per_class
    fine_tuning = train.first_per_class(count, skip=config.pool_from)
    begin, end = config.pool_from + count, config.pool_from + count + config.targets
    found = train.indices_of(target)[begin:end]
    if config.targets < 1 or len(found) < config.targets:
        raise PoisonkitError(
            f"{train.name} has {len(found)} images of class {config.target_class!r} after the "
            f"first {begin}, not the {config.targets} targets asked for"
        )
    rows = fine_tuning.indices_of(source)[: config.poisons].tolist()
    if config.poisons < 1 or len(rows) < config.poisons:
        raise PoisonkitError(
            f"{config.poisons} poisons are asked for, of {count} images of each class"
        )
    return Data(
        pretraining=train.first_per_class(config.pretraining_per_class),
        fine_tuning=fine_tuning,
        rows=tuple(rows),
        targets=train.select(found),
        test=test,
    )


def begin(
    config: PolytopeConfig,
    context: Context,
    layers: Layers = "last",
    *,
    objectives: Sequence[Objective] | None = None,
) -> tuple[Data, Cost]:
    """Start a trial: load the data, and refuse what could not be done with them.

    Parameters
    ----------
    objectives : those that will be asked for instead of the procedure's own.
    """
    cost = Cost()
    data = load_data(config, context)
    refuse_repeats(
        objectives=objectives or (),
        substitutes=config.substitutes,
        dropouts=config.dropouts,
        victims=config.victims,
    )
    for option, values in (("victims", config.victims), ("dropouts", config.dropouts)):
        if not values:
            raise PoisonkitError(f"{option} must not be {values!r}")
    for rate in config.dropouts:
        if not 0 <= rate < 1:
            raise PoisonkitError(f"a dropout rate must lie in [0, 1), not {rate}")
    for name in config.victims:
        _check_victim(config, data, name)
    nets = [
        Substitute(network=network, taps=taps_of(network, name, layers))
        for name in config.substitutes
        for network in [_fresh(config, data.pretraining, name, max(config.dropouts))]
    ]
    own = config.procedure
    if own.pooled != Procedure().pooled:
        raise PoisonkitError("procedure.pooled is for several layers: set attacks of end_to_end")
    if objectives is not None and own.objective != Procedure().objective:
        raise PoisonkitError(f"set objectives=({own.objective!r},) instead of procedure.objective")
    procedures = [replace(own, objective=name) for name in objectives or (own.objective,)]
    Sampler(data.pretraining, config.pretraining, seed=0)
    for procedure in procedures:
        polytope.check_request(
            data.fine_tuning,
            nets,
            data.targets,
            rows=data.rows,
            procedure=procedure,
        )
    return data, cost


def _check_victim(config: PolytopeConfig, data: Data, name: str) -> None:
    network = _fresh(config, data.pretraining, name)
    [layer] = taps_of(network, name, "last")
    with must_take(name, data.pretraining.image_size):
        features(network, data.targets.x[:1], layer)
    if not isinstance(network.module_at("linear"), nn.Linear):
        raise PoisonkitError(f"{name} does not end in a linear layer that could be fine-tuned")


def options_of(config: PolytopeConfig, name: str) -> dict[str, Any]:
    """Return what a network is created with besides its name: published ones have a width."""
    return {"width": config.width} if name in PUBLISHED else {}


def _fresh(config: PolytopeConfig, like: ImageSet, name: str, dropout: float = 0.0) -> Classifier:
    return create(name, like=like, seed=0, dropout=dropout, **options_of(config, name)).eval()


def taps_of(network: Classifier, name: str, layers: Layers) -> tuple[str, ...]:
    """Return the parts of a network in which targets are to be surrounded.

    Parameters
    ----------
    layers : ``last``, what enters the linear layer; ``several``, the output of every
        stage, and of the last one after pooling (equation 4); ``released``, the output of
        the last but one unit of the last stage, and what enters the linear layer.
    """
    parts = dict(network.body.named_children())
    stages = [part for part in parts if part.startswith(("stage", "group", "block"))]
    last = "pool" if "pool" in parts else "hidden"
    if layers == "last":
        return (last,)
    if layers == "several":
        return (*stages[:-1], last)
    if name not in LAST_BUT_ONE:
        raise unknown("network with layers in the released code", name, LAST_BUT_ONE)
    return (LAST_BUT_ONE[name], last)
