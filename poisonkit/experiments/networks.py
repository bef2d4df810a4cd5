"""What trials share: where they find data, trained networks, and what these cost."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from poisonkit import training
from poisonkit.data import data_root, load
from poisonkit.devices import choose_device
from poisonkit.errors import PoisonkitError
from poisonkit.experiments.settings import as_json
from poisonkit.images import ImageSet
from poisonkit.models import Classifier, create
from poisonkit.store import Artefact, Json, Store
from poisonkit.training import Measure, Recipe, fit

#: Data sets that do not change while a process runs; images in a user's folder may.
FIXED = ("digits", "mnist", "cifar10", "imagenet2")


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a trial needs besides its configuration; it can be sent to another process."""

    store: Store
    device: str = "auto"
    data_root: Path | None = None
    progress: bool = False

    def load(self, name: str, split: str, **options: Any) -> ImageSet:
        """Load a data set; one of :data:`FIXED` once in each process."""
        device = choose_device(self.device)
        if name in FIXED:
            return _loaded(load, name, split, data_root(self.data_root), device, **options)
        return load(name, split=split, root=self.data_root, device=device, **options)

    def both(self, name: str, **options: Any) -> tuple[ImageSet, ImageSet]:
        """Load training and test images, and refuse test images of another size."""
        train, test = (self.load(name, split, **options) for split in ("train", "test"))
        if test.image_size != train.image_size:
            raise PoisonkitError(
                f"{train.name}: training images are {train.image_size}, test images "
                f"{test.image_size} pixels high and wide; set image_size to resize them all"
            )
        return train, test

    def artefact(
        self,
        kind: str,
        spec: Json,
        compute: Callable[[Path], tuple[Json, dict[str, Tensor]]],
        cost: "Cost",
    ) -> Artefact:
        """Return an artefact of the store, see :meth:`Store.artefact`, its cost counted."""
        start = time.perf_counter()
        found = self.store.artefact(kind, spec, compute)
        cost.count(found, time.perf_counter() - start)
        return found


@lru_cache(maxsize=4)
def _loaded(
    load: Callable[..., ImageSet],
    name: str,
    split: str,
    root: Path,
    device: torch.device,
    **options: Any,
) -> ImageSet:
    return load(name, split=split, root=root, device=device, **options)


class Cost:
    """Counts the seconds of a trial, each shared network once however often it is asked for.

    A trained network may come from the store, in this trial or in a run before
    this one; what counts is the time its training took.
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waited = 0.0
        self._networks: dict[str, float] = {}
        self._commits: set[str] = set()

    def count(self, artefact: Artefact, waited: float) -> None:
        self._networks[artefact.key] = artefact.seconds
        self._commits.add(artefact.origin["commit"])
        self._waited += waited

    def as_json(self) -> Json:
        """Return the seconds of each network by its key and of everything else, and commits."""
        rest = time.perf_counter() - self._start - self._waited
        return {"seconds": self._networks | {"": rest}, "commits": sorted(self._commits)}


@dataclass(frozen=True)
class Transform:
    """What is done to each batch before a network is trained on it, see :func:`fit`.

    Attributes
    ----------
    about : everything that its result depends on besides model, images and labels.
    """

    about: Json
    apply: Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Measured:
    """A number that is read off a network after each epoch, see :func:`fit`.

    Attributes
    ----------
    about : everything that it depends on besides the network.
    """

    about: Json
    read: Measure


def width_option(width: int | None) -> dict[str, Any]:
    """Return the option of a network or generator that sets its width; None is its own."""
    return {} if width is None else {"width": width}


def trained_network(
    context: Context,
    images: ImageSet,
    recipe: Recipe,
    *,
    model: str,
    seed: int,
    label: str,
    cost: Cost,
    standardise: str = "data",
    **options: int,
) -> Classifier:
    """Return a network trained on ``images``, in eval mode; see :func:`training_of`."""
    network, _ = training_of(
        context,
        images,
        recipe,
        model=model,
        seed=seed,
        label=label,
        cost=cost,
        standardise=standardise,
        options=options,
    )
    return network


def training_of(
    context: Context,
    images: ImageSet,
    recipe: Recipe,
    *,
    model: str,
    seed: int,
    label: str,
    cost: Cost,
    standardise: str = "data",
    transform: Transform | None = None,
    like: ImageSet | None = None,
    watch: Mapping[str, ImageSet | Measured] | None = None,
    watch_after: Sequence[int] = (),
    options: Mapping[str, int] | None = None,
) -> tuple[Classifier, Json]:
    """Return a trained network in eval mode, and the course of its training.

    Trained networks are artefacts: whoever asks for the same one gets it from the
    store, and training goes on from its last checkpoint after a kill.

    Parameters
    ----------
    like : images whose statistics the network standardises its input by, if not those
        that it is trained on.
    watch_after : see :func:`~poisonkit.training.fit`.

    Returns
    -------
    The network; ``loss`` and ``accuracy``, one number an epoch, and, for each name in
    ``watch``, the accuracy on those images or what was to be measured; with ``watch_after``
    also ``between``, what was measured after these steps.
    """
    options = dict(options or {})
    network = create(model, like=like or images, seed=seed, standardise=standardise, **options)
    spec: Json = {
        "training": training.VERSION,
        "model": model,
        "options": options,
        "standardise": standardise,
        "recipe": as_json(recipe),
        "seed": seed,
        "data": images.checksum,
        "device": images.device.type,
    }
    if transform:
        spec["transform"] = transform.about
    if like:
        spec["like"] = like.checksum
    if watch:
        spec["watch"] = {
            name: other.checksum if isinstance(other, ImageSet) else other.about
            for name, other in watch.items()
        }
    if watch_after:
        spec["watch_after"] = [*watch_after]

    def train(scratch: Path) -> tuple[Json, dict[str, Tensor]]:
        history = fit(
            network,
            images,
            recipe,
            seed=seed,
            transform=transform.apply if transform else None,
            watch={
                name: other if isinstance(other, ImageSet) else other.read
                for name, other in (watch or {}).items()
            },
            watch_after=watch_after,
            checkpoint=scratch / "checkpoint.safetensors",
            progress=context.progress,
            label=label,
        )
        numbers: Json = {
            "loss": [epoch.loss for epoch in history],
            "accuracy": [epoch.accuracy for epoch in history],
            "seconds": sum(epoch.seconds for epoch in history),
        }
        for name in watch or ():
            numbers[name] = [epoch.watched[name] for epoch in history]
        if watch_after:
            numbers["between"] = [look for epoch in history for look in epoch.between]
        return numbers, dict(network.state_dict())

    artefact = context.artefact("networks", spec, train, cost)
    network.load_state_dict(artefact.tensors)
    return network.eval(), artefact.metrics
