"""Requests to the Deep Confuse experiments that cannot be met."""

import pytest
from deep_confuse_laboratory import configure, forbid_learning

from poisonkit.errors import PoisonkitError
from poisonkit.experiments import EXPERIMENTS, run


@pytest.fixture
def nothing_learned(no_training, monkeypatch) -> None:
    """Make every training of a network or of a generator a failure of the test."""
    forbid_learning(monkeypatch)


#: Each has a way of its own to go through its trials before the first training.
KINDS = (
    "mnist",
    "epsilon",
    "share",
    "transfer",
    "label_map",
    "first_steps",
    "defences",
    "switches",
    "network",
    "network_transfer",
)
REFUSED: list[tuple[tuple[str, ...], dict[str, object], str]] = [
    (("mnist", "transfer"), {"epsilon": 0.0}, r"epsilon must lie in \(0, 1\].*not 0\.0"),
    (("mnist", "label_map"), {"epsilon": -0.1}, r"epsilon must lie in \(0, 1\].*not -0\.1"),
    (("defences", "switches"), {"epsilon": 1.5}, r"epsilon must lie in \(0, 1\].*not 1\.5"),
    (("epsilon", "share"), {"epsilons": (0.3, -0.1)}, r"must lie in \(0, 1\].*not -0\.1"),
    (("epsilon", "share"), {"epsilons": (0.3, 1.5)}, r"must lie in \(0, 1\].*not 1\.5"),
    (("share",), {"epsilons": (0.0,)}, r"epsilon.* must lie in \(0, 1\]"),
    (("epsilon", "share"), {"epsilons": (0.3, 0.3)}, "epsilons names something twice"),
    (("epsilon", "share"), {"epsilon": 0.2}, r"set epsilons=\(0\.2,\) instead of epsilon"),
    (("label_map",), {"procedure.label_map": (*range(1, 10), 0)}, "set label_map instead of"),
    (("label_map",), {"label_map": (1, 0)}, "needs 10 entries, not 2"),
    (("label_map",), {"label_map": (*range(1, 10), 10)}, "class 9 to 10; .* are 0 to 9"),
    (("label_map",), {"label_map": (-1, *range(9))}, "class 0 to -1; .* are 0 to 9"),
    (("label_map",), {"label_map": tuple(range(10))}, "every class to itself"),
    (("mnist",), {"procedure.label_map": (1, 0)}, "needs 10 entries, not 2"),
    (
        ("mnist", "epsilon"),
        {"generator": "released_mnist", "image_size": 20},
        r"'released_mnist' .*\(1, 16, 16\).*\(1, 20, 20\)",
    ),
    (
        ("switches",),
        {"switches": ("paper", "released generator"), "image_size": 20},
        r"'released_mnist' .*\(1, 16, 16\).*\(1, 20, 20\)",
    ),
    (("mnist", "cifar10"), {"model": "lenet"}, "unknown model 'lenet'; known: .*two_layer_cnn"),
    (("mnist", "defences"), {"surrogate": "lenet"}, "unknown model 'lenet'; known: .*two_layer"),
    (("mnist", "share"), {"generator": "gan"}, "unknown generator 'gan'; known: autoencoder"),
    (("transfer",), {"classifiers": ("original", "svm")}, "'svm'; known: .*support vector"),
    (("switches",), {"switches": ("paper", "amsgrad")}, "'amsgrad'; known: paper, .*released"),
    (("defences",), {"defences": ("none", "dropout")}, "'dropout'; known: none, crops"),
    (("transfer",), {"noise": "anew"}, "noise must be 'once' here, not 'anew'"),
    (("mnist", "share"), {"trained_share": 1.5}, r"trained_share must lie in \(0, 1\], not 1.5"),
    (("mnist",), {"trained_share": 0.0}, r"trained_share must lie in \(0, 1\], not 0.0"),
    (("share", "defences"), {"noise": "anew"}, "noise must be 'once' here, not 'anew'"),
    (("mnist", "label_map"), {"procedure.crops": "centre"}, "one of none, random"),
    (("mnist", "network"), {"procedure.precision": "half"}, "one of float32, tf32"),
    (("transfer",), {"trees": 0}, "at least one tree .* not 0 and"),
    (("transfer",), {"penalty": 0.0}, "a positive penalty, not .* and 0.0"),
    (("transfer",), {"classifiers": ("half", "half")}, "classifiers names something twice"),
    (("switches",), {"switches": ("paper", "paper")}, "switches names something twice"),
    (("defences",), {"defences": ("none", "none")}, "defences names something twice"),
    (("first_steps",), {"ways": ("as in Table 1", "adam")}, "'adam'; known: as in Table 1"),
    (("first_steps",), {"ways": ("with momentum",) * 2}, "ways names something twice"),
    (("first_steps",), {"looks": 0}, "looks must be at least 1, not 0"),
    (("first_steps",), {"looked_at": 0}, "looked_at must be at least 1, not 0"),
    (("first_steps",), {"noise": "anew"}, "noise must be 'once' here, not 'anew'"),
    (("share",), {"shares": (0.5, 0.5)}, "shares names something twice"),
    (KINDS, {"validation": 0.0}, "selection='validation' needs images held out"),
    (("mnist",), {"validation": 1.0}, r"share between 0 and 1, not 1\.0"),
    # Of 30 images of a class none would be held out, or none be left.
    (("mnist",), {"validation": 0.01}, "validation|held out"),
    (("mnist",), {"validation": 0.99}, "validation|held out"),
    (("share",), {"shares": (0.5, 1.2)}, r"share must lie in \[0, 1\], not 1\.2"),
    (("share",), {"shares": (0.5, -0.2)}, r"share must lie in \[0, 1\], not -0\.2"),
    # Before the generator is learned whose images they would be a share of.
    (("share",), {"shares": (1.0, 1e-6)}, "share of 1e-06 of .* images is none of them"),
    (("share",), {"shares": (0.5, 0.9999)}, "share of 0.9999 of .* images is all of them"),
    (("defences",), {"attack_steps": 0}, "attack_steps must be at least 1, not 0"),
    (("defences",), {"share": 1.2}, r"share must lie in \(0, 1\], not 1\.2"),
    (("defences",), {"share": 0.0}, r"share must lie in \(0, 1\], not 0\.0"),
    (KINDS, {"repeats": 0}, "no trials|at least 1"),
    (("mnist", "label_map"), {"generators": 0}, "no trials|at least 1"),
    (KINDS, {"select_every": 0}, "select_every must be at least 1, not 0"),
    (("mnist", "transfer_cifar10"), {"images_per_class": 5000}, "not the 0 .* 5000 asked for"),
    (("mnist",), {"learning_images_per_class": 29}, "not the 0 .* 29 asked for"),
    (("mnist",), {"width": 0}, "at least 1 channel wide, not 0"),
    (("mnist",), {"generator_width": 0}, "at least 1 channel wide, not 0"),
    (("mnist", "defences"), {"recipe.crop_padding": 16}, "crop_padding of 16 pixels is too much"),
    (("mnist",), {"image_size": 2}, "two_layer_cnn_bn_average_logits cannot take images of"),
    (("mnist",), {"procedure.trials": 0}, "trials must be at least 1, not 0"),
    (("mnist",), {"dataset": "digit"}, "known: digits, mnist"),
    (("defences",), {"model": "resnet8"}, "known last hidden layer 'resnet8'; known: two_layer"),
]


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        pytest.param(name, options, told, id=f"{name}-{options}")
        for names, options, told in REFUSED
        for name in names
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_trained(
    name, options, told, store, nothing_learned, untouched
):
    def attempt():
        config = configure(name, **options)
        run(EXPERIMENTS[f"deep_confuse/{name}"], config, store=store, device="cpu")

    with pytest.raises(PoisonkitError, match=f"(?s){told}"):
        attempt()
    assert not list(store.cache.rglob("networks"))
    assert not list(store.cache.rglob("generators"))
    assert not list(store.cache.rglob("*.json"))


@pytest.mark.parametrize("selection", ["best", "train"])
def test_an_unknown_selection_lists_the_known_ones(selection):
    with pytest.raises(PoisonkitError, match="one of validation, test, last"):
        configure("mnist", selection=selection)
