"""Figure 6a and b: where the weights go, and how far poisons are from the target in features."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poisonkit import training
from poisonkit.attacks import polytope
from poisonkit.attacks.surrounding import Procedure as CollisionProcedure
from poisonkit.attacks.surrounding import Substitute
from poisonkit.devices import repeatable_kernels
from poisonkit.errors import PoisonkitError
from poisonkit.experiments.metapoison.pairs import Data, Pair, begin
from poisonkit.experiments.metapoison.setting import (
    ROUNDED_VARIANTS,
    MetaConfig,
    always_rounded,
    profiles_of,
)
from poisonkit.experiments.metapoison.steps import (
    VICTIM_SEEDS,
    crafted,
    last_representation,
    train_victim,
)
from poisonkit.experiments.metapoison.victims import answers, outcome, rows_by, runs
from poisonkit.experiments.networks import Context, Cost, width_option
from poisonkit.experiments.running import Experiment
from poisonkit.experiments.settings import as_json
from poisonkit.images import ImageSet, batches
from poisonkit.models import Classifier, create, evaluating, features
from poisonkit.poison import Poison
from poisonkit.store import Json
from poisonkit.training import Epoch, fit


@dataclass(frozen=True, kw_only=True)
class MechanismConfig(MetaConfig):
    """As :class:`MetaConfig`, for a look at weights and features.

    Attributes
    ----------
    arrows : places on the clean path at which the poisons' pull is shown.
    collided : poisons that are made to collide with the target for comparison.
    iterations : of that collision.
    """

    arrows: int = 8
    collided: int = 50
    iterations: int = 1000


def _check(config: MechanismConfig, unit: Json, context: Context) -> object:
    data, pair, cost = begin(config, unit["pair"], context)
    always_rounded(config)
    if config.arrows < 1 or config.collided < 1 or config.iterations < 1:
        raise PoisonkitError("arrows, collided and iterations must be at least 1")
    last_representation(_fresh(config, data.train, unit["victim"]))
    return data, pair, cost


def _fresh(config: MetaConfig, images: ImageSet, number: int) -> Classifier:
    return create(
        config.model,
        like=images,
        seed=config.seed + VICTIM_SEEDS + number,
        standardise=config.standardise,
        **width_option(config.width),
    )


def _trial(config: MechanismConfig, unit: Json, context: Context) -> tuple[Json, dict[str, Tensor]]:
    data, pair, cost = begin(config, unit["pair"], context)
    poisons = crafted(config, data, pair, context, cost)
    number, train = unit["victim"], {"clean": data.train}
    # Changes of the same size that nobody crafted: what any change of the images does.
    control = with_random_signs(poisons.last, data.train, seed=config.seed + pair.number)
    for name, poison in (("poisoned", poisons.last), ("signs", control)):
        train[name], _ = poison.apply(data.train, targets=pair.targets.x)
    poisoned = train["poisoned"]
    paths = {
        name: weight_path(config, images, number, context, cost) for name, images in train.items()
    }
    numbers, arrays = plane_of(paths)
    numbers["apart"] = distances_between(paths)
    network = _fresh(config, data.train, number)
    places = torch.linspace(0, len(paths["clean"]) - 1, config.arrows).round().long()
    pulls = [
        pull(network, paths["clean"][place], data.train, poisoned) for place in places.unique()
    ]
    arrays["arrows.at"] = arrays["path.clean"][places.unique()]
    arrays["arrows.to"] = torch.stack(pulls).double() @ arrays.pop("axes").T
    clean, _ = train_victim(config, data, data.train, None, number, context, cost)
    victim, course = train_victim(config, data, poisoned, pair, number, context, cost)
    collided = _collide(config, data, pair, clean)
    rows = torch.tensor(pair.rows, device=data.train.device)
    images = {
        "bases": data.train.x[rows],
        "poisons": poisons.last.images,
        "collided": collided,
    }
    numbers["layers"] = layers_of(clean)
    numbers["distances"] = {
        f"{kind} in {name}": distances_by_layer(network, x, pair.targets)
        for name, network, kinds in (
            ("clean", clean, ("bases", "poisons", "collided")),
            ("victim", victim, ("bases", "poisons")),
        )
        for kind, x in images.items()
        if kind in kinds
    }
    return {
        **unit,
        **numbers,
        **outcome(pair, victim, course, data),
        "clean": answers(pair, clean, data),
        "data_checksum": data.train.checksum,
        "cost": cost.as_json(),
    }, {name: tensor.float() for name, tensor in arrays.items()}


def with_random_signs(poison: Poison, train: ImageSet, *, seed: int) -> Poison:
    """Return a poison that changes each value by as much, up or down at random.

    Where only one way stays within [0, 255] the change keeps its sign.
    """
    before = train.x[poison.rows].short()
    other = 2 * before - poison.images.short()
    drawn = torch.rand(other.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    turned = drawn.to(train.device) & (other >= 0) & (other <= 255)
    return replace(poison, images=torch.where(turned, other, poison.images).to(torch.uint8))


# Weights ------------------------------------------------------------------------------------


def weight_path(
    config: MetaConfig, images: ImageSet, number: int, context: Context, cost: Cost
) -> Tensor:
    """Return all weights of a victim before the first epoch and after each, [epochs + 1, P].

    Pairs share the path on clean images, and a run that was stopped need not go it again.
    """
    seed = config.seed + VICTIM_SEEDS + number
    spec: Json = {
        "training": training.VERSION,
        "model": [config.model, config.width, config.standardise],
        "recipe": as_json(config.recipe),
        "seed": seed,
        "data": images.checksum,
        "device": images.device.type,
    }

    def train(scratch: Path) -> tuple[Json, dict[str, Tensor]]:
        network = _fresh(config, images, number)
        path = [_flat(network)]

        def keep(number: int, epoch: Epoch) -> None:
            path.append(_flat(network))

        fit(network, images, config.recipe, seed=seed, on_epoch=keep, progress=context.progress)
        return {}, {"path": torch.stack(path)}

    found = context.artefact("paths", spec, train, cost)
    return found.tensors["path"]


def _flat(network: nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten().cpu() for value in network.parameters()])


def plane_of(paths: dict[str, Tensor]) -> tuple[Json, dict[str, Tensor]]:
    """Project the paths on the two principal components of the clean and poisoned points.

    Returns
    -------
    The share of the variance that each component explains; the points ``path.NAME`` [n, 2],
    and the components ``axes`` [2, P].
    """
    from sklearn.decomposition import PCA

    points = {name: path.double().numpy() for name, path in paths.items()}
    fitted = PCA(n_components=2, svd_solver="full")
    fitted.fit(np.concatenate([points["clean"], points["poisoned"]]))
    arrays = {f"path.{name}": torch.from_numpy(fitted.transform(x)) for name, x in points.items()}
    arrays["axes"] = torch.from_numpy(fitted.components_)
    return {"explained": [float(share) for share in fitted.explained_variance_ratio_]}, arrays


def distances_between(paths: dict[str, Tensor]) -> dict[str, list[float]]:
    """Return how far each other path is from the clean one, epoch by epoch.

    The unit is the distance between the clean path's ends; all weights count.
    """
    clean = paths["clean"].double()
    length = (clean[-1] - clean[0]).norm()
    return {
        name: ((path.double() - clean).norm(dim=1) / length).tolist()
        for name, path in paths.items()
        if name != "clean"
    }


def pull(network: nn.Module, weights: Tensor, clean: ImageSet, poisoned: ImageSet) -> Tensor:
    """Return by how much the descent on poisoned images differs from that on clean ones, [P].

    Both are the negative slope of the mean loss over all images, in batches normalised by
    themselves.
    """
    torch.nn.utils.vector_to_parameters(weights.to(clean.device), network.parameters())
    network.train()
    parameters = list(network.parameters())
    total = torch.zeros_like(weights)
    with repeatable_kernels():
        for images, sign in ((clean, 1.0), (poisoned, -1.0)):
            for x, y in zip(batches(images.x, batch_size=500), images.y.split(500), strict=True):
                loss = F.cross_entropy(network(x), y, reduction="sum") / len(images)
                slopes = torch.autograd.grad(loss, parameters)
                total += sign * torch.cat([slope.flatten().cpu() for slope in slopes])
    return total


# Features -----------------------------------------------------------------------------------


def layers_of(network: Classifier) -> list[str]:
    """Return the names of a network's parts in order, the last linear layer left out."""
    return [name for name, _ in network.body.named_children() if name != "linear"]


