"""Requests to the Convex Polytope experiments that cannot be met."""

import pytest
from convex_polytope_laboratory import OWN, configure, forbid_crafting, forbid_fine_tuning

from poisonkit.errors import PoisonkitError
from poisonkit.experiments import EXPERIMENTS, run


@pytest.fixture
def nothing_made(no_training, monkeypatch) -> None:
    """Make every training and every crafting a failure of the test."""
    forbid_crafting(monkeypatch)
    forbid_fine_tuning(monkeypatch)


ALL = tuple(OWN)
REFUSED: list[tuple[tuple[str, ...], dict[str, object], str]] = [
    (ALL, {"target_class": "9"}, "poisons and targets are both of class '9'"),
    (("transfer",), {"poison_class": "cat"}, "unknown class .*'cat'; known: 0, 1"),
    (("transfer", "switches", "randomised"), {"poisons": 1}, "at least 2 different poisons"),
    (("overlap", "end_to_end"), {"poisons": 1}, "polytope needs at least 2 different poisons"),
    (("limits",), {"counts": (5, 1)}, "a polytope needs at least 2 poisons, not 1"),
    (("limits",), {"poisons": 1}, "a polytope needs at least 2 poisons, not 1"),
    (("transfer", "overlap"), {"poisons": 0}, "0 poisons are asked for"),
    (("transfer", "end_to_end"), {"poisons": -1}, "-1 poisons are asked for"),
    (("transfer", "switches"), {"poisons": 11}, "11 poisons are asked for, of 10 images"),
    (("limits",), {"counts": (7,)}, "filter removes 11 images of each class, .* there are 10"),
    (("end_to_end",), {"attacks": ("two layers",)}, "'small_cnn'; known: .*resnet18"),
    (
        ("end_to_end",),
        {"attacks": ("last layer", "two layers, as released"), "substitutes": ("resnet8",)},
        "'resnet8'; known: .*resnet18",
    ),
    (ALL, {"victims": ("small_cnn", "lenet")}, "unknown model 'lenet'; known: .*small_cnn"),
    (ALL, {"substitutes": ("lenet",)}, "unknown model 'lenet'; known: .*small_cnn"),
    (("transfer", "limits"), {"targets": 100}, "images of class '3' after the first 110, not"),
    (("transfer",), {"targets": 0}, "no trials|not the 0 targets"),
    (("transfer", "end_to_end"), {"targets_at_once": 0}, "targets_at_once must be at least 1"),
    (("limits", "randomised"), {"targets_at_once": -2}, "targets_at_once must be at least 1"),
    (
        ("transfer", "limits", "switches", "end_to_end", "randomised"),
        {"pretraining_per_class": 101},
        "101 images of each class reach into the pool, which begins after 100",
    ),
    (("overlap",), {"pretraining_per_class": 51}, "need 102 images of each class before the pool"),
    (
        ("overlap",),
        {"pretraining_per_class": 101, "overlaps": (1.0,)},
        "need 101 images of each class before the pool",
    ),
    (("overlap",), {"overlaps": (0.0, 1.2)}, r"an overlap must lie in \[0, 1\], not 1\.2"),
    (("overlap",), {"overlaps": (-0.1, 1.0)}, r"an overlap must lie in \[0, 1\], not -0\.1"),
    (ALL, {"victims": ("small_cnn", "small_cnn")}, "victims names something twice"),
    (ALL, {"substitutes": ("resnet8", "resnet8")}, "substitutes names something twice"),
    (ALL, {"dropouts": (0.2, 0.2)}, "dropouts names something twice"),
    (("transfer",), {"objectives": ("polytope", "polytope")}, "objectives names something twice"),
    (("overlap",), {"overlaps": (0.5, 0.5)}, "overlaps names something twice"),
    (("end_to_end",), {"attacks": ("all stages",) * 2}, "attacks names something twice"),
    (("limits",), {"epsilons": (0.1, 0.1)}, "epsilons names something twice"),
    (("limits",), {"counts": (2, 2)}, "counts names something twice"),
    (("switches",), {"switches": ("no dropout",) * 2}, "switches names something twice"),
    (("switches",), {"switches": ("no dropout", "slow")}, "switch 'slow'; known: as described"),
    (("limits",), {"epsilons": (0.1, 0.0)}, r"a bound must lie in \(0, 1\], not 0\.0"),
    (("limits",), {"epsilons": (1.5,)}, r"a bound must lie in \(0, 1\], not 1\.5"),
    (ALL, {"dropouts": (0.2, -0.1)}, r"a dropout rate must lie in \[0, 1\), not -0\.1"),
    (("transfer", "overlap"), {"dropouts": (1.0,)}, r"must lie in \[0, 1\), not 1\.0"),
    (("transfer", "randomised"), {"dropouts": ()}, r"dropouts must not be \(\)"),
    (ALL, {"substitutes": ()}, "at least one substitute"),
    (ALL, {"victims": ()}, r"victims must not be \(\)|no trials"),
    (("transfer", "randomised"), {"objectives": ()}, "no trials"),
    (
        ("transfer", "randomised"),
        {"procedure.objective": "bullseye"},
        r"set objectives=\('bullseye',\) instead",
    ),
    (ALL, {"procedure.pooled": "released"}, "set attacks of end_to_end"),
    (ALL, {"pretraining.crop_padding": 16}, "crop_padding of 16 pixels is too much"),
    (("end_to_end",), {"whole_network.crop_padding": 16}, "crop_padding of 16 pixels is too much"),
    (("randomised",), {"watch_every": 0}, "watch_every must be at least 1, not 0"),
    (("end_to_end",), {"tested": 0}, "tested must be at least 1, not 0"),
    (
        ("transfer", "randomised"),
        {"image_size": 2, "substitutes": ("resnet8", "densenet22"), "victims": ("resnet8",)},
        r"a substitute cannot take images of \(2, 2\) pixels",
    ),
    (
        ALL,
        {"image_size": 2, "substitutes": ("resnet8",), "victims": ("resnet8", "densenet22")},
        r"densenet22 cannot take images of \(2, 2\) pixels",
    ),
    (("transfer",), {"victims": ("two_layer_cnn",)}, "two_layer_cnn does not end in a linear"),
    (("transfer",), {"victims": ("densenet22",), "width": 0}, "at least 1 channel wide, not 0"),
    (("transfer", "overlap"), {"pretraining_per_class": 0}, "cannot take 0 images"),
    (("transfer",), {"fine_tuning_per_class": 0}, "cannot take 0 images"),
    (("transfer",), {"pool_from": 140}, "not the 140 . 10 asked for"),
    (("limits", "end_to_end"), {"dataset": "digit"}, "known: digits, mnist"),
]


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        pytest.param(name, options, told, id=f"{name}-{options}")
        for names, options, told in REFUSED
        for name in names
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_trained_or_crafted(
    name, options, told, store, nothing_made, untouched
):
    def attempt():
        config = configure(name, **options)
        run(EXPERIMENTS[f"convex_polytope/{name}"], config, store=store, device="cpu")

    with pytest.raises(PoisonkitError, match=f"(?s){told}"):
        attempt()
    assert not list(store.cache.rglob("*.json"))


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("end_to_end", {"attacks": ("first layer",)}, "last layer"),
        ("transfer", {"objectives": ("cube",)}, "polytope, collision"),
        ("transfer", {"procedure.epsilon": 0.0}, "epsilon must lie in"),
        ("transfer", {"procedure.iterations": 0}, "at least 1 iteration"),
        ("transfer", {"procedure.target_mask": "never"}, "once, every, without"),
    ],
)
def test_what_no_configuration_can_be_is_refused_with_what_it_can(name, options, told):
    with pytest.raises(PoisonkitError, match=told):
        configure(name, **options)
