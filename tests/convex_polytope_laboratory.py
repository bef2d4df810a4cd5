"""What the tests of the Convex Polytope experiments share: tiny settings, victims, images."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from laboratory import Laboratory, Options
from torch import Tensor

from poisonkit.attacks import polytope
from poisonkit.experiments.convex_polytope import end_to_end, victims
from poisonkit.experiments.convex_polytope.data import Data, begin, load_data
from poisonkit.experiments.convex_polytope.steps import Poisons, crafted, substitutes
from poisonkit.experiments.convex_polytope.victims import FrozenVictim
from poisonkit.experiments.networks import Context
from poisonkit.images import ImageSet
from poisonkit.models import Classifier, create
from poisonkit.store import Store

#: As quick as can be: 200 digits, networks trained for an epoch, two targets, three steps.
TINY: Options = {
    "pretraining_per_class": 20,
    "fine_tuning_per_class": 10,
    "targets": 2,
    "targets_at_once": 2,
    "substitutes": ("small_cnn", "resnet8"),
    "dropouts": (0.2,),
    "victims": ("small_cnn", "preact_resnet8"),
    "pretraining.epochs": 1,
    "procedure.iterations": 3,
    "fine_tuning.epochs": 5,
}
OWN: dict[str, Options] = {
    "transfer": {},
    "overlap": {"overlaps": (0.0, 1.0)},
    "end_to_end": {"whole_network.epochs": 2, "tested": 1},
    "randomised": {"watch_every": 2},
    "limits": {"epsilons": (0.1, 0.3), "counts": (2, 5)},
    "switches": {},
}
#: The paper's networks: those that substitutes are of, and with them those of all victims.
SIX = {"senet18", "resnet50", "resnext29_2x64d", "dpn92", "mobilenet_v2", "googlenet"}
EIGHT = SIX | {"resnet18", "densenet121"}
#: Classes of the images that stand in for digits.
FAKE: Options = {"poison_class": "class 2", "target_class": "class 1"}


class ConvexPolytopeLaboratory(Laboratory):
    chapter = "convex_polytope"
    tiny = TINY
    own = OWN

    def poisons(self, name: str = "transfer", *, first: int = 0, **options: object) -> Poisons:
        """What is crafted in the last layer with the configuration's own procedure."""
        config = configure(name, **options)
        data, cost = begin(config, self.context)
        nets = substitutes(config, data.pretraining, self.context, cost)
        return crafted(config, data, nets, config.procedure, first, self.context, cost)


configure = ConvexPolytopeLaboratory.configure


def forbid_crafting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every crafting of poisons a failure of the test."""

    def craft(*_: object, **__: object) -> None:
        raise AssertionError("poisons were crafted")

    monkeypatch.setattr(polytope, "craft", craft)


def forbid_fine_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every training of a victim on poisons a failure of the test."""

    def fine_tune(*_: object, **__: object) -> None:
        raise AssertionError("a victim was fine-tuned")

    monkeypatch.setattr(end_to_end, "fit", fine_tune)
    monkeypatch.setattr(victims, "fit_linear", fine_tune)


def into_linear(network: Classifier, x: Tensor) -> Tensor:
    """What the linear layer is given for uint8 images, seen at its entrance."""
    seen: list[Tensor] = []
    handle = network.body.linear.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        network.eval()(x.float() / 255)
    handle.remove()
    return seen[0]


def with_layer(network: Classifier, weight: Tensor, bias: Tensor) -> Classifier:
    """The whole network with another last layer."""
    own = copy.deepcopy(network).eval()
    with torch.no_grad():
        own.body.linear.weight.copy_(weight)
        own.body.linear.bias.copy_(bias)
    return own


def answers(network: Classifier, x: Tensor) -> list[int]:
    with torch.no_grad():
        return network.eval()(x.float() / 255).argmax(1).tolist()


def distinct_images(
    make_images: Callable[..., ImageSet], monkeypatch: pytest.MonkeyPatch
) -> ImageSet:
    """A data set in which no two images are the same, in the place of digits."""
    images = make_images(400, classes=4, channels=1, size=(16, 16), seed=11)
    assert len({image.numpy().tobytes() for image in images.x}) == 400
    test = make_images(40, classes=4, channels=1, size=(16, 16), seed=12)
    sets = {"train": images, "test": test}
    monkeypatch.setattr(Context, "load", lambda self, name, split, **_: sets[split])
    return images


def names_of(images: ImageSet) -> list[bytes]:
    return [image.numpy().tobytes() for image in images.x]


def frozen_victim(store: Store) -> tuple[FrozenVictim, Any, Data, Classifier, Tensor]:
    """A random network, its data, and random poisons for three targets."""
    config = configure("transfer", targets=3)
    data = load_data(config, Context(store=store, device="cpu"))
    network = create("small_cnn", like=data.pretraining, seed=4).eval()
    generator = torch.Generator().manual_seed(5)
    shape = (3, 5, *data.fine_tuning.x.shape[1:])
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return FrozenVictim(config, data, network, "hidden"), config, data, network, images


def poisoned(data: Data, images: Tensor) -> ImageSet:
    """The fine-tuning images with one set of poisons in the place of the bases."""
    x = data.fine_tuning.x.clone()
    for row, image in zip(data.rows, images, strict=True):
        x[row] = image
    return replace(data.fine_tuning, x=x)