def distances_by_layer(network: Classifier, x: Tensor, targets: ImageSet) -> list[float]:
    """Return the mean distance of images to the first target, relative to its norm, by layer.

    Parameters
    ----------
    x : uint8 [n, C, H, W].
    """
    found = []
    for layer in layers_of(network):
        aim = features(network, targets.x[:1], layer)
        apart = (features(network, x, layer) - aim).norm(dim=1)
        found.append(float((apart / aim.norm()).double().mean()))
    return found


def _collide(config: MechanismConfig, data: Data, pair: Pair, network: Classifier) -> Tensor:
    """Return images that collide with the first target in a network's last representation."""
    with evaluating(network):
        done = polytope.craft(
            data.train,
            [Substitute(network=network, taps=(last_representation(network),))],
            pair.targets.select(torch.tensor([0], device=data.train.device)),
            rows=pair.rows[: config.collided],
            procedure=CollisionProcedure(
                objective="collision",
                epsilon=config.procedure.epsilon,
                iterations=config.iterations,
                dropout=False,
            ),
            seed=config.seed,
        )
    return done.poisons[0].images


def _summary(config: MechanismConfig, trials: Sequence[Json]) -> Json:
    return {
        "explained": [sum(trial["explained"]) for trial in trials],
        "rows": rows_by(trials, "pair"),
    }


MECHANISM = Experiment(
    name="metapoison/mechanism",
    summary="Figure 6a and b: weights on their way, and distances in feature space",
    version=3,
    config=MechanismConfig,
    profiles=profiles_of(
        paper={"pairs": 2, "victims": 4},
        quick={"pairs": 2, "arrows": 6, "collided": 10, "iterations": 200, "victims": 2},
        small={"pairs": 3, "victims": 4, "collided": 20, "iterations": 200},
    ),
    variants=ROUNDED_VARIANTS,
    units=runs,
    trial=_trial,
    check=_check,
    summarise=_summary,
)
