"""What the tests of the Deep Confuse experiments share: tiny settings, and a store."""

import pytest
from laboratory import Laboratory, Options

from poisonkit.experiments.deep_confuse import learning

#: As quick as can be: 300 digits of 16 pixels, two trials of a generator with 4 channels.
TINY: Options = {
    "procedure.trials": 2,
    "procedure.generator_rate": 1e-2,
    "select_every": 1,
    "select_epochs": 2,
    "recipe.epochs": 3,
    "recipe.learning_rate": 1e-2,
    "images_per_class": 30,
    "repeats": 2,
    "generator_width": 4,
    "width": 4,
}
OWN: dict[str, Options] = {
    "mnist": {},
    "cifar10": {},
    "imagenet2": {"image_size": 16},
    "network": {},
    "network_epsilon": {"epsilons": (0.0, 0.3)},
    "network_share": {"shares": (0.0, 1.0)},
    "network_transfer": {"classifiers": ("original", "half")},
    "network_label_map": {"image_size": 16},
    "epsilon": {"epsilons": (0.0, 0.3)},
    "share": {"shares": (0.0, 0.5, 1.0)},
    "transfer": {"classifiers": ("original", "half", "random forest", "support vector machine")},
    "transfer_cifar10": {"classifiers": ("original", "half")},
    "transfer_imagenet2": {
        "image_size": 16,
        "classifiers": ("original", "support vector machine"),
    },
    "label_map": {"image_size": 16},
    "first_steps": {"looks": 3, "looked_at": 5},
    "defences": {},
    "switches": {
        "image_size": 16,
        "switches": (
            "paper",
            "selected on the test images",
            "last trial, not selected",
            "trajectory stored (Algorithm 1)",
            "no batch normalisation",
        ),
    },
}
ATTACKS = ("mnist", "cifar10", "imagenet2")


class DeepConfuseLaboratory(Laboratory):
    chapter = "deep_confuse"
    tiny = TINY
    own = OWN


configure = DeepConfuseLaboratory.configure


def forbid_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every learning of a generator a failure of the test."""

    def learn(*_: object, **__: object) -> None:
        raise AssertionError("a generator was learned")

    monkeypatch.setattr(learning, "fit", learn)
    monkeypatch.setattr(learning, "fit_generator", learn)
